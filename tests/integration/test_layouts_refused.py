"""What cannot be read is refused before the work begins, by `export` and `serve` alike: what it is, why, what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from crossrank.bundles.bundle import Bundle, load_bundle, write_manifest
from crossrank.errors import BundleError, ModelSourceError
from crossrank.resolve import resolve_model
from crossrank_server.cli import cli
from tests.fake_hub import FakeHub, Repository
from tests.model_layouts import (
    graph_of,
    write_checkpoint,
    write_external,
    write_hub_cache,
    write_onnx,
    write_small_files,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


OTHER_FAMILY = {"model_type": "ernie", "architectures": ["ErnieForSequenceClassification"]}


def said_by_export(source: Path, *args: str) -> str:
    out = source.parent / "bundle"
    result = CliRunner().invoke(cli, ["export", str(source), "--out", str(out), *args])
    assert result.exit_code == 1
    assert not out.exists()
    return str(result.exception)


def said_by_serve(source: Path) -> str:
    with pytest.raises((ModelSourceError, BundleError)) as caught:
        resolve_model(str(source), cache_dir=source.parent / "cache")
    return caught.value.message


def write_adapter(directory: Path) -> Path:
    directory.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "cross-encoder/ms-marco-MiniLM-L6-v2"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


def test_an_adapter_names_its_base(tmp_path: Path):
    source = write_adapter(tmp_path / "m")
    for said in (said_by_export(source), said_by_serve(source)):
        assert said.startswith(
            f"{source} is an adapter of cross-encoder/ms-marco-MiniLM-L6-v2, not a model: merge the two"
        )


def test_an_adapter_on_the_hub_names_its_base(tmp_path: Path):
    source = write_adapter(tmp_path / "m")
    with FakeHub() as hub:
        hub.repositories["owner/lora"] = Repository({path.name: path.read_bytes() for path in source.iterdir()})
        with pytest.raises(ModelSourceError, match=r"^owner/lora is an adapter of cross-encoder/ms-marco-MiniLM-L6-v2"):
            resolve_model("owner/lora", cache_dir=tmp_path / "cache", endpoint=hub.url)
        assert not hub.count("GET", "adapter_model.safetensors")


@pytest.mark.parametrize("config", [{}, {"architectures": None, "model_type": "new"}])
def test_a_model_with_code_of_its_own_is_refused(
    tmp_path: Path, config: dict[str, None], monkeypatch: pytest.MonkeyPatch
):
    classes = {
        "AutoConfig": "configuration_bert.JinaBertConfig",
        "AutoModelForSequenceClassification": "modeling_bert.JinaBertForSequenceClassification",
    }
    source = write_checkpoint(
        tmp_path / "m", **{"auto_map": classes, "architectures": ["JinaBertForSequenceClassification"], **config}
    )
    said = [said_by_export(source), said_by_serve(source)]
    monkeypatch.setattr("crossrank.resolve.torch_is_installed", lambda: False)
    for sentence in (*said, said_by_serve(source)):
        assert "needs its own code (class JinaBertForSequenceClassification), which is never run here" in sentence


def test_tokens_without_embeddings_are_counted(tmp_path: Path):
    from tokenizers import Tokenizer

    source = write_checkpoint(tmp_path / "m")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens(["[Q]", "c++", "covid-19"])
    tokenizer.save(str(source / "tokenizer.json"))
    for said in (said_by_export(source), said_by_serve(source)):
        assert "has token ids up to 402, the model has 400 embeddings: 3 tokens, the first '[Q]', were added" in said
    shutil.copytree(source, tmp_path / "onnx")
    write_onnx(tmp_path / "onnx")
    shutil.copyfile(source / "tokenizer.json", tmp_path / "onnx/tokenizer.json")
    assert "3 tokens, the first '[Q]', were added" in said_by_serve(tmp_path / "onnx")


def quantize_dynamically(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)


def quantize_statically(source: Path, target: Path) -> None:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Once(CalibrationDataReader):
        def __init__(self) -> None:
            names = ("input_ids", "attention_mask", "token_type_ids")
            self.feeds = iter([{name: np.ones((1, 9), np.int64) for name in names}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(str(source), str(target), Once())


def quantize_to_four_bits(source: Path, target: Path) -> None:
    model = onnx.load(source)
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "MatMulNBits", "com.microsoft"
    onnx.save(model, target)


@pytest.mark.parametrize("quantize", [quantize_dynamically, quantize_statically, quantize_to_four_bits])
def test_a_quantized_graph_is_named_for_what_it_is(tmp_path: Path, quantize: Callable[[Path, Path], None]):
    source = write_small_files(tmp_path / "m")
    (source / "onnx").mkdir()
    onnx.save(graph_of(), tmp_path / "full.onnx")
    quantize(tmp_path / "full.onnx", source / "onnx/model_quantized.onnx")
    how = "dynamically to int8" if quantize is quantize_dynamically else "to few bits"
    for said in (said_by_export(source), said_by_serve(source)):
        assert f"onnx/model_quantized.onnx is quantized {how} (" in said
        assert "Give the model's fp32 graph (onnx/model.onnx) or its safetensors" in said


def test_a_bf16_graph_is_refused(tmp_path: Path):
    source = write_small_files(tmp_path / "m")
    model = graph_of()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.data_type = onnx.TensorProto.BFLOAT16
            tensor.raw_data = b"".join(tensor.raw_data[i + 2 : i + 4] for i in range(0, len(tensor.raw_data), 4))
    onnx.save(model, source / "model.onnx")
    for said in (said_by_export(source), said_by_serve(source)):
        assert "has weights of type BFLOAT16, which ONNX Runtime does not compute with on CPUs" in said


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.gguf", "has its weights as GGUF only (model.gguf)"),
        ("openvino/openvino_model.xml", "has no weights: looked for model.safetensors, model.safetensors.index"),
        ("openvino_model.xml", "has its weights as OpenVINO IR only (openvino_model.xml)"),
        ("tf_model.h5", "has its weights as TensorFlow only (tf_model.h5)"),
        ("pytorch_model.bin", "has only pickled weights (pytorch_model.bin)"),
    ],
)
def test_weights_of_other_frameworks_are_named(tmp_path: Path, file: str, words: str):
    source = write_small_files(tmp_path / "m")
    (source / file).parent.mkdir(exist_ok=True)
    (source / file).write_bytes(b"weights")
    assert words in said_by_serve(source)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["Transformer", "Pooling", "Dense"], "is a chain of modules (Transformer, Pooling, Dense), of which only a"),
        (["Transformer", "LogitScore"], "is a chain of modules (Transformer, LogitScore)"),
        ([], "modules.json lists no modules: download it again"),
        (None, "lists no modules"),
    ],
)
def test_a_chain_of_modules_is_named(tmp_path: Path, modules: list[str] | None, words: str):
    source = write_checkpoint(tmp_path / "m")
    entries = [{"idx": i, "name": str(i), "path": "", "type": f"x.y.{name}"} for i, name in enumerate(modules or [])]
    (source / "modules.json").write_text(json.dumps([1] if modules is None else entries))
    for said in (said_by_export(source), said_by_serve(source)):
        assert words in said


def test_a_transformer_in_a_folder_is_pointed_at(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m")
    (source / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": "0_Transformer"}]))
    for said in (said_by_export(source), said_by_serve(source)):
        assert f"in the folder 0_Transformer: give {source / '0_Transformer'}" in said


def test_a_default_prompt_is_not_left_out_silently(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m")
    settings = {"prompts": {"web": "Given a query: "}, "default_prompt_name": "web"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(settings))
    for said in (said_by_export(source), said_by_serve(source)):
        assert "the default prompt 'web' belongs before every query" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of Git LFS, not the file",
        ),
        (b"", "is empty: download it again"),
        (b"<!DOCTYPE html><html>not found</html>", "is a web page, not the file: download it again"),
    ],
)
@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json"])
def test_what_stands_for_a_file_is_named(tmp_path: Path, name: str, content: bytes, words: str):
    source = write_external(tmp_path / "m")
    (source / name).write_bytes(content)
    for said in (said_by_export(source), said_by_serve(source)):
        assert said.startswith(f"{source / name} {words}")


def test_damaged_weights_are_to_be_downloaded_again(tmp_path: Path):
    source = write_external(tmp_path / "m")
    data = source / "onnx/model.onnx_data"
    data.write_bytes(data.read_bytes()[:-4])
    for said in (said_by_export(source), said_by_serve(source)):
        assert re.search(r"model\.onnx_data has \d+ bytes, onnx/model\.onnx reads \d+ of it: download it again", said)
    (source / "onnx/model.onnx").write_bytes(b"no graph at all")
    for said in (said_by_export(source), said_by_serve(source)):
        assert "onnx/model.onnx is not a readable ONNX graph (" in said
        assert said.endswith("): download it again")
    checkpoint = write_checkpoint(tmp_path / "c")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for said in (said_by_export(checkpoint), said_by_serve(checkpoint)):
        assert said.endswith("): download it again")


def test_of_several_graphs_with_unlike_names_none_is_guessed(tmp_path: Path):
    source = write_onnx(tmp_path / "m", "a.onnx")
    shutil.copyfile(source / "a.onnx", source / "b.onnx")
    for said in (said_by_export(source), said_by_serve(source)):
        assert "has several ONNX graphs, none of them called model.onnx (a.onnx, b.onnx): give the path" in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": 5}, "architectures is 5, not a list of class names"),
        (
            {"architectures": "BertForSequenceClassification"},
            "architectures is BertForSequenceClassification, not a list",
        ),
        ({"type_vocab_size": "two"}, "type_vocab_size is two, not a whole number of at least 0"),
        ({"num_labels": 0}, "num_labels is 0, not a whole number of at least 1"),
        ({"hidden_size": -128}, "hidden_size is -128, not a whole number of at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number of at least 1"),
        ({"model_type": 7}, "model_type is 7, not the name of a family"),
    ],
)
def test_a_config_of_other_kinds_is_named_by_its_field(tmp_path: Path, fields: dict[str, object], words: str):
    source = write_onnx(tmp_path / "m")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))
    for said in (said_by_export(source), said_by_serve(source)):
        assert words in said


def test_what_the_hubs_cache_holds_instead_is_said_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("other", "lora"):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        snapshot = repository / "snapshots" / ("0" * 40)
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(snapshot.name)
        write_checkpoint(snapshot, **OTHER_FAMILY) if name == "other" else write_adapter(snapshot)
    monkeypatch.setattr("crossrank.resolve.torch_is_installed", lambda: False)
    for name, words in (
        ("other", r"^someone/other: model_type 'ernie' is none of bert, .* pip install 'crossrank\[export\]'"),
        ("lora", "someone/lora is an adapter of cross-encoder/ms-marco-MiniLM-L6-v2"),
    ):
        with pytest.raises(ModelSourceError, match=words):
            resolve_model(f"someone/{name}", cache_dir=tmp_path / "cache", offline=True)


# --- what lies elsewhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../../secret.bin"])
def test_external_data_outside_of_the_model_are_not_read(tmp_path: Path, location: str):
    (tmp_path / "secret.bin").write_bytes(bytes(10_000_000))
    source = write_external(tmp_path / "m")
    model = onnx.load(source / "onnx/model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, source / "onnx/model.onnx")
    for said in (said_by_export(source), said_by_serve(source)):
        assert f"its external data {location!r} lies outside of the model" in said


def test_external_data_that_are_not_there_are_named(tmp_path: Path):
    source = write_external(tmp_path / "m")
    (source / "onnx/model.onnx_data").unlink()
    for said in (said_by_export(source), said_by_serve(source)):
        assert "its external data 'model.onnx_data' is not there: download the whole model" in said


def test_external_data_by_a_link_out_of_the_model_are_not_read(tmp_path: Path):
    source = write_external(tmp_path / "m")
    (source / "onnx/model.onnx_data").rename(tmp_path / "elsewhere")
    (source / "onnx/model.onnx_data").symlink_to(tmp_path / "elsewhere")
    for said in (said_by_export(source), said_by_serve(source)):
        assert f"is a link to {tmp_path / 'elsewhere'}, outside of the model" in said


@pytest.mark.parametrize("name", ["tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"])
def test_a_snapshots_link_out_of_its_repository_is_not_followed(tmp_path: Path, name: str):
    snapshot = write_hub_cache(tmp_path / "hf")
    target = (snapshot / name).resolve()
    (snapshot / name).unlink()
    target.rename(tmp_path / "elsewhere")
    (snapshot / name).symlink_to(tmp_path / "elsewhere")
    for said in (said_by_export(snapshot), said_by_serve(snapshot)):
        assert f"{name} is a link to {tmp_path / 'elsewhere'}, outside of its repository in the hub's cache" in said


# --- bundles of before ------------------------------------------------------------------------------------------


def test_a_bundle_of_several_labels_whose_weights_were_not_read_back_is_refused_by_name(
    tmp_path: Path, builtin: Bundle
):
    """Such bundles were written with the wrong column of the classifier, and said that they agreed."""
    shutil.copytree(builtin.path, tmp_path / "old")
    write_manifest(tmp_path / "old", builtin.manifest.model_copy(update={"num_labels": 2, "label": 1}))
    with pytest.raises(BundleError, match=r"crossrank-mini has 2 labels, and its weights\.safetensors is of a version"):
        load_bundle(tmp_path / "old")
    without = builtin.manifest.model_copy(update={"num_labels": 2, "label": 1, "weights": None})
    write_manifest(tmp_path / "old", without)
    assert load_bundle(tmp_path / "old").manifest.label == 1


def test_weights_are_written_in_the_order_of_their_elements(tmp_path: Path):
    import numpy as np
    from safetensors.numpy import load_file

    from crossrank.native.weights import write_arrays

    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"column": table[:, 1], "transposed": table.T, "reversed": table[::-1], "wide": table.astype(np.float64)}
    write_arrays(tmp_path / "views.safetensors", views)
    read = load_file(tmp_path / "views.safetensors")
    for name, view in views.items():
        np.testing.assert_array_equal(read[name], view)
    # What it is for: the library itself writes the memory under a view.
    save_file(views, tmp_path / "plain.safetensors")
    assert not np.array_equal(load_file(tmp_path / "plain.safetensors")["column"], views["column"])
