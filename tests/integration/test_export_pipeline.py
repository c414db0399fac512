"""From files to a proved bundle: both roads, their refusals, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from click.testing import CliRunner

from crossrank.bundles.bundle import Bundle, load_bundle, sha256_of
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.errors import ModelSourceError, SetupError
from crossrank.resolve import resolve_model
from crossrank.text.encoding import PairEncoder
from crossrank_export import parity, precision
from crossrank_export.pipeline import ExportOptions, bundle_from_files, export_model
from crossrank_export.precision import fp16_for_onnxruntime
from crossrank_export.samples import SampleGroup
from crossrank_export.sources import find_source
from crossrank_export.variants import FILE_FOR_ONNXRUNTIME
from crossrank_server.cli import cli
from tests.fake_hub import FakeHub, Repository

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# The tracer and the exporters warn of their own internals.
TORCH_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


def write_config(directory: Path, **changes: Any) -> None:
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
    }
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.fixture
def onnx_dir(tmp_path: Path, builtin: Bundle) -> Path:
    """The built-in model as the hub ships ONNX models."""
    directory = tmp_path / "mini"
    (directory / "onnx").mkdir(parents=True)
    write_config(directory)
    (directory / "tokenizer.json").symlink_to(builtin.file("tokenizer.json"))
    (directory / "onnx" / "model.onnx").symlink_to(builtin.file("model.onnx"))
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, builtin: Bundle) -> Path:
    """A tiny seeded checkpoint with three labels, whose logits spread."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "three-labels", builtin, num_labels=3)


def write_checkpoint(directory: Path, builtin: Bundle, **changes: Any) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(5)
    model = BertForSequenceClassification(BertConfig(**TINY, initializer_range=0.3, **changes))
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes(builtin.file("tokenizer.json").read_bytes())
    return directory


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- an ONNX graph, without torch -------------------------------------------------------------------------------


def test_a_directory_with_onnx_becomes_a_bundle_that_scores_as_the_source(
    onnx_dir: Path, tmp_path: Path, builtin: Bundle
):
    out = tmp_path / "bundle"
    bundle_from_files(onnx_dir, out)
    bundle = load_bundle(out)
    manifest = bundle.manifest
    assert (manifest.model_id, manifest.max_length, manifest.activation) == ("mini", 512, "sigmoid")
    assert manifest.source.sha256["onnx/model.onnx"] == sha256_of(builtin.file("model.onnx"))
    assert manifest.graph("fp32").parity["builtin"]["max_abs_delta"] <= 1e-4
    assert [entry["name"] for entry in manifest.passes]
    batch = PairEncoder(bundle).encode("what is bm25", ["BM25 ranks.", "A cat sat."]).batch
    own, source = (OnnxRuntimeEngine(item, threads=1).infer(batch) for item in (bundle, builtin))
    np.testing.assert_allclose(own, source, atol=1e-5)


