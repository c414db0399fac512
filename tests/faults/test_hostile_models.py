"""Model directories that were made to cost much, to read other files, or to fail late: each is refused by name."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from crossrank.bundles.bundle import Bundle, load_bundle
from crossrank.engines import select
from crossrank.engines.select import make_engine
from crossrank.errors import BundleError, EngineFailure
from crossrank.text.tokenizer import TextTokenizer
from tests.http_app import client_of, make_app


@pytest.fixture
def copy(builtin: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin.path, tmp_path / "bundle"))


def edit(path: Path, change: Callable[[dict[str, Any]], object], *files: str) -> Path:
    """Change the manifest of a bundle; the hashes of files that were changed are made to fit."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    manifest["files"] |= {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in files}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


NUMBERS = {
    **{
        f"architecture.{name}": (lambda m, name=name: m["architecture"], name)
        for name in ("layers", "hidden", "heads", "ffn", "vocab_size")
    },
    "weights.positions": (lambda m: m["weights"], "positions"),
    "weights.segments": (lambda m: m["weights"], "segments"),
    "weights.epsilon": (lambda m: m["weights"], "epsilon"),
    "num_labels": (lambda m: m, "num_labels"),
    "max_length": (lambda m: m, "max_length"),
    "pad_token_id": (lambda m: m, "pad_token_id"),
    "pair_template.start.0": (lambda m: m["pair_template"]["start"], 0),
}


@pytest.mark.parametrize("where", NUMBERS)
def test_an_absurd_number_of_a_manifest_is_one_error_with_field_value_and_limit(copy: Path, where: str) -> None:
    of, name = NUMBERS[where]
    for absurd in (-1, 2**31, 2**63, 10**40, 1e308):

        def change(manifest: dict[str, Any], absurd: float = absurd) -> None:
            of(manifest)[name] = absurd

        with pytest.raises(BundleError) as refused:
            load_bundle(edit(copy, change))
        assert where in refused.value.message
        assert str(absurd)[:20] in refused.value.message
        assert "export the bundle again" in refused.value.message
        assert len(refused.value.message) < 500


def test_weights_beyond_the_end_of_their_file_are_refused_before_memory_is_taken(copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["architecture"]["vocab_size"] = 9_000_000

    bundle = load_bundle(edit(copy, change))
    with pytest.raises(BundleError, match=r"embeddings.word ends at byte \d+ of model.onnx, which has \d+"):
        make_engine(bundle, "native", "fp32", threads=1)


def test_damaged_weights_are_a_warning_that_names_file_and_remedy(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another engine takes over where none was asked for; where native was, it is refused."""
    arrays = load_file(copy / "weights.safetensors")
    arrays["pooler.bias"] = arrays["pooler.bias"] + 1
    save_file(arrays, copy / "weights.safetensors")
    bundle = load_bundle(edit(copy, lambda manifest: None, "weights.safetensors"))
    select._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "crossrank"):
        engine = make_engine(bundle, "auto", "fp32", threads=1)
    assert engine.name != "native"
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "weights.safetensors on engine native" in warning
    assert "export" in warning
    with pytest.raises(EngineFailure, match=r"weights\.safetensors on engine native"):
        make_engine(bundle, "native", "fp32", threads=1)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "tokenizer.json"])
def test_a_graph_of_a_bundle_reads_no_file_that_the_manifest_does_not_name(copy: Path, location: str) -> None:
    graph = onnx.load(copy / "model.onnx")
    tensor = next(tensor for tensor in graph.graph.initializer if len(tensor.raw_data) > 100)
    (copy.parent / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (copy / "model.onnx").write_bytes(graph.SerializeToString())
    edit(copy, lambda manifest: None, "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx reads weights from .*, which manifest\.json does not name"):
        load_bundle(copy)


def write_tokenizer(path: Path, pattern: str) -> None:
    """Write a tokenizer that splits texts by a pattern of its own."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.save(str(path))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(([a-z])+.)+[A-Z]([a-z])+$"])
def test_an_explosive_pattern_of_a_tokenizer_is_given_up(tmp_path: Path, pattern: str) -> None:
    """The regular expressions' library gives up after 10 million steps, which take a tenth of a second, and panics."""
    write_tokenizer(tmp_path / "tokenizer.json", pattern)
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    for texts in (["a" * 1000 + "!"], ["a", "a" * 1000 + "!"]):
        with pytest.raises(EngineFailure, match=r"tokenizer failed on a text: .*retry-limit"):
            tokenizer.tokenize(texts, 512)
    assert tokenizer.tokenize(["a"], 512).lengths.tolist() == [1]


async def test_a_request_that_makes_a_tokenizer_fail_gets_the_error_body(builtin: Bundle, copy: Path) -> None:
    definition = json.loads((copy / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, definition["pre_tokenizer"]]}
    (copy / "tokenizer.json").write_text(json.dumps(definition))
    app = make_app(load_bundle(edit(copy, lambda manifest: None, "tokenizer.json")))
    async with client_of(app) as client:
        answer = await client.post("/v1/rerank", json={"query": "q", "documents": ["a" * 1000 + "!"]})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_failure"
        assert "retry-limit" not in answer.text
        assert (await client.post("/v1/rerank", json={"query": "q", "documents": ["b"]})).status_code == 200


def test_a_tokenizer_of_an_absurd_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(BundleError, match="has 300000000 bytes, the limit is 256000000"):
        TextTokenizer(tmp_path / "tokenizer.json")
