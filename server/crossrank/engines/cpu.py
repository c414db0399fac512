"""Report the cores, instruction sets and name of this machine's CPU, as the system states them.

Nothing else in this project counts cores or reads /proc/cpuinfo.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path, PurePosixPath

_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return the cores this process may use: those of its affinity, or of the CPU quota of its cgroups if that is less.

    A quota of part of a core is rounded down, to at least one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(_CGROUPS, _OWN_CGROUP)]))


def _quotas(cgroups: Path, own: Path) -> list[int]:
    """Return the whole cores that this process's cgroup, and each above it, may use; none where there is no quota.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us, version 1)

    Args:
        cgroups: Where the hierarchies of cgroups are mounted.
        own: File that names the own cgroup in each hierarchy.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines() if line.count(":") > 1]
    except OSError:
        lines = []
    found = []
    for _, controllers, name in [["0", "", "/"], *lines]:
        old = "cpu" in controllers.split(",")
        if controllers and not old:
            continue
        root = cgroups / "cpu" if old else cgroups
        path = PurePosixPath(name)
        for group in (path, *path.parents):
            found += _quota(root / str(group).lstrip("/"), old)
    return found


def _quota(group: Path, old: bool) -> list[int]:
    """Return the whole cores of one cgroup's quota, nothing where it has none."""
    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if old else ("cpu.max",)
    try:
        quota, period = " ".join((group / name).read_text(encoding="ascii") for name in files).split()
        return [int(quota) // int(period)] if int(quota) > 0 else []  # -1 is no quota in version 1
    except (OSError, ValueError):  # not there, or "max"
        return []


def cpu_flags() -> frozenset[str]:
    """Return the instruction set extensions (`Features` on ARM), empty where the kernel does not say."""
    return frozenset(_cpu_info("flags").split() or _cpu_info("Features").split())


def cpu_name() -> str:
    """Return the CPU's name; where the kernel does not say, its architecture, like `aarch64`."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


@cache
def _cpu_info(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.split(":")[0].strip() == field), "")
    except OSError:
        return ""
