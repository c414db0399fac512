"""`crossrank models`: every model with its figures, readable in 80 columns, and what is cached here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossrank.bundles.bundle import Source
from crossrank.bundles.cache import BundleCache, bundle_name
from crossrank.bundles.catalog import BUILTIN, MODELS
from crossrank_server.cli import cli
from tests.fake_hub import copy_convert, model_files

MODEL = "cross-encoder/ms-marco-MiniLM-L4-v2"
COMMIT = "c0ffee" + "0" * 34


def run(cache: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["models", "--cache-dir", str(cache), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result


@pytest.fixture
def filled_cache(tmp_path: Path) -> Path:
    def write(scratch: Path, out: Path) -> None:
        for name, content in model_files().items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        copy_convert(scratch, out, Source(kind="hub", name=MODEL, revision=COMMIT))

    BundleCache(tmp_path).build(bundle_name(MODEL, COMMIT), write)
    return tmp_path


def test_every_model_is_one_line_with_its_published_figures(tmp_path):
    lines = run(tmp_path).output.splitlines()
    assert lines[2].startswith("crossrank-mini builtin")
    for model in MODELS[1:]:
        (line,) = [line for line in lines if line.startswith(f"{model.short_name} ")]
        cells = line.split()
        assert cells[1:6] == [
            f"{model.layers}/{model.hidden}",
            f"{model.ndcg_at_10:.2f}",
            f"{model.mrr_at_10:.2f}",
            str(model.docs_per_s_v100),
            "Apache-2.0",
        ]
        assert cells[-1] == "no"


def test_the_licence_of_the_builtin_is_not_that_of_the_code(tmp_path):
    output = run(tmp_path).output
    assert "non- " in row(output, "crossrank-mini")  # the next line has the rest
    assert "Apache" not in row(output, "crossrank-mini")
    assert f"crossrank-mini: {BUILTIN.terms}" in " ".join(output.split())
    entries = {entry["model_id"]: entry for entry in json.loads(run(tmp_path, "--json").output)}
    assert (entries["crossrank-mini"]["licence"], entries["crossrank-mini"]["terms"]) == (
        "non-commercial",
        BUILTIN.terms,
    )


def test_only_the_published_price_is_not_marked_as_estimated(tmp_path):
    output = run(tmp_path).output
    unmarked = [m.short_name for m in MODELS if f" {m.usd_per_1000_docs:.3f}~" not in row(output, m.short_name)]
    assert unmarked == ["ms-marco-TinyBERT-L2-v2"]
    assert "~ estimated" in output


def test_the_builtins_figure_is_marked_as_of_another_protocol(tmp_path):
    output = run(tmp_path).output
    assert "60.93*" in row(output, "crossrank-mini")
    assert "* measured by this project, re-ranking BM25 top-100" in output


def test_it_fits_eighty_columns_when_piped(tmp_path):
    environment = {**os.environ, "CROSSRANK_CACHE_DIR": str(tmp_path), "COLUMNS": "20"}
    command = [sys.executable, "-c", "from crossrank_server.cli import main; main()", "models"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output
    assert row(output, "ms-marco-MiniLM-L12-v2")


def test_a_cached_model_shows_its_size(filled_cache):
    line = row(run(filled_cache).output, "ms-marco-MiniLM-L4-v2")
    assert line.rstrip().endswith("0.0 MB")


def test_json_says_everything_and_where_it_is_cached(filled_cache):
    entries = {entry["model_id"]: entry for entry in json.loads(run(filled_cache, "--json").output)}
    assert list(entries) == [model.model_id for model in MODELS]
    cached = entries[MODEL]["cached"]
    assert cached["revision"] == COMMIT
    assert Path(cached["path"]).is_relative_to(filled_cache)
    assert cached["size_bytes"] == sum(file.stat().st_size for file in Path(cached["path"]).iterdir())
    assert entries["cross-encoder/ms-marco-MiniLM-L6-v2"]["cached"] is None
    pinned = entries["cross-encoder/ms-marco-TinyBERT-L2-v2"]
    assert pinned["pin"]["revision"] == "81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc"
    assert set(pinned["pin"]["sha256"]) == {"config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"}
    assert "BM25 top-100" in entries["crossrank-mini"]["protocol"]


def test_a_bundle_being_built_is_not_shown_as_cached(filled_cache):
    root = BundleCache(filled_cache).root
    bundle = root / bundle_name(MODEL, COMMIT)
    (root / f"{bundle.name}.partial").mkdir()
    bundle.rename(root / f"{bundle.name}.partial" / "bundle")
    assert row(run(filled_cache).output, "ms-marco-MiniLM-L4-v2").split()[-1] == "no"


def row(output: str, name: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name} ")]
    return line
