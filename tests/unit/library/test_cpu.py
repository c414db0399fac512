"""Cores are counted by affinity and by the quotas of all cgroups above the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crossrank.engines import cpu


def hierarchy(tmp_path: Path, own: str, files: dict[str, str]) -> None:
    """A file like /proc/self/cgroup, and the files of a hierarchy."""
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, []),
        ("0::/\n", {"cpu.max": "350000 100000"}, [3]),
        ("0::/\n", {"cpu.max": "50000 100000"}, [0]),
        ("0::/pod/app\n", {"pod/cpu.max": "200000 100000", "pod/app/cpu.max": "max 100000"}, [2]),
        ("0::/pod/app\n", {"pod/cpu.max": "200000 100000", "pod/app/cpu.max": "150000 50000"}, [3, 2]),
        # In a container of version 1 the own path is the host's, and the mount shows the own group.
        (
            "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
            [4],
        ),
        ("4:cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("0::/\n", {"cpu.max": "not a number"}, []),
        ("nonsense", {}, []),
    ],
)
def test_quotas_are_those_of_the_own_cgroup_and_all_above(
    tmp_path: Path, own: str, files: dict[str, str], cores: list[int]
) -> None:
    hierarchy(tmp_path, own, files)
    found = cpu._quotas(tmp_path / "cgroups", tmp_path / "own")
    assert list(dict.fromkeys(found)) == cores


def test_a_quota_below_the_affinity_decides_and_is_never_less_than_one_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpu, "_CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(cpu, "_OWN_CGROUP", tmp_path / "own")
    for quota, cores in (("max", 8), ("1600000", 8), ("300000", 3), ("50000", 1)):
        hierarchy(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000"})
        assert cpu.available_cores() == cores


def test_nothing_else_counts_cores_or_reads_the_cpus_description() -> None:
    from tests.conftest import ROOT

    own = ROOT / "server" / "crossrank" / "engines" / "cpu.py"
    others = [path for folder in ("server", "client", "export", "perf") for path in (ROOT / folder).rglob("*.py")]
    for path in others:
        if path != own:
            text = path.read_text()
            assert "cpuinfo" not in text, path
            assert "cpu_count" not in text, path
            assert "len(os.sched_getaffinity" not in text, path
