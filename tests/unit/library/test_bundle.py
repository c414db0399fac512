"""A bundle that does not fit its manifest is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from crossrank.bundles.bundle import Bundle, load_bundle, sha256_of, write_manifest
from crossrank.engines.select import make_engine
from crossrank.errors import BundleError, SetupError
from crossrank.text.encoding import PairEncoder

Edit = Callable[[Callable[[dict[str, Any]], None]], Path]


@pytest.fixture
def copy(builtin: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(builtin.path, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def edit(copy: Path) -> Edit:
    def apply(change: Callable[[dict[str, Any]], None]) -> Path:
        manifest = json.loads((copy / "manifest.json").read_text())
        change(manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest))
        return copy

    return apply


def test_the_builtin_bundle_fits_its_manifest(builtin: Bundle) -> None:
    manifest = builtin.manifest
    assert manifest.model_id == "crossrank-mini"
    assert manifest.num_labels == 1
    assert manifest.max_length == 512
    assert manifest.architecture.layers == 2
    assert manifest.architecture.hidden == 128
    assert {path.name for path in builtin.path.iterdir()} == {*manifest.files, "manifest.json"}


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        load_bundle(tmp_path)


def test_a_manifest_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json: .*Invalid JSON"):
        load_bundle(copy)


def test_a_damaged_file_is_refused_with_both_hashes(copy: Path, builtin: Bundle) -> None:
    path = copy / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    expected = builtin.manifest.files["tokenizer.json"]
    with pytest.raises(BundleError, match=rf"sha256 {sha256_of(path)}, the manifest says {expected}; export"):
        load_bundle(copy)


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is named in manifest\.json but is not there"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=99), "format 99 is not the format 1"),
        (lambda m: m.pop("max_length"), "max_length: Field required"),
        (lambda m: m.update(max_length=3), "max_length 3 leaves no room for text"),
        (lambda m: m.update(label=1), "label 1 is none of the 1 labels"),
        (lambda m: m.update(label=-1), "label -1 is none of the 1 labels"),
        (lambda m: m.update(graphs=[]), "graphs: List should have at least 1 item"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda m: m["files"].pop("tokenizer.json"), "files has no sha256 for tokenizer.json"),
        (lambda m: m.update(activation=1), "activation: Input should be a valid string"),
        (
            lambda m: m["files"].update({"../escape": "0" * 64}),
            r"\.\./escape is named in manifest.json but is not there",
        ),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_field(
    edit: Edit, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        load_bundle(edit(change))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_refuses_a_graph_whose_inputs_are_not_those_of_the_manifest(edit: Edit, engine: Any) -> None:
    bundle = load_bundle(edit(lambda m: m["graphs"][0]["inputs"].pop()))
    with pytest.raises(BundleError, match=r"the graph has inputs .* the manifest says"):
        make_engine(bundle, engine, "fp32")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["graphs"][0]["inputs"][0].update(dtype="int64"), "the graph has inputs .* the manifest says"),
        (lambda m: m["graphs"][0]["output"].update(name="other"), "the graph has outputs .* the manifest says other"),
        (lambda m: m.update(num_labels=3, weights=None), "the graph has outputs .* the manifest says logits with 3"),
        (lambda m: m.update(max_length=2048), "cannot score a pair of 1024 tokens, of max_length 2048"),
    ],
)
def test_an_engine_refuses_a_graph_that_does_not_fit_the_manifest(
    edit: Edit, engine: Any, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    bundle = load_bundle(edit(change))
    with pytest.raises(BundleError, match=message):
        make_engine(bundle, engine, "fp32")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["pair_template"].update(start=[99_999]),
        lambda m: m["architecture"].update(vocab_size=30_521),
    ],
)
def test_token_ids_without_an_embedding_are_refused_at_start(
    edit: Edit, change: Callable[[dict[str, Any]], None]
) -> None:
    bundle = load_bundle(edit(change))
    with pytest.raises(BundleError, match=r"token ids reach from .* the model has embeddings for 0 to"):
        PairEncoder(bundle)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_refuses_a_graph_that_it_cannot_read(copy: Path, edit: Edit, engine: Any) -> None:
    (copy / "model.onnx").write_bytes(b"not onnx")
    bundle = load_bundle(edit(lambda m: m["files"].update({"model.onnx": sha256_of(copy / "model.onnx")})))
    with pytest.raises(BundleError, match=r"cannot load .*model\.onnx"):
        make_engine(bundle, engine, "fp32")


def test_a_precision_that_the_bundle_lacks_is_refused_naming_those_it_has(builtin: Bundle) -> None:
    with pytest.raises(SetupError, match=r"has no int8 graph, only fp32: export it with --precision int8"):
        make_engine(builtin, "onnxruntime", "int8")


def with_graph_for_onnxruntime(manifest: dict[str, Any]) -> None:
    """Two fp16 graphs, the one of ONNX Runtime's operators first; their content is not looked at."""
    fp32 = manifest["graphs"][0]
    manifest["graphs"] += [
        fp32 | {"precision": "fp16", "operators": "onnxruntime"},
        fp32 | {"precision": "fp16", "operators": "onnx"},
    ]


