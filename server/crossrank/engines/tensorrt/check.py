"""Check that a plan can be loaded here; imports neither TensorRT nor numpy, for serving and the repository writer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossrank.engines.tensorrt.runtimes import RTX, TENSORRT
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
        tensorrt_version: `__version__` of the plan's runtime, or the version of its library, at hand.

    Raises:
        BundleError: The plan was built for other SMs or by another release, or the entry does not say for which.
    """
    missing = [key for key in ("file", "runtime", "sms", "tensorrt", "gpus") if key not in plan_entry]
    if missing:
        raise BundleError(
            f"the manifest's plan {plan_entry.get('file', '?')} does not say its {', '.join(missing)}: "
            "build it again with crossrank engine"
        )
    file, version = plan_entry["file"], str(plan_entry["tensorrt"])
    label = RTX.label if plan_entry["runtime"] == RTX.name else TENSORRT.label
    if sm not in plan_entry["sms"]:
        built_for = ", ".join(_text(int(other)) for other in plan_entry["sms"])
        raise BundleError(
            f"{file} was built for SM {built_for} ({', '.join(plan_entry['gpus'])}), this GPU is SM {_text(sm)}: "
            "build a plan for it with crossrank engine"
        )
    if not _same_version(version, tensorrt_version):
        raise BundleError(
            f"{file} was built by {label} {version}, {label} {tensorrt_version} is installed here and cannot "
            f"load it: serve with {version}, or build the plan again with {tensorrt_version}"
        )


def _text(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"