def test_onnx_is_exported_and_served_where_torch_cannot_be_imported(onnx_dir: Path, tmp_path: Path):
    program = f"""
import sys
BLOCKED = {{"torch", "transformers", "optimum", "onnxscript"}}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = ["crossrank", "export", {str(onnx_dir)!r}, "--out", {str(tmp_path / "bundle")!r}, "--from", "onnx",
            "--precision", "fp32,fp16,int8"]
from crossrank_server.cli import main
try:
    main()
finally:
    found = BLOCKED & {{name.partition(".")[0] for name in sys.modules}}
    assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert [(graph.precision, graph.operators) for graph in manifest.graphs] == [
        ("fp32", "onnx"),
        ("fp16", "onnx"),
        ("int8", "onnx"),
        ("fp16", "onnxruntime"),
    ]
    assert "torch" not in manifest.tool_versions


def test_every_variant_of_the_builtin_model_is_within_its_threshold(onnx_dir: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    bundle = export_model(find_source(onnx_dir, kind="onnx"), out, ExportOptions(["fp32", "fp16", "int8"]))
    graphs = bundle.manifest.graphs
    deltas = {(graph.precision, graph.operators): graph.parity["builtin"]["max_abs_delta"] for graph in graphs}
    assert deltas["fp32", "onnx"] <= 1e-4
    assert 0 < deltas["fp16", "onnx"] <= 0.01
    assert 0 < deltas["fp16", "onnxruntime"] <= 0.01
    assert deltas["fp16", "onnx"] < deltas["int8", "onnx"] <= 0.2
    assert bundle.manifest.passes[-1]["name"] == "onnxruntime"


def test_a_graph_for_onnx_runtime_beyond_its_threshold_is_left_out_and_the_bundle_says_so(
    onnx_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(model: onnx_ir.Model) -> Any:
        graph, report = fp16_for_onnxruntime(model)
        assert graph is not None
        weight = graph.graph.initializers["classifier.weight"]
        weight.const_value = onnx_ir.tensor(2 * weight.const_value.numpy(), name=weight.name)
        return graph, report

    monkeypatch.setattr(precision, "fp16_for_onnxruntime", wrong)
    bundle = export_model(find_source(onnx_dir, kind="onnx"), tmp_path / "bundle", ExportOptions(["fp16"], documents=2))
    assert [graph.file for graph in bundle.manifest.graphs] == ["model.onnx", "model.fp16.onnx"]
    assert FILE_FOR_ONNXRUNTIME not in bundle.manifest.files
    report = bundle.manifest.passes[-1]
    assert (report["name"], report["applied"]) == ("onnxruntime", False)
    assert re.match(
        r"Left out: the fp16 graph is not the source model: .* its logits differ by up to", report["detail"]
    )


def fail_to_make(graph: onnx_ir.Model) -> None:
    raise ZeroDivisionError("surprise\nat length")


def fail_to_save(graph: onnx_ir.Model) -> None:
    graph.graph.initializers["classifier.weight"].const_value = "no tensor"


def fail_to_load(graph: onnx_ir.Model) -> None:
    next(node for node in graph.graph if node.op_type == "MultiHeadAttention").op_type = "NoAttention"


def fail_to_run(graph: onnx_ir.Model) -> None:
    embeddings = next(node for node in graph.graph if node.op_type == "EmbedLayerNormalization")
    words = embeddings.inputs[2]
    words.const_value = onnx_ir.tensor(words.const_value.numpy()[:3], name=words.name)
    words.shape = words.const_value.shape


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (fail_to_make, "ZeroDivisionError: surprise; at length$"),
        (fail_to_save, "SerdeError: "),
        (fail_to_load, "ONNX Runtime does not accept model.fp16.onnxruntime.onnx"),
        (
            fail_to_run,
            "[0-9]+ pairs .* cannot be scored .Non-zero status code returned while running EmbedLayerNormalization node.*input index out of range",
        ),
    ],
)
def test_a_graph_for_onnx_runtime_that_cannot_be_had_never_ends_the_export(
    fail: Callable[[onnx_ir.Model], None],
    reason: str,
    onnx_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def failing(model: onnx_ir.Model) -> Any:
        graph, report = fp16_for_onnxruntime(model)
        fail(graph)
        return graph, report

    monkeypatch.setattr(precision, "fp16_for_onnxruntime", failing)
    bundle = export_model(find_source(onnx_dir, kind="onnx"), tmp_path / "bundle", ExportOptions(["fp16"], documents=2))
    assert [graph.file for graph in bundle.manifest.graphs] == ["model.onnx", "model.fp16.onnx"]
    assert not (bundle.path / FILE_FOR_ONNXRUNTIME).exists()
    report = bundle.manifest.passes[-1]
    assert (report["name"], report["applied"]) == ("onnxruntime", False)
    assert re.match(f"Left out: {reason}", report["detail"])


def test_the_server_resolves_a_directory_through_the_same_path(onnx_dir: Path, tmp_path: Path):
    bundle = resolve_model(str(onnx_dir), cache_dir=tmp_path / "cache")
    assert bundle.manifest.graph("fp32").parity["builtin"]["pairs"] == 16
    assert resolve_model(str(onnx_dir), cache_dir=tmp_path / "cache").path == bundle.path


def damaged(directory: Path, change: Any) -> Path:
    """Replace the directory's graph by a changed copy."""
    path = directory / "onnx" / "model.onnx"
    model = onnx_ir.load(path)
    change(model)
    path.unlink()
    onnx_ir.save(model, path)
    return directory


