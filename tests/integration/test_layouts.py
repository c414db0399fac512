"""Models in the layouts of the hub and of sentence-transformers: exported and served with the source's scores."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from crossrank.bundles.bundle import Bundle, load_bundle
from crossrank.errors import ModelSourceError
from crossrank.resolve import resolve_model
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.sources import find_source
from crossrank_server.cli import cli
from tests.fake_hub import FakeHub, Repository
from tests.model_layouts import (
    DOCUMENTS,
    QUERY,
    graph_of,
    logits_of,
    reference,
    write_checkpoint,
    write_external,
    write_hub_cache,
    write_onnx,
    write_small_files,
)
from tests.server_process import CROSSRANK, running_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
ENGINES = ("auto", "openvino", "onnxruntime")
QUICK = ExportOptions(documents=2)


def export(source: Path, out: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["export", str(source), "--out", str(out), *args])


def by_both_roads(checkpoint: Path) -> list[Bundle]:
    """Return the bundle that PyTorch's export makes of safetensors, and the one that they become on first use."""
    exported = export_model(find_source(checkpoint, kind="safetensors"), checkpoint.parent / "exported", QUICK)
    return [exported, resolve_model(str(checkpoint), cache_dir=checkpoint.parent / "cache")]


def assert_scores(bundle: Any, expected: np.ndarray, atol: float = 1e-4) -> None:
    for engine in ENGINES:
        np.testing.assert_allclose(logits_of(bundle, engine), expected, atol=atol, rtol=0, err_msg=engine)


# --- external data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "location"),
    [
        ("onnx/model.onnx", "model.onnx_data"),
        ("model.onnx", "model.onnx.data"),
        ("onnx/model.onnx", "weights.bin"),
        ("onnx/model.onnx", "weights/part.bin"),
    ],
)
def test_weights_beside_a_graph_are_read_whatever_they_are_called(tmp_path: Path, graph: str, location: str):
    (tmp_path / "m" / Path(graph).parent / location).parent.mkdir(parents=True)
    source = write_external(tmp_path / "m", graph, location)
    where = (Path(graph).parent / location).as_posix()
    assert 0 < (source / graph).stat().st_size < 100_000 < (source / where).stat().st_size
    bundle = resolve_model(str(source), cache_dir=tmp_path / "cache")
    assert where in bundle.manifest.source.sha256
    assert_scores(bundle, reference())
    assert_scores(export_model(find_source(source), tmp_path / "bundle", QUICK), reference())


def test_other_weights_beside_the_same_graph_are_another_bundle(tmp_path: Path):
    source = write_external(tmp_path / "m", location="weights.bin")
    first = resolve_model(str(source), cache_dir=tmp_path / "cache")
    weights = bytearray((source / "onnx/weights.bin").read_bytes())
    weights[0] ^= 1
    (source / "onnx/weights.bin").write_bytes(weights)
    assert resolve_model(str(source), cache_dir=tmp_path / "cache").path != first.path


