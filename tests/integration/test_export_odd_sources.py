"""Sources that say less than others, or compute otherwise: exported with PyTorch's scores, or refused in a sentence."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.errors import ModelSourceError, SetupError
from crossrank.text.encoding import PairEncoder
from crossrank_export import parity
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.samples import SampleGroup
from crossrank_export.sources import find_source
from crossrank_server.cli import cli
from tests.checkpoints import SMALL, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

QUERY = "what is it, 25"
DOCUMENTS = ["a bc def", "of 3 and a half", "an end. " * 300]
WITHOUT_TYPES = {"model_input_names": ["input_ids", "attention_mask"]}


def edit(directory: Path, file: str, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one away."""
    path = directory / file
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def pytorch(directory: Path, window: int) -> NDArray[np.float32]:
    """Return the logits of the pairs, each alone, as transformers tokenizes it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True).eval()
    logits = []
    for document in DOCUMENTS:
        feeds = tokenizer([[QUERY, document]], truncation=True, max_length=window, return_tensors="pt")
        takes = inspect.signature(model.forward).parameters
        with torch.inference_mode():
            logits.append(model(**{name: value for name, value in feeds.items() if name in takes}).logits[0, 0].item())
    return np.array(logits, np.float32)


def exported(directory: Path, out: Path) -> Bundle:
    return export_model(find_source(directory), out, ExportOptions(documents=4))


def served(bundle: Bundle) -> NDArray[np.float32]:
    batch = PairEncoder(bundle).encode(QUERY, DOCUMENTS).batch
    return OnnxRuntimeEngine(bundle, threads=1).infer(batch)


def test_one_row_of_segments_is_read_whatever_the_tokenizer_frames(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "bert", vocab_size=400, type_vocab_size=1)
    bundle = exported(source, tmp_path / "bundle")
    assert bundle.manifest.pair_template.segments == (0, 0)
    edit(source, "tokenizer_config.json", **WITHOUT_TYPES)  # with types 1 transformers itself stops
    np.testing.assert_allclose(served(bundle), pytorch(source, 512), atol=1e-5)


def test_positions_after_the_padding_of_the_family_where_the_config_names_none(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "roberta")
    edit(source, "config.json", pad_token_id=None)
    edit(source, "tokenizer_config.json", model_max_length=None)
    bundle = exported(source, tmp_path / "bundle")
    assert (bundle.manifest.max_length, bundle.manifest.pad_token_id) == (512, 1)
    np.testing.assert_allclose(served(bundle), pytorch(source, 512), atol=1e-5)


def write_llama(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shape = {**SMALL["bert"], "model_type": "llama", "num_key_value_heads": 2, "head_dim": 8}
    monkeypatch.setitem(SMALL, "llama", {**shape, "max_position_embeddings": 64, "pad_token_id": None})
    source = write_checkpoint(directory, "llama")
    edit(source, "tokenizer_config.json", **WITHOUT_TYPES, model_max_length=64)
    return source


def test_padding_is_the_tokenizer_s_where_the_model_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llama(tmp_path / "m", monkeypatch)
    bundle = exported(source, tmp_path / "bundle")
    assert bundle.manifest.pad_token_id == 0
    np.testing.assert_allclose(served(bundle), pytorch(source, 64), atol=1e-5)


@pytest.mark.parametrize("pad", [None, "[SEP]"], ids=["none", "the end of a pair"])
def test_no_padding_at_all_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pad: str | None
) -> None:
    source = write_llama(tmp_path / "m", monkeypatch)
    edit(source, "tokenizer_config.json", pad_token=pad)
    with pytest.raises(ModelSourceError, match=r"has no padding token, .*: set pad_token_id in config.json"):
        exported(source, tmp_path / "bundle")


def write_onnx(directory: Path, builtin: Bundle, **config: Any) -> ir.Model:
    """Write the small files of the built-in model's source; return its graph."""
    directory.mkdir()
    architecture = builtin.manifest.architecture
    numbers = {"num_hidden_layers": architecture.layers, "hidden_size": architecture.hidden}
    numbers |= {"num_attention_heads": architecture.heads, "intermediate_size": architecture.ffn}
    numbers |= {"vocab_size": architecture.vocab_size, "max_position_embeddings": 512, "type_vocab_size": 2}
    labels = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "LABEL_0"}}
    (directory / "config.json").write_text(json.dumps({**numbers, **labels, **config}))
    (directory / "tokenizer.json").write_bytes(builtin.file("tokenizer.json").read_bytes())
    return ir.load(builtin.file("model.onnx"))


