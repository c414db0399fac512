"""The regression guard: a commit is unpacked and used, and only what the rounds agree on is a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossrank.errors import SetupError
from crossrank_perf.base.report import Progress
from crossrank_perf.base.workload import Request, Workload
from lab.guard.baseline import unpack_commit
from lab.guard.compare import Load, compare_loads
from lab.guard.report import markdown_from_guard
from lab.peers.contestants import IN_PROCESS, Setting, Turn
from lab.peers.rounds import Rounds

ROUNDS = 11
LOAD = Load(Workload("test", 2, (Request("q", ("a", "b")),)), 4)


class Scripted:
    """Has the speeds it is told, one for each round."""

    over = IN_PROCESS

    def __init__(self, name: str, speeds: list[float], cpu_s: float | None = 1.0) -> None:
        self.name = name
        self.settings: list[Setting] = [{}]
        # Two turns come before the rounds, to warm up and to choose a setting.
        self._speeds = iter([1.0, 1.0, *speeds])
        self._cpu_s = cpu_s

    def open(self) -> dict[str, Any]:
        return {}

    def logits(self, request: int) -> list[float]:
        return [0.5, 0.25]

    def run(self, seconds: float, setting: Setting) -> Turn:
        return Turn(next(self._speeds), [0.1], self._cpu_s, None)

    def close(self) -> None:
        pass


def compared(ratios: list[float], **figures: Any) -> dict[str, Any]:
    own = Scripted("this tree", [100 * ratio for ratio in ratios], **figures)
    with Progress("test") as progress:
        (found,) = compare_loads(
            [LOAD], lambda _: (own, Scripted("old", [100.0] * ROUNDS)), Rounds(ROUNDS, 0.1, 1), 0.95, progress
        )
    return found


def report(**fields: Any) -> dict[str, Any]:
    return {
        "hardware": {"cpu": "A CPU", "cores": 2},
        "date": "2026-01-02T03:04:05",
        "rounds": ROUNDS,
        "not_compared": [],
        "engine": "native fp32",
        "baseline": {"name": "commit 1234567", "engine": "native fp32"},
        "limit": 0.95,
        "comparisons": [],
        **fields,
    }


@pytest.mark.parametrize(
    ("ratios", "below"),
    [
        ([0.8] * ROUNDS, True),
        ([1.0] * ROUNDS, False),
        ([0.8] * 9 + [2.0, 3.0], True),  # two disturbances do not hide it
        ([0.8] * 8 + [0.96, 0.97, 0.98], False),
        ([0.1, 0.2, *[1.0] * 9], False),
    ],
)
def test_a_warning_needs_four_rounds_of_five_below_the_limit(ratios: list[float], below: bool) -> None:
    found = compared(ratios)
    assert found["below_limit"] is below
    assert found["spread"] == pytest.approx([sorted(ratios)[2], sorted(ratios)[8]])
    assert found["ratio"] == pytest.approx(sorted(ratios)[5])
    assert found["load"] == "2 documents a request, 4 under way"


def test_cpu_time_is_a_ratio_where_both_have_it() -> None:
    assert compared([1.0] * ROUNDS, cpu_s=1.5)["cpu_ratio"] == 1.5
    assert compared([1.0] * ROUNDS, cpu_s=None)["cpu_ratio"] is None


def test_the_markdown_warns_of_what_is_slow_and_of_nothing_else() -> None:
    slow, same = compared([0.8] * ROUNDS), compared([1.0] * ROUNDS)
    text = markdown_from_guard(report(comparisons=[slow]))
    assert "| 2 documents a request, 4 under way | 80 | 100 | 0.80 (0.80 - 0.80) | 1.00 |" in text
    assert "Warning: with 2 documents a request, 4 under way this tree does 0.80 times" in text
    assert "below the limit of 0.95" in text
    quiet = markdown_from_guard(report(comparisons=[same]))
    assert "Warning" not in quiet
    assert "Nothing is below 0.95 times commit 1234567" in quiet


def test_the_markdown_tells_when_the_engines_differ_or_nothing_could_be_compared() -> None:
    other = report(baseline={"name": "commit 1234567", "engine": "openvino fp32"})
    assert "this tree served with native fp32, commit 1234567 with openvino fp32" in markdown_from_guard(other)
    alone = markdown_from_guard(report(baseline=None, not_compared=["HEAD~1: no such commit"]))
    assert "Not compared: HEAD~1: no such commit" in alone
    assert "Warning: no baseline" in alone


def git(root: Path, *arguments: str) -> None:
    own = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *own, *arguments], check=True)


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "test")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, whose package has changed since."""
    root = tmp_path / "repository"
    package = root / "server" / "crossrank_server"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("STATE = 'committed'\n")
    (root / "setup.py").write_text("open('built', 'w').close()\n")
    git(root, "init", "--quiet")
    commit(root)
    (package / "__init__.py").write_text("STATE = 'changed'\n")
    return root


def test_a_commit_is_unpacked_built_and_imported_from_there(repository: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    tree = unpack_commit("HEAD", aside, repository)
    assert tree.name.startswith("commit ")
    assert (aside / "built").exists()
    assert not (repository / "built").exists()
    program = "import crossrank_server; print(crossrank_server.STATE)"
    result = subprocess.run(
        [sys.executable, "-c", program], env=tree.environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "committed\n"


def test_what_is_no_commit_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="git rev-parse failed: fatal: "):
        unpack_commit("nonesuch", tmp_path / "aside", repository)
    with pytest.raises(SetupError, match="not a git repository"):
        unpack_commit("HEAD", tmp_path / "aside", tmp_path)


def test_a_commit_that_cannot_be_built_is_refused_with_its_last_words(repository: Path, tmp_path: Path) -> None:
    (repository / "setup.py").write_text("raise SystemExit('no compiler knows this')\n")
    commit(repository)
    with pytest.raises(SetupError, match=r"setup\.py failed: no compiler knows this"):
        unpack_commit("HEAD", tmp_path / "aside", repository)
    assert unpack_commit("HEAD~1", tmp_path / "earlier", repository).name.startswith("commit ")


def test_a_commit_that_would_not_be_the_one_imported_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "server" / "crossrank_server" / "__init__.py").unlink()
    commit(repository)
    with pytest.raises(SetupError, match=r"Python imports .* instead of it"):
        unpack_commit("HEAD", tmp_path / "aside", repository)
