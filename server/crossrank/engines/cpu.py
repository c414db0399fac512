"""The CPU of this machine: cores, instruction sets and name, as the kernel reports them."""

from __future__ import annotations

import os
from functools import cache


def available_cores() -> int:
    """Return the cores this process may run on (affinity and, where set, the cgroup's CPU quota)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 natively (AMX, or AVX-512 BF16)."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def cpu_flags() -> frozenset[str]:
    """Return the instruction set extensions (`Features` on ARM), empty where the kernel does not say."""
    return frozenset(_cpu_info("flags").split() or _cpu_info("Features").split())


def cpu_name() -> str:
    """Return the CPU's name, `unknown` where the kernel does not say."""
    return _cpu_info("model name") or "unknown"


@cache
def _cpu_info(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.split(":")[0].strip() == field), "")
    except OSError:
        return ""
