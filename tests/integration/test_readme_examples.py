"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import json
import re

import httpx
import pytest

from tests.conftest import ROOT
from tests.server_process import running_server

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_example_request_gets_the_answer_shown_and_the_client_example_runs() -> None:
    (curl,) = [block for block in blocks("bash") if block.startswith("curl")]
    (shown,) = map(json.loads, blocks("json"))
    (path, body) = re.search(r"http://127.0.0.1:8000(\S+) .*-d '(.*)'", curl, re.DOTALL).groups()  # type: ignore[union-attr]
    (example,) = (block for block in blocks("python") if "crossrank_client" in block)
    with running_server() as server:
        answer = httpx.post(server.base_url + path, content=body).json()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(example.replace("http://127.0.0.1:8000", server.base_url), {})
    assert answer.keys() == shown.keys()
    assert [r["index"] for r in answer["results"]] == [r["index"] for r in shown["results"]]
    for result, expected in zip(answer["results"], shown["results"], strict=True):
        # The README's answer is that of fp32; bf16 differs in the third digit.
        assert result["relevance_score"] == pytest.approx(expected["relevance_score"], abs=0.01)
    assert answer["usage"] == shown["usage"]
    assert answer["meta"] == shown["meta"]
    assert re.fullmatch(r"1 0\.\d+\n0 0\.\d+\n", printed.getvalue())


def test_the_librarys_example_ranks_the_document_with_the_number_first() -> None:
    (example,) = (block for block in blocks("python") if "CrossEncoder" in block)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example, {})
    assert re.match(r"\[\{'corpus_id': 1, 'score': ", printed.getvalue())
