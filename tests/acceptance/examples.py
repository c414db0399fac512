"""What the files of examples/ are to print."""

from __future__ import annotations

import ast
from typing import Any

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
# Each example, by which test runs it; with how many texts it keeps.
ALONE = {"library", "async_rank"}
OF_FRAMEWORKS = {"langchain_rerank": 2, "llama_index_rerank": 2, "haystack_rerank": 2, "pyterrier_rerank": 3}
OF_EVALUATORS = {"beir_rerank", "sentence_transformers_evaluator", "mteb_evaluate"}
# How far their scores may be from those of fp32: precision auto is bf16 on the CPUs that have it.
AUTO = 0.01


def constants(example: str) -> dict[str, Any]:
    """Return the names that an example gives to literals at its top level, like `query` and `texts`."""
    tree = ast.parse((EXAMPLES / f"{example}.py").read_text(encoding="utf-8"))
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                found[statement.targets[0].id] = ast.literal_eval(statement.value)
            except ValueError:
                continue  # not a literal
    return found


def scored_lines(printed: str) -> tuple[list[float], list[str]]:
    """Return the scores and the texts of lines that each hold a score and a text."""
    lines = [line.split(" ", 1) for line in printed.splitlines()]
    return [float(score) for score, _ in lines], [text for _, text in lines]
