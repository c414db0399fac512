"""What a measurement depends on besides the code: the machine, the versions, the day."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# CPU flags that decide which arithmetic an engine can take.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = ("crossrank", "onnxruntime", "onnxruntime-gpu", "openvino", "tokenizers", "numpy", "uvicorn")


def describe_run() -> dict[str, Any]:
    """Return date, command, machine and versions of the running measurement, ready for JSON."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["crossrank", *sys.argv[1:]]),
        "hardware": describe_hardware(),
        "versions": describe_versions(),
    }


def describe_hardware() -> dict[str, Any]:
    """Return the CPU's model, its flags that matter, the cores this process may use, memory and load."""
    import psutil

    model, flags = _cpu()
    return {
        "cpu": model,
        "cores": available_cores(),
        "flags": {name: name in flags for name in _FLAGS},
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        # Above about 0.3 something else was running and the figures say less.
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the speed, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def available_cores() -> int:
    """Return how many cores this process may use, which a container or taskset can lower."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> tuple[str, set[str]]:
    """Return the CPU's name and flags; Linux tells both, other systems a name at best."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), set(flags.split())