def test_external_data_of_a_hub_model_is_downloaded_under_any_name(tmp_path: Path):
    source = write_external(tmp_path / "m", location="weights.bin")
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with FakeHub() as hub:
        hub.repositories["owner/m"] = Repository(files)
        bundle = resolve_model("owner/m", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert bundle.manifest.source.sha256.keys() >= {"onnx/model.onnx", "onnx/weights.bin"}
    assert_scores(bundle, reference())


def test_a_snapshot_of_the_hubs_cache_is_served_and_exported_by_its_id(tmp_path: Path):
    snapshot = write_hub_cache(tmp_path)
    bundle = resolve_model(str(snapshot), cache_dir=tmp_path / "cache")
    assert bundle.manifest.model_id == "someone/reranker-ONNX"
    assert_scores(bundle, reference())
    exported = export_model(find_source(snapshot, kind="onnx"), tmp_path / "bundle", QUICK)
    assert exported.manifest.model_id == "someone/reranker-ONNX"
    assert_scores(exported, reference())


def test_the_hubs_cache_serves_without_a_network(tmp_path: Path):
    write_hub_cache(tmp_path)
    command = [
        CROSSRANK,
        "rerank",
        "--offline",
        "--model",
        "someone/reranker-ONNX",
        "--precision",
        "fp32",
        "--raw-scores",
    ]
    done = subprocess.run(
        [*command, "--json", "--query", QUERY, "--cache-dir", str(tmp_path / "cache")],
        input="\n".join(document or " " for document in DOCUMENTS[:2]),
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["model"] == "someone/reranker-ONNX"
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    np.testing.assert_allclose([scores[0], scores[1]], reference()[:2], atol=1e-4)


# --- variants, shards, precisions -------------------------------------------------------------------------------


def test_of_several_graphs_the_plain_one_is_read(tmp_path: Path):
    source = write_onnx(tmp_path / "m")
    for name in ("model_fp16", "model_quantized", "model_O1", "model_q4f16"):
        (source / f"onnx/{name}.onnx").write_bytes(b"another")
    assert_scores(resolve_model(str(source), cache_dir=tmp_path / "cache"), reference())


@pytest.mark.parametrize("graph", ["onnx/model_O2.onnx", "onnx/model_optimized.onnx", "reranker.onnx"])
def test_the_only_graph_is_read_whatever_it_is_called(tmp_path: Path, graph: str):
    source = write_onnx(tmp_path / "m", graph)
    (source / "onnx").mkdir(exist_ok=True)
    (source / "onnx/model_quantized.onnx").write_bytes(b"another")
    bundle = resolve_model(str(source), cache_dir=tmp_path / "cache")
    assert (bundle.manifest.model_id, graph in bundle.manifest.source.sha256) == ("m", True)
    assert_scores(bundle, reference())


def test_the_graph_that_is_named_is_read(tmp_path: Path):
    source = write_onnx(tmp_path / "m", "onnx/chosen.onnx")
    (source / "onnx/model.onnx").write_bytes(b"another")
    for bundle in (
        resolve_model(str(source / "onnx/chosen.onnx"), cache_dir=tmp_path / "cache"),
        export_model(find_source(source / "onnx/chosen.onnx"), tmp_path / "bundle", QUICK),
    ):
        assert bundle.manifest.model_id == "m"
        assert_scores(bundle, reference())


def test_shards_are_put_together(tmp_path: Path):
    source = write_small_files(tmp_path / "m")
    from tests.model_layouts import torch_model

    torch_model().save_pretrained(source, max_shard_size="200KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    assert not (source / "model.safetensors").exists()
    for bundle in by_both_roads(source):
        assert set(bundle.manifest.source.sha256) >= {path.name for path in source.glob("model-*")}
        assert_scores(bundle, reference())
    next(iter(sorted(source.glob("model-*.safetensors")))).unlink()
    result = export(source, tmp_path / "other")
    assert result.exit_code == 1
    assert "lacks model-00001-of-" in str(result.exception)
    with pytest.raises(ModelSourceError, match="lacks model-00001-of-"):
        resolve_model(str(source), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("keep_io_types", [False, True])
def test_an_fp16_graph_becomes_fp32_and_the_bundle_says_so(tmp_path: Path, keep_io_types: bool):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = write_small_files(tmp_path / "m")
    (source / "onnx").mkdir()
    half = convert_float_to_float16(graph_of(), keep_io_types=keep_io_types)
    onnx.save(half, source / "onnx/model_fp16.onnx")
    bundle = resolve_model(str(source), cache_dir=tmp_path / "cache")
    assert bundle.manifest.model_id == "m"
    widened = bundle.manifest.passes[0]
    assert (widened["name"], widened["applied"]) == ("widen", True)
    assert "its fp16 made fp32" in bundle.manifest.graph("fp32").parity["reference"]
    # Weights of 11 bits; from engine to engine as near as any fp32 bundle.
    assert_scores(bundle, reference(), atol=2e-2)
    assert_scores(bundle, logits_of(bundle, "onnxruntime"))


# --- labels and names -------------------------------------------------------------------------------------------


def test_each_label_of_a_model_with_two_is_served_by_every_engine(tmp_path: Path):
    source = write_onnx(tmp_path / "m", num_labels=2)
    expected = [reference(2, label) for label in (0, 1)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for label in (0, 1):
        bundle = resolve_model(str(source), cache_dir=tmp_path / "cache", label=label)
        assert bundle.manifest.label == label
        assert_scores(bundle, expected[label])
        if bundle.manifest.weights is not None:
            np.testing.assert_allclose(logits_of(bundle, "native"), expected[label], atol=1e-4)


def test_a_label_is_asked_for_by_flag_and_of_models_that_have_several(tmp_path: Path):
    two, one = write_onnx(tmp_path / "two", num_labels=2), write_onnx(tmp_path / "one")
    cache = ["--cache-dir", str(tmp_path / "cache")]
    refused = CliRunner().invoke(cli, ["rerank", "--query", QUERY, "--model", str(two), *cache], input="x")
    assert "2 logits a pair, and a score is one: say which with --label 0..1 of crossrank serve" in str(
        refused.exception
    )
    models = ["--model", str(two), "--model", str(one), "--pin", "all"]
    with running_server(*models, "--label", "1", "--precision", "fp32", *cache) as server:
        for name, expected in (("two", reference(2, 1)), ("one", reference())):
            assert_served(server.base_url, name, expected)


def test_a_bundle_of_another_label_than_asked_for_is_refused(tmp_path: Path):
    source = write_onnx(tmp_path / "m", num_labels=2)
    export_model(find_source(source, kind="onnx"), tmp_path / "bundle", ExportOptions(label=0, documents=2))
    result = CliRunner().invoke(
        cli, ["rerank", "--query", "q", "--model", str(tmp_path / "bundle"), "--label", "1"], input="x"
    )
    assert "was exported with --label 0 of 2, not 1: export m with --label 1" in str(result.exception)


def test_models_have_the_names_that_they_are_given(tmp_path: Path):
    source = write_onnx(tmp_path / "c0ffee")
    result = export(source, tmp_path / "bundle", "--name", "acme/reranker", "--from", "onnx")
    assert result.exit_code == 0, result.output
    assert load_bundle(tmp_path / "bundle").manifest.model_id == "acme/reranker"
    models = ["--model", f"mine={source}", "--model", str(tmp_path / "bundle"), "--model", f"b={tmp_path / 'bundle'}"]
    with running_server(
        *models, "--pin", "mine,acme/reranker,b", "--precision", "fp32", "--cache-dir", str(tmp_path / "cache")
    ) as server:
        with urlopen(f"{server.base_url}/v1/models", timeout=10) as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["mine", "acme/reranker", "b"]
        for name in ("mine", "acme/reranker", "b"):
            assert_served(server.base_url, name, reference())


@pytest.mark.parametrize("name", ["", " x", "a b", "ä", "x,y", "-x", "x" * 201])
def test_a_name_that_requests_could_not_give_is_refused(tmp_path: Path, name: str):
    for result in (
        export(tmp_path, tmp_path / "bundle", "--name", name),
        CliRunner().invoke(cli, ["rerank", "--query", "q", "--model", f"{name}=builtin"], input="x"),
    ):
        assert result.exit_code == 1
        assert "is no name for a model: give up to 200 letters, digits" in str(result.exception)


def test_a_directory_with_an_equals_sign_is_a_directory(tmp_path: Path):
    source = write_onnx(tmp_path / "lr=0.1")
    assert resolve_model(str(source), cache_dir=tmp_path / "cache").manifest.model_id == "lr=0.1"
    named = resolve_model(f"mine={source}", cache_dir=tmp_path / "cache")
    assert named.manifest.model_id == "mine"


# --- sentence-transformers --------------------------------------------------------------------------------------


def test_the_files_of_sentence_transformers_5_are_read(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m")
    settings = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    activation = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (source / "config_sentence_transformers.json").write_text(json.dumps({**settings, **activation}))
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    (source / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    (source / "sentence_bert_config.json").write_text(
        json.dumps({"transformer_task": "sequence-classification", "max_seq_length": 48, "do_lower_case": True})
    )
    short = [document for document in DOCUMENTS if len(document) < 60]
    expected = reference(documents=short)
    for bundle in by_both_roads(source):
        assert (bundle.manifest.activation, bundle.manifest.max_length) == ("identity", 48)
        assert "config_sentence_transformers.json" in bundle.manifest.source.sha256
        for documents in (short, [document.upper() for document in short]):
            np.testing.assert_allclose(logits_of(bundle, documents=documents), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("named", "activation"),
    [("torch.nn.modules.activation.Tanh", "tanh"), ("mine.functions.Gated", "mine.functions.Gated")],
)
def test_any_activation_serves_logits_and_one_that_is_not_known_is_said_once(
    tmp_path: Path, named: str, activation: str, caplog: pytest.LogCaptureFixture
):
    source = write_onnx(tmp_path / "m", sbert_ce_default_activation_function=named)
    bundle = resolve_model(str(source), cache_dir=tmp_path / "cache")
    assert bundle.manifest.activation == activation
    said = [message for message in caplog.messages if "is not known here: raw_scores gives" in message]
    assert len(said) == (0 if activation == "tanh" else 1)
    assert_scores(bundle, reference())


def test_a_config_that_still_names_code_of_its_own_is_exported_by_transformers_class(tmp_path: Path):
    classes = {"AutoModelForSequenceClassification": "modeling_bert.BertForSequenceClassification"}
    source = write_checkpoint(tmp_path / "m", auto_map=classes)
    for bundle in by_both_roads(source):
        assert_scores(bundle, reference())


def test_a_graph_of_a_model_with_code_of_its_own_needs_none_of_it(tmp_path: Path):
    classes = {"AutoModelForSequenceClassification": "someone/code--modeling.NewForSequenceClassification"}
    source = write_onnx(tmp_path / "m", auto_map=classes, architectures=None, model_type="new")
    assert_scores(resolve_model(str(source), cache_dir=tmp_path / "cache"), reference())


# --- helpers ----------------------------------------------------------------------------------------------------


def assert_served(base_url: str, model: str, expected: np.ndarray) -> None:
    documents = [document or " " for document in DOCUMENTS]
    body = {"model": model, "query": QUERY, "documents": documents, "raw_scores": True}
    request = Request(f"{base_url}/v1/rerank", json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=30) as response:
        results = json.load(response)["results"]
    scores = {result["index"]: result["relevance_score"] for result in results}
    np.testing.assert_allclose([scores[i] for i in range(len(documents))], expected, atol=1e-4, err_msg=model)
