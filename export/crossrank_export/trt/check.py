"""Check that a plan can be loaded here; imports neither TensorRT nor numpy, for serving and the repository writer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossrank.errors import BundleError


def _same_version(left: str, right: str) -> bool:
    # "10.4.0" of the Python bindings and "10.4.0.26" of the library name the same release.
    pairs = list(zip(left.split("."), right.split("."), strict=False))
    return len(pairs) >= 3 and all(a == b for a, b in pairs)


def check_plan(plan_entry: Mapping[str, Any], sm: int, tensorrt_version: str) -> None:
    """Check that the GPU and the TensorRT at hand can load a plan, before TensorRT tries to.

    TensorRT itself fails with an error of its own, or crashes the process.

    Args:
        plan_entry: One of `Manifest.plans`.
        sm: Compute capability of the GPU at hand, times ten (70 is a V100).
        tensorrt_version: `tensorrt.__version__`, or the version of the library, at hand.

    Raises:
        BundleError: The plan was built for another SM or by another TensorRT, or the entry says neither.
    """
    missing = [key for key in ("file", "sm", "tensorrt", "gpu") if key not in plan_entry]
    if missing:
        raise BundleError(
            f"the manifest's plan {plan_entry.get('file', '?')} does not say its {', '.join(missing)}: "
            "build it again with crossrank engine"
        )
    file, plan_sm, version = plan_entry["file"], int(plan_entry["sm"]), str(plan_entry["tensorrt"])
    if plan_sm != sm:
        raise BundleError(
            f"{file} was built for SM {plan_sm // 10}.{plan_sm % 10} ({plan_entry['gpu']}), this GPU is "
            f"SM {sm // 10}.{sm % 10}: build a plan on this machine with crossrank engine"
        )
    if not _same_version(version, tensorrt_version):
        raise BundleError(
            f"{file} was built by TensorRT {version}, TensorRT {tensorrt_version} is installed here and cannot "
            f"load it: serve with {version}, or build the plan again with {tensorrt_version}"
        )
