"""examples/ that need crossrank alone, as scripts of a process of their own; the frameworks' are run by their tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.acceptance.examples import ALONE, AUTO, EXAMPLES, OF_EVALUATORS, OF_FRAMEWORKS, constants, scored_lines
from tests.conftest import ROOT


def run(example: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "server")}
    command = [sys.executable, EXAMPLES / f"{example}.py"]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=120).stdout


def test_every_example_is_run_by_a_test():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == ALONE | OF_FRAMEWORKS.keys() | OF_EVALUATORS


def test_library_ranks_all_texts(expected):
    given = constants("library")
    scores, texts = scored_lines(run("library"))
    ranked = expected.rank(given["query"], given["texts"])
    assert texts == [given["texts"][index] for index, _ in ranked]
    assert scores == pytest.approx([score for _, score in ranked], abs=AUTO)


def test_async_rank_finds_the_best_text_for_each_query(expected):
    given = constants("async_rank")
    scores, answers = scored_lines(run("async_rank"))
    best = [expected.rank(query, given["texts"])[0] for query in given["queries"]]
    assert answers == [
        f"{query}: {given['texts'][index]}" for query, (index, _) in zip(given["queries"], best, strict=True)
    ]
    assert scores == pytest.approx([score for _, score in best], abs=AUTO)