def rename_input(model: onnx_ir.Model) -> None:
    model.graph.inputs[0].name = "pixel_values"


def fix_batch(model: onnx_ir.Model) -> None:
    for value in model.graph.inputs:
        value.shape = onnx_ir.Shape([1, "sequence"])


def lose_segments(model: onnx_ir.Model) -> None:
    value = next(value for value in model.graph.inputs if value.name == "token_type_ids")
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    value.replace_all_uses_with(mask)
    model.graph.inputs.remove(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_input, "a cross-encoder has input_ids, attention_mask"),
        (fix_batch, "must be dynamic"),
        (lose_segments, "has lost the input token_type_ids"),
    ],
)
def test_a_graph_that_is_no_cross_encoder_is_refused(onnx_dir: Path, tmp_path: Path, change: Any, words: str):
    before = leftovers(tmp_path)
    with pytest.raises(ModelSourceError, match=words):
        bundle_from_files(damaged(onnx_dir, change), tmp_path / "bundle")
    assert leftovers(tmp_path) == before


def test_bytes_that_are_no_graph_are_refused(onnx_dir: Path, tmp_path: Path):
    (onnx_dir / "onnx" / "model.onnx").unlink()
    (onnx_dir / "onnx" / "model.onnx").write_bytes(b"neither a graph nor a pointer to one\n")
    with pytest.raises(ModelSourceError, match="not a readable ONNX graph"):
        bundle_from_files(onnx_dir, tmp_path / "bundle")


def test_a_config_that_promises_other_logits_is_refused(onnx_dir: Path, tmp_path: Path):
    write_config(onnx_dir, id2label={"0": "a", "1": "b"})
    options = ExportOptions(label=1)
    with pytest.raises(SetupError, match=r"where config\.json promises 2"):
        export_model(find_source(onnx_dir, kind="onnx"), tmp_path / "bundle", options)


# --- what a failure leaves --------------------------------------------------------------------------------------


def test_a_variant_beyond_its_threshold_leaves_no_bundle(
    onnx_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parity, "THRESHOLDS", {**parity.THRESHOLDS, "fp16": 1e-9})
    before = leftovers(tmp_path)
    with pytest.raises(SetupError, match="fp16 graph is not the source model") as caught:
        export_model(find_source(onnx_dir, kind="onnx"), tmp_path / "bundle", ExportOptions(["fp16"]))
    assert caught.value.code == "parity"
    assert leftovers(tmp_path) == before


