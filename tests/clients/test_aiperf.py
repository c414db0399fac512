"""aiperf, NVIDIA's load generator, in each of the three rerank dialects that it speaks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.clients.environment import interpreter
from tests.clients.ways import MODEL
from tests.conftest import ROOT

REQUESTS = 20
PASSAGES = 8


@pytest.fixture
def tokenizer(tmp_path):
    """The built-in model's tokenizer where aiperf finds it without the hub: a folder beside it."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(ROOT / "server" / "crossrank" / "bundles" / "builtin" / "tokenizer.json", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    )
    return "./tokenizer"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dialect", "route"),
    [("cohere-rankings", "/v2/rerank"), ("hf-tei-rankings", "/rerank"), ("nim-rankings", "/v1/ranking")],
)
def test_aiperf_measures_the_server_without_an_error(dialect, route, wire, tokenizer, tmp_path):
    command = [
        str(interpreter("aiperf").with_name("aiperf")),
        "profile",
        *("--model", MODEL),
        *("--url", wire.base_url),
        *("--endpoint-type", dialect),
        *("--tokenizer", tokenizer),
        *("--request-count", str(REQUESTS)),
        *("--concurrency", "2"),
        *("--rankings-passages-mean", str(PASSAGES)),
        *("--rankings-passages-stddev", "0"),
        *("--artifact-dir", str(tmp_path / "out")),
        *("--ui", "none"),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    measured = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert measured["request_count"]["avg"] == REQUESTS
    assert not measured.get("error_summary")
    asked = [request for request in wire.requests if request.method == "POST"]
    assert {request.path for request in asked} == {route}
    bodies = [json.loads(request.body) for request in asked]
    texts = [body.get("documents") or body.get("texts") or body.get("passages") for body in bodies]
    assert {len(passages) for passages in texts} == {PASSAGES}
