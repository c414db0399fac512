"""Describe the conditions of a measurement: machine, versions of packages, date, command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crossrank.engines.cpu import available_cores, cpu_flags, cpu_name

# CPU flags that decide which arithmetic an engine can take.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = (
    "crossrank",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "cuda-bindings",
    "tokenizers",
    "numpy",
    "uvicorn",
)


def describe_run(program: str = "crossrank") -> dict[str, Any]:
    """Return date, command, machine and versions of the running measurement, ready for JSON.

    Args:
        program: How a user starts this program, to which `command` adds the arguments.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"{program} {shlex.join(sys.argv[1:])}".strip(),
        "hardware": describe_hardware(),
        "versions": describe_versions(),
    }


def describe_hardware() -> dict[str, Any]:
    """Return CPU model and relevant flags, cores that this process may use, memory and load average."""
    import psutil

    flags = cpu_flags()
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "flags": {name: name in flags for name in _FLAGS},
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        # Above about 0.3 other processes were running, and the figures are less reliable.
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that influence the speed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