def test_a_failed_export_leaves_the_old_bundle_as_it_was(onnx_dir: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    bundle_from_files(onnx_dir, out)
    before = sha256_of(out / "manifest.json")
    write_config(onnx_dir, id2label={"0": "no", "1": "rather", "2": "yes"})
    with pytest.raises(ModelSourceError, match="--label"):
        bundle_from_files(onnx_dir, out)
    assert sha256_of(out / "manifest.json") == before


def test_a_directory_that_is_no_bundle_is_never_overwritten(onnx_dir: Path, tmp_path: Path):
    out = tmp_path / "documents"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(SetupError, match="is not a bundle"):
        bundle_from_files(onnx_dir, out)
    assert leftovers(out) == ["thesis.tex"]


@pytest.mark.parametrize("stranger", ["notes.txt", ".git/config", "old/model.onnx"])
def test_a_bundle_that_holds_something_else_is_not_replaced(onnx_dir: Path, tmp_path: Path, stranger: str):
    out = tmp_path / "bundle"
    bundle_from_files(onnx_dir, out)
    (out / stranger).parent.mkdir(exist_ok=True)
    (out / stranger).write_text("years of work")
    with pytest.raises(SetupError, match=f"holds {stranger.partition('/')[0]}, which is no part of the bundle"):
        bundle_from_files(onnx_dir, out)
    assert (out / stranger).read_text() == "years of work"


def test_a_manifest_of_something_else_does_not_make_a_bundle(onnx_dir: Path, tmp_path: Path):
    out = tmp_path / "web-extension"
    out.mkdir()
    (out / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(SetupError, match="is not a bundle"):
        bundle_from_files(onnx_dir, out)
    assert leftovers(out) == ["manifest.json"]


def test_a_bundle_is_replaced_through_a_link_and_where_one_stands(
    onnx_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, link = tmp_path / "bundle", tmp_path / "link"
    out.mkdir()
    link.symlink_to(out)
    for place in (Path(), link, Path()):
        monkeypatch.chdir(out)
        bundle_from_files(onnx_dir, place)
        assert load_bundle(out).manifest.model_id == "mini"
        (out / "timing.sm70.trt10.4.0.cache").write_bytes(b"what crossrank engine leaves is no stranger")
    assert link.is_symlink()
    assert leftovers(tmp_path) == ["bundle", "link", "mini"]


def test_what_cannot_be_moved_aside_is_left_as_it_was(onnx_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "bundle"
    bundle_from_files(onnx_dir, out)
    before, rename = leftovers(tmp_path), Path.rename

    def fail_at_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(16, "busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_new)
    with pytest.raises(SetupError, match="cannot be written"):
        bundle_from_files(onnx_dir, out)
    monkeypatch.undo()
    assert load_bundle(out).manifest.model_id == "mini"
    assert leftovers(tmp_path) == before


def test_logits_that_are_not_numbers_are_beyond_every_threshold():
    samples = parity.SampleSet("builtin", [SampleGroup("q", ["a", "b"], ["0", "1"])], None, np.zeros(2, np.float32))
    agreement = parity.compare(samples, np.array([np.nan, 0], np.float32))
    with pytest.raises(SetupError, match="int8 graph is not the source model"):
        parity.check(agreement, "int8", "the pairs")


def test_a_tie_broken_by_rounding_is_reported_and_not_refused():
    samples = parity.SampleSet("builtin", [SampleGroup("q", ["a", "a"], ["0", "1"])], None, np.zeros(2, np.float32))
    agreement = parity.compare(samples, np.array([1e-7, 0], np.float32))
    assert agreement.max_abs_delta > 0
    parity.check(agreement, "fp32", "the pairs")


# --- safetensors, through PyTorch -------------------------------------------------------------------------------


@TORCH_WARNINGS
def test_several_labels_are_exported_where_one_is_named(checkpoint: Path, tmp_path: Path, builtin: Bundle):
    with pytest.raises(ModelSourceError, match=r"3 logits a pair"):
        export_model(find_source(checkpoint), tmp_path / "bundle", ExportOptions())
    options = ExportOptions(["fp32", "fp16"], max_length=64, label=2)
    bundle = export_model(find_source(checkpoint), tmp_path / "bundle", options)
    manifest = bundle.manifest
    assert (manifest.num_labels, manifest.label, manifest.activation) == (3, 2, "identity")
    assert manifest.graph("fp32").parity["reference"].startswith("pytorch")
    names = [tensor.name for tensor in manifest.graph("fp32").inputs]
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    batch = PairEncoder(bundle).encode("naïve café", ["one two three", "bm25 " * 200]).batch
    assert batch.lengths.max() == 64
    np.testing.assert_allclose(
        OnnxRuntimeEngine(bundle, threads=1).infer(batch), torch_logits(checkpoint, batch)[:, 2], atol=1e-4
    )


def torch_logits(directory: Path, batch: Any) -> np.ndarray:
    from crossrank_export.convert import checkpoint_scorer, load_checkpoint

    return checkpoint_scorer(load_checkpoint(directory))(batch)


@TORCH_WARNINGS
def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path, builtin: Bundle):
    from safetensors.numpy import load_file, save_file

    directory = write_checkpoint(tmp_path / "headless", builtin, num_labels=1)
    weights = load_file(directory / "model.safetensors")
    save_file(
        {name: array for name, array in weights.items() if not name.startswith("classifier")},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelSourceError, match=r"lacks weights \(classifier\.bias, classifier\.weight\)"):
        export_model(find_source(directory), tmp_path / "bundle", ExportOptions())


@TORCH_WARNINGS
def test_an_opset_that_is_asked_for_is_the_one_written(checkpoint: Path, tmp_path: Path):
    options = ExportOptions(max_length=32, label=0, opset=18)
    bundle = export_model(find_source(checkpoint), tmp_path / "bundle", options)
    assert onnx_ir.load(bundle.file("model.onnx")).opset_imports[""] == 18


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_reports_parity_on_the_users_pairs(onnx_dir: Path, tmp_path: Path):
    pairs = tmp_path / "dev.jsonl"
    row = {"query": "what is bm25", "documents": ["BM25 ranks.", "A cat sat."], "judgments": {"0": 1}}
    pairs.write_text(json.dumps(row) + "\n")
    card = tmp_path / "card.md"
    card.write_text("# mine\n")
    arguments = ["export", str(onnx_dir), "--out", str(tmp_path / "bundle"), "--from", "onnx"]
    result = CliRunner().invoke(cli, [*arguments, "--pairs", str(pairs), "--card", str(card)])
    assert result.exit_code == 0, result.output
    assert "NDCG@10 1.0000 -> 1.0000" in result.stderr
    assert result.stdout.strip() == str(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.graph("fp32").parity["dev.jsonl"]["pairs"] == 2
    assert bundle.file("README.md").read_text() == "# mine\n"


def test_an_unknown_precision_is_refused_by_name(onnx_dir: Path, tmp_path: Path):
    result = CliRunner().invoke(cli, ["export", str(onnx_dir), "--out", str(tmp_path / "b"), "--precision", "fp32,fp8"])
    assert result.exit_code == 2
    assert "'fp8' is not one of fp32, fp16, int8" in result.output


def test_a_hub_id_is_fetched_verified_and_exported(onnx_dir: Path, tmp_path: Path):
    names = ("config.json", "tokenizer.json", "onnx/model.onnx")
    with FakeHub() as hub:
        hub.repositories["owner/mini"] = Repository({name: (onnx_dir / name).read_bytes() for name in names})
        # huggingface_hub reads HF_ENDPOINT when imported, so a process of its own is asked.
        done = subprocess.run(
            [sys.executable, "-m", "crossrank_server", "export", "owner/mini", "--out", str(tmp_path / "bundle")],
            env={**_environment(tmp_path), "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    source = load_bundle(tmp_path / "bundle").manifest.source
    assert (source.kind, source.name, source.revision) == ("hub", "owner/mini", "c0ffee" + "0" * 34)


@pytest.mark.parametrize(("kind", "graph"), [("safetensors", "model.safetensors"), ("onnx", "onnx/model.onnx")])
def test_a_hub_repository_gives_only_the_files_of_the_kind_that_is_read(
    tmp_path: Path, kind: str, graph: str, builtin: Bundle
):
    program = f"""
from pathlib import Path
from crossrank_export.hub_source import fetch_source
files = fetch_source("owner/both", Path({str(tmp_path / "files")!r}), {kind!r})
print(files.kind, *sorted(files.source.sha256))
"""
    write_config(tmp_path)
    files = {
        "config.json": (tmp_path / "config.json").read_bytes(),
        "tokenizer.json": builtin.file("tokenizer.json").read_bytes(),
        **{name: name.encode() for name in ("README.md", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx")},
    }
    with FakeHub() as hub:
        hub.repositories["owner/both"] = Repository(files)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**_environment(tmp_path), "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [kind, *sorted(["config.json", "tokenizer.json", "README.md", graph])]


def _environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_HOME": str(tmp_path / "hf-home")}