@pytest.mark.parametrize("inner", ["logits", "raw"])
def test_scores_of_a_graph_with_a_sigmoid_are_those_without(tmp_path: Path, builtin: Bundle, inner: str) -> None:
    graph = write_onnx(tmp_path / "m", builtin)
    logits = graph.graph.outputs[0]
    sigmoid = ir.Node("", "Sigmoid", [logits])
    scores = sigmoid.outputs[0]
    logits.name, scores.name = inner, "scores" if inner == "logits" else "logits"
    scores.type, scores.shape = logits.type, logits.shape
    graph.graph.append(sigmoid)
    graph.graph.outputs[0] = scores
    ir.save(graph, tmp_path / "m" / "model.onnx")
    bundle = exported(tmp_path / "m", tmp_path / "bundle")
    np.testing.assert_allclose(served(bundle), served(builtin), atol=1e-5)
    detail = "The logits are what goes into the graph's last Sigmoid."
    assert bundle.manifest.passes[0] == {"name": "logits", "applied": True, "detail": detail}
    assert bundle.manifest.graph("fp32").parity["reference"].startswith("source ONNX, its logits, in onnxruntime")


def test_more_positions_in_the_config_than_in_the_graph_is_a_sentence(tmp_path: Path, builtin: Bundle) -> None:
    graph = write_onnx(tmp_path / "m", builtin, max_position_embeddings=1024)
    ir.save(graph, tmp_path / "m" / "model.onnx")
    with pytest.raises(ModelSourceError, match=r"pairs of up to \d+ tokens cannot be scored \(.* with --max-length"):
        exported(tmp_path / "m", tmp_path / "bundle")


def test_what_nobody_foresaw_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "m", "bert", vocab_size=400)

    def surprise(*_: object, **__: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("onnx.shape_inference.infer_shapes", surprise)
    result = CliRunner().invoke(cli, ["export", str(source), "--out", str(tmp_path / "bundle")])
    assert isinstance(result.exception, SetupError)
    assert "cannot be exported, for a reason that was not foreseen: report it (ZeroDivisionError: " in str(
        result.exception
    )


def test_what_optimum_does_not_know_is_named_without_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, "ernie", {**SMALL["bert"], "model_type": "ernie"})
    source = write_checkpoint(tmp_path / "m", "ernie")
    with pytest.raises(
        ModelSourceError, match=r"optimum does not know how to export ernie .*: give an ONNX graph"
    ) as caught:
        exported(source, tmp_path / "bundle")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(("scale", "delta", "agrees"), [(1, 2e-4, False), (3500, 1.6e-3, True), (3500, 4e-3, False)])
def test_the_limit_grows_with_logits_that_span_more_than_a_hundred(scale: float, delta: float, agrees: bool) -> None:
    group = SampleGroup("q", ["a", "b"], ["0", "1"])
    samples = parity.SampleSet("builtin", [group], None, np.array([0, scale], np.float32))  # type: ignore[arg-type]
    agreement = parity.compare(samples, np.array([delta, scale], np.float64))
    assert agreement.within("fp32") == agrees
    assert agreement.judged_as("fp32")["limit"] == pytest.approx(max(1e-4, 1e-6 * scale))
    if not agrees:
        with pytest.raises(SetupError, match=r"is not the source model: .* no option mends: report this model"):
            parity.check(agreement, "fp32", "the pairs")
