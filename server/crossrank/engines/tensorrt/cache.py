"""Keep plans, and what TensorRT for RTX compiled of them on a GPU, in the cache of models.

    CACHE/tensorrt/OWNER--NAME@KEY/plan.json     what the plan was built from and for, and its sha256
    CACHE/tensorrt/OWNER--NAME@KEY/model.plan
    CACHE/tensorrt/OWNER--NAME@KEY/GPU.kernels   TensorRT for RTX's runtime cache of one kind of GPU

KEY is a hash of all that decides the plan. Files are written aside and renamed; reading takes no lock, so that a
filled cache may be mounted read-only. TensorRT itself refuses a runtime cache of another release, GPU or driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crossrank.bundles.cache import bundle_name, default_cache_dir

_log = logging.getLogger("crossrank")

_FACTS, _PLAN = "plan.json", "model.plan"


class PlanCache:
    """Keep what belongs to one plan.

    Args:
        model_id: Id of the model.
        facts: All that decides the plan, as JSON.
        directory: Root of the cache; defaults to `default_cache_dir()`. It need not exist.
    """

    def __init__(self, model_id: str, facts: Mapping[str, Any], directory: Path | None = None) -> None:
        self._facts = json.loads(json.dumps(facts))  # as they are read back
        key = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (directory or default_cache_dir()) / "tensorrt" / bundle_name(model_id, key)

    def plan(self) -> bytes | None:
        """Return the plan; None if it is absent, or damaged and must be built again."""
        try:
            kept = json.loads((self.path / _FACTS).read_bytes())
            plan = (self.path / _PLAN).read_bytes()
            digest = kept.pop("sha256")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            digest = kept = plan = None
        if plan is None or kept != self._facts or digest != hashlib.sha256(plan).hexdigest():
            _log.warning("the plan in %s is damaged, or another one, and will be built again", self.path)
            return None
        return plan

    def build(self, build: Callable[[], bytes], refused: bytes | None = None) -> bytes:
        """Build the plan and keep it, or return the one that another process built meanwhile.

        Where the cache cannot be written, the plan is built all the same, and a warning says that it is not kept.

        Args:
            build: Returns the plan.
            refused: A plan that was kept and that TensorRT does not load: it is replaced.

        Raises:
            SetupError: `build` failed.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _log.info("waiting for another process that builds a plan in %s", self.path)
                lock.acquire()
        except OSError as error:
            self._warn(error)
            return build()
        try:
            found = self.plan()
            if found is not None and found != refused:
                return found
            plan = build()
            self._write(_PLAN, plan)
            facts = {**self._facts, "sha256": hashlib.sha256(plan).hexdigest()}
            self._write(_FACTS, (json.dumps(facts, indent=1) + "\n").encode())
            return plan
        finally:
            lock.release()

    def kernels(self, gpu: str) -> bytes:
        """Return what TensorRT for RTX compiled for a kind of GPU, empty if nothing is kept."""
        try:
            return self._kernels_path(gpu).read_bytes()
        except OSError:
            return b""

    def keep_kernels(self, gpu: str, kernels: bytes) -> None:
        """Keep what TensorRT for RTX compiled for a kind of GPU; a cache that cannot be written is left as it is."""
        if kernels and kernels != self.kernels(gpu):
            self._write(self._kernels_path(gpu).name, kernels)

    def _kernels_path(self, gpu: str) -> Path:
        return self.path / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.kernels"

    def _write(self, name: str, content: bytes) -> None:
        partial = self.path / f".{name}.{os.getpid()}.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        _log.warning(
            "%s cannot be written (%s): the next start builds the plan again; name another with --cache-dir",
            self.path,
            reason,
        )
