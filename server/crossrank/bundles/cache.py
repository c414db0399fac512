"""Cache converted bundles. Several processes may share the cache, and no failure leaves half a bundle in it.

    CACHE/bundles/TOOLS/OWNER--NAME@COMMIT/    a bundle; TOOLS names bundle format, crossrank version and CONVERSION
    CACHE/bundles/TOOLS/refs/OWNER--NAME@main  the commit that a branch or tag last pointed to

A bundle is built in a temporary directory beside its final place and renamed, under a lock. Reading takes no lock and
writes nothing, so a filled cache may be mounted read-only.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crossrank.bundles.bundle import FORMAT, Bundle, is_bundle, load_bundle
from crossrank.errors import BundleError, ModelSourceError

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"
# Increase this when conversion changes so that scores may change: cached bundles are then converted again.
# 2: tokens as transformers gives them, segments only where the model has them, weights of models with several labels.
# 3: safetensors of known families are preferred to an ONNX graph beside them.
CONVERSION = 3


def default_cache_dir() -> Path:
    """Return CROSSRANK_CACHE_DIR, or `crossrank` in the user's cache directory."""
    if configured := os.environ.get("CROSSRANK_CACHE_DIR"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crossrank"


def bundle_name(model_id: str, revision: str) -> str:
    """Return the directory name of a model's bundle; slashes of ids and revisions become `--`."""
    return f"{model_id}@{revision}".replace("/", "--")


def _tools_version() -> str:
    """Return the installed version of crossrank, or `source` for a source tree on PYTHONPATH."""
    try:
        return version("crossrank")
    except PackageNotFoundError:
        return "source"


@dataclass(frozen=True)
class CachedBundle:
    """Path, revision and size of a bundle in the cache, as `crossrank models` shows it."""

    path: Path
    revision: str
    size_bytes: int


def measure_bundle(path: Path, revision: str) -> CachedBundle | None:
    """Return the path and size of a bundle, or None if there is none. Its files are not verified."""
    if not is_bundle(path):
        return None
    return CachedBundle(path, revision, sum(file.stat().st_size for file in path.iterdir() if file.is_file()))


class BundleCache:
    """Store and load the bundles that this version converted; other versions and bundle formats have their own.

    Args:
        directory: Root of the cache; defaults to `default_cache_dir()`. It need not exist.
    """

    def __init__(self, directory: Path | None = None) -> None:
        tools = f"format{FORMAT}-{_tools_version()}-{CONVERSION}"
        self.root = (directory or default_cache_dir()) / "bundles" / tools

    def load(self, name: str) -> Bundle | None:
        """Return a verified bundle; None if it is absent, or damaged and must be built again."""
        target = self.root / name
        if not is_bundle(target):
            return None
        try:
            return load_bundle(target)
        except BundleError as error:
            logger.warning("the cached bundle is damaged and will be made again: %s", error.message)
            return None

    def build(self, name: str, write: Callable[[Path, Path], None]) -> Bundle:
        """Build a bundle, or return the one that another process built meanwhile. A failure leaves nothing behind.

        Args:
            name: Name from `bundle_name`.
            write: Called with (scratch directory, bundle directory), neither of which exists yet.

        Raises:
            BundleError: `write` did not produce a valid bundle.
            ModelSourceError: The cache cannot be written.
        """
        target = self.root / name
        partial = self.root / f"{name}{_PARTIAL}"
        with self._locked(name):
            if bundle := self.load(name):
                return bundle
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
            try:
                partial.mkdir()
                out = partial / "bundle"
                write(partial / "source", out)
                bundle = load_bundle(out)
                if target.exists():
                    shutil.rmtree(target)
                out.replace(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return replace(bundle, path=target)

    def newest(self, model_id: str) -> CachedBundle | None:
        """Return the newest bundle of a hub model, or None."""
        found = [path for path in self.root.glob(bundle_name(model_id, "*")) if is_bundle(path)]
        if not found:
            return None
        path = max(found, key=lambda item: item.stat().st_mtime)
        return measure_bundle(path, path.name.rpartition("@")[2])

    def remember(self, model_id: str, ref: str, commit: str) -> None:
        """Record the commit that a branch or tag points to, for use when the hub cannot be reached.

        Raises:
            ModelSourceError: The cache cannot be written.
        """
        file = self.root / "refs" / bundle_name(model_id, ref)
        try:
            if file.is_file() and file.read_text() == commit:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
            partial.write_text(commit)
            partial.replace(file)
        except OSError as error:
            raise _unwritable(file.parent, error) from error

    def recall(self, model_id: str, ref: str) -> str | None:
        """Return the commit that a branch or tag last pointed to, or None if none is recorded."""
        try:
            return (self.root / "refs" / bundle_name(model_id, ref)).read_text().strip()
        except FileNotFoundError:
            return None

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock of one bundle, so that no two processes build it at the same time."""
        from filelock import FileLock, Timeout

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / f".{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("waiting for another process that is fetching %s", name)
                lock.acquire()
        except OSError as error:
            raise _unwritable(self.root, error) from error
        try:
            yield
        finally:
            lock.release()


def _unwritable(path: Path, error: OSError) -> ModelSourceError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ModelSourceError(f"the cache {path} cannot be written ({reason}): name another with CROSSRANK_CACHE_DIR")
