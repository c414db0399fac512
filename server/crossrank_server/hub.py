"""Where models come from: `builtin`, a bundle, a Hugging Face directory with ONNX, or the hub.

What is not a bundle is converted once by the export package (without torch) and kept in the cache:

    CACHE/bundles/TOOLS/OWNER--NAME@COMMIT/    a bundle; TOOLS names bundle format and crossrank version
    CACHE/bundles/TOOLS/refs/OWNER--NAME@main  the commit that a branch or tag last meant

A bundle is built beside its place and moved there whole, under a lock, so the cache never holds half of one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from crossrank_server.bundle import FORMAT, Bundle, Source, is_bundle, load_bundle, sha256_of
from crossrank_server.catalog import BUILTIN_ID, canonical_model_id
from crossrank_server.errors import BundleError, CrossrankError, ModelSourceError
from crossrank_server.hub_download import (
    HubRef,
    HubUnreachable,
    download_files,
    find_in_hub_cache,
    list_repository,
    parse_hub_ref,
    select_files,
)

logger = logging.getLogger(__name__)

# (source directory, bundle directory to create, where it came from); raises CrossrankError if it cannot.
Convert = Callable[[Path, Path, Source], None]
# Puts the source's files somewhere, the given directory if nowhere better; returns (their directory, source).
_Fetch = Callable[[Path], tuple[Path, Source]]

_PARTIAL = ".partial"
_LOCK = ".lock"


@dataclass(frozen=True)
class CachedBundle:
    """A bundle in the cache, as `crossrank models` shows it."""

    path: Path
    revision: str
    size_bytes: int


def resolve_model(
    spec: str,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    convert: Convert | None = None,
) -> Bundle:
    """Return the verified bundle that a model's name stands for, fetching and converting it if need be.

    Args:
        spec: `builtin`, a directory (a bundle, or Hugging Face files with an ONNX graph), or a hub id with an
            optional `@revision`; old spellings of known ids are accepted.
        cache_dir: Where converted bundles are kept; `default_cache_dir()` if omitted.
        offline: Use no network; the environment variable HF_HUB_OFFLINE=1 says the same.
        revision: Commit, branch or tag on the hub; overrides the pin of known models.
        token: For private and gated repositories; huggingface_hub's own (HF_TOKEN, login) if omitted.
        endpoint: Base URL of the hub; huggingface_hub's own (HF_ENDPOINT) if omitted.
        convert: Makes a bundle from the files; the export package's torch-free path if omitted.

    Raises:
        ModelSourceError: The model cannot be found, fetched or trusted.
        BundleError: The bundle does not fit its manifest, or the files cannot be made into one.
    """
    if canonical_model_id(spec) == BUILTIN_ID:
        return load_bundle(builtin_path())
    cache = _tools_dir(cache_dir)
    convert = convert or _convert
    directory = Path(spec).expanduser()
    if directory.is_dir():
        return _bundle_from_directory(directory, cache, convert)
    if _looks_like_path(spec):
        problem = "is a file: give the directory it lies in" if directory.exists() else "does not exist"
        raise ModelSourceError(f"model directory {spec} {problem}")
    ref = parse_hub_ref(spec, revision)
    if offline or is_offline():
        return _bundle_offline(ref, cache, convert)
    return _bundle_from_hub(ref, cache, convert, token, endpoint)


def builtin_path() -> Path:
    """Return the directory of the built-in bundle, which is package data."""
    return Path(str(files("crossrank_server") / "builtin"))


def default_cache_dir() -> Path:
    """Return CROSSRANK_CACHE, or `crossrank` in the user's cache directory."""
    if configured := os.environ.get("CROSSRANK_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crossrank"


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE asks for no network, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cached_bundle(model_id: str, cache_dir: Path | None = None) -> CachedBundle | None:
    """Return the newest bundle of a hub model in the cache, or None; files are not verified here."""
    found = [
        path
        for path in _tools_dir(cache_dir).glob(f"{_flat(model_id)}@*")
        if is_bundle(path) and not path.name.endswith(_PARTIAL)
    ]
    if not found:
        return None
    path = max(found, key=lambda item: item.stat().st_mtime)
    return CachedBundle(path, path.name.rpartition("@")[2], directory_size_bytes(path))


def directory_size_bytes(directory: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _bundle_from_directory(directory: Path, cache: Path, convert: Convert) -> Bundle:
    """Load a bundle, or convert Hugging Face files; the cache key is their content."""
    if is_bundle(directory):
        return load_bundle(directory)
    present = [path.relative_to(directory).as_posix() for path in directory.glob("*") if path.is_file()]
    present += [f"onnx/{path.name}" for path in directory.glob("onnx/*") if path.is_file()]
    sha256 = {name: sha256_of(directory / name) for name in select_files(present, str(directory))}
    content = hashlib.sha256(repr(sorted(sha256.items())).encode()).hexdigest()
    name = directory.resolve().name
    source = Source(kind="directory", name=name, revision=None, sha256=sha256)
    target = cache / f"directory--{name}@{content[:40]}"
    return _load_cached(target) or _build(target, convert, lambda _: (directory, source))


def _bundle_from_hub(ref: HubRef, cache: Path, convert: Convert, token: str | None, endpoint: str | None) -> Bundle:
    """Serve from the cache where the commit is known, else ask the hub; a branch is asked for each time."""
    if ref.is_commit and (bundle := _load_cached(_target(cache, ref, ref.revision))):
        return bundle
    try:
        listing = list_repository(ref, token=token, endpoint=endpoint)
    except HubUnreachable as error:
        bundle = _load_last(cache, ref)
        if bundle is None:
            raise
        logger.warning("%s; serving the cached %s", error.message, bundle.path.name)
        return bundle

    def fetch(into: Path) -> tuple[Path, Source]:
        sha256 = download_files(ref, listing, into, token=token, endpoint=endpoint)
        return into, _hub_source(ref, listing.commit, sha256)

    target = _target(cache, ref, listing.commit)
    bundle = _load_cached(target) or _build(target, convert, fetch)
    _remember(cache, ref, listing.commit)
    return bundle


def _bundle_offline(ref: HubRef, cache: Path, convert: Convert) -> Bundle:
    """Serve from our cache, or convert what huggingface_hub's own cache holds; no network."""
    if bundle := _load_last(cache, ref):
        return bundle
    found = find_in_hub_cache(ref)
    if found is None:
        raise ModelSourceError(
            f"{ref.model_id}@{ref.revision} is not cached and offline mode is on: run once without --offline and "
            "HF_HUB_OFFLINE, or give a local directory or `builtin`"
        )
    directory, commit, sha256 = found
    return _build(_target(cache, ref, commit), convert, lambda _: (directory, _hub_source(ref, commit, sha256)))


def _hub_source(ref: HubRef, commit: str, sha256: dict[str, str]) -> Source:
    return Source(kind="hub", name=ref.model_id, revision=commit, sha256=sha256)


def _build(target: Path, convert: Convert, fetch: _Fetch) -> Bundle:
    """Fetch, convert, verify and move into place; whatever fails, nothing is left behind."""
    partial = target.with_name(target.name + _PARTIAL)
    with _locked(target):
        if bundle := _load_cached(target):  # another process was faster
            return bundle
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            partial.mkdir()
            directory, source = fetch(partial / "source")
            out = partial / "bundle"
            _convert_checked(convert, directory, out, source)
            bundle = load_bundle(out)
            if target.exists():
                shutil.rmtree(target)
            out.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return replace(bundle, path=target)


def _convert_checked(convert: Convert, directory: Path, out: Path, source: Source) -> None:
    """Convert; what the graph tools raise on a damaged file becomes one sentence."""
    try:
        convert(directory, out, source)
    except CrossrankError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise BundleError(
            f"{source.name}: its ONNX graph cannot be converted ({type(error).__name__}: {lines[0][:200]})"
        ) from error


def _convert(directory: Path, out: Path, source: Source) -> None:
    """Run the export package's torch-free path; imported here, as serving a bundle needs none of it."""
    from crossrank_export.pipeline import bundle_from_onnx  # type: ignore[import-not-found,unused-ignore]

    bundle_from_onnx(directory, out, source=source)


def _load_cached(target: Path) -> Bundle | None:
    """Return the bundle there, or None where there is none or it is damaged and must be built again."""
    if not is_bundle(target):
        return None
    try:
        return load_bundle(target)
    except BundleError as error:
        logger.warning("the cached bundle is damaged and will be made again: %s", error.message)
        return None


def _load_last(cache: Path, ref: HubRef) -> Bundle | None:
    """Return the cached bundle of the commit the revision last meant."""
    if ref.is_commit:
        return _load_cached(_target(cache, ref, ref.revision))
    try:
        commit = _ref_file(cache, ref).read_text().strip()
    except FileNotFoundError:
        return None
    return _load_cached(_target(cache, ref, commit))


def _remember(cache: Path, ref: HubRef, commit: str) -> None:
    """Record which commit a branch or tag means, for the day the hub cannot be asked."""
    if ref.is_commit:
        return
    file = _ref_file(cache, ref)
    try:
        if file.is_file() and file.read_text() == commit:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
        partial.write_text(commit)
        partial.replace(file)
    except OSError as error:
        raise _unwritable(file, error) from error


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of one bundle, so that processes do not build the same one at the same time."""
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}{_LOCK}"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process that fetches %s", target.name)
            lock.acquire()
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> ModelSourceError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ModelSourceError(f"the cache {path} cannot be written ({reason}): name another with CROSSRANK_CACHE")


def _tools_dir(cache_dir: Path | None) -> Path:
    """Return the directory of bundles made by these tools: another format or version makes its own."""
    return (cache_dir or default_cache_dir()) / "bundles" / f"format{FORMAT}-{version('crossrank')}"


def _target(cache: Path, ref: HubRef, commit: str) -> Path:
    return cache / f"{_flat(ref.model_id)}@{commit}"


def _ref_file(cache: Path, ref: HubRef) -> Path:
    return cache / "refs" / f"{_flat(ref.model_id)}@{_flat(ref.revision)}"


def _flat(text: str) -> str:
    return text.replace("/", "--")


def _looks_like_path(spec: str) -> bool:
    return spec.startswith((".", "/", "~")) or spec.count("/") > 1 or Path(spec).is_file()