def test_a_manifest_that_does_not_say_which_operators_has_standard_ones(edit: Edit) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        for graph in manifest["graphs"]:
            graph.pop("operators", None)

    bundle = load_bundle(edit(forget))
    assert [graph.operators for graph in bundle.manifest.graphs] == ["onnx"]
    assert bundle.manifest.graph("fp32", "onnxruntime") == bundle.manifest.graph("fp32")


def test_graphs_of_onnx_runtimes_operators_are_given_to_those_who_ask_for_them(edit: Edit) -> None:
    manifest = load_bundle(edit(with_graph_for_onnxruntime)).manifest
    assert manifest.graph("fp16").operators == "onnx"
    assert manifest.graph("fp16", "onnxruntime").operators == "onnxruntime"
    assert manifest.graph("fp32", "onnxruntime").operators == "onnx"


def test_a_graph_of_onnx_runtimes_operators_alone_is_no_fp16_for_others(edit: Edit) -> None:
    def change(manifest: dict[str, Any]) -> None:
        with_graph_for_onnxruntime(manifest)
        manifest["graphs"].pop()

    manifest = load_bundle(edit(change)).manifest
    with pytest.raises(BundleError, match="has no fp16 graph, only fp32: export it"):
        manifest.graph("fp16")


def test_onnxruntime_has_no_bf16_and_says_what_has(builtin: Bundle) -> None:
    with pytest.raises(SetupError, match="not bf16: use --precision auto, or --engine native or openvino"):
        make_engine(builtin, "onnxruntime", "bf16")


def test_an_unreadable_tokenizer_is_refused(copy: Path, edit: Edit) -> None:
    (copy / "tokenizer.json").write_text("{}")
    bundle = load_bundle(edit(lambda m: m["files"].update({"tokenizer.json": sha256_of(copy / "tokenizer.json")})))
    with pytest.raises(BundleError, match="is not a readable tokenizer"):
        PairEncoder(bundle)


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph([], "empty", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    )
    onnx.save(model, tmp_path / "m.onnx")
    before = sha256_of(tmp_path / "m.onnx")
    with (tmp_path / "m.onnx").open("ab") as file:
        file.write(b"\x00" * 3_000_000)
    assert sha256_of(tmp_path / "m.onnx") != before


def test_the_side_of_truncation_is_written_where_it_is_not_the_usual_one(copy: Path) -> None:
    manifest = load_bundle(copy).manifest
    assert manifest.truncation_side == "right"
    assert "truncation_side" not in json.loads(manifest.model_dump_json())  # earlier versions know no such field
    write_manifest(copy, manifest.model_copy(update={"truncation_side": "left"}))
    assert load_bundle(copy).manifest.truncation_side == "left"
