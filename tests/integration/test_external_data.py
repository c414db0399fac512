"""Models whose weights lie beside their graphs: nothing is lost, every engine serves them, and little memory is used.

Most tests lower the bound from which weights are written outside, so that small models are what large ones are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from crossrank.bundles.bundle import Bundle, load_bundle
from crossrank.checkpoints.config import read_config
from crossrank.checkpoints.tokens import read_tokens
from crossrank.engines.select import make_engine
from crossrank.errors import BundleError, ModelSourceError
from crossrank.native.padding import pad
from crossrank.native.weights import WORD
from crossrank.packed import PairBatch
from crossrank.text.encoding import PairEncoder
from crossrank_client import Client
from crossrank_export.convert import checkpoint_scorer, load_checkpoint
from crossrank_export.graph_files import INLINE_BYTES
from crossrank_export.graphs import load_graph
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.sources import find_source
from crossrank_export.triton.spec import make_spec
from crossrank_export.triton.write import write_repository
from tests.checkpoints import SMALL, build_model, write_checkpoint, write_tokenizer
from tests.server_process import CROSSRANK, running_server

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # of the tracer
OUTSIDE = ExportOptions(["fp32", "fp16", "int8"], documents=2, inline_bytes=0)
INSIDE = ExportOptions(["fp32", "fp16", "int8"], documents=2)
VOCABULARY = 600
QUERY, DOCUMENTS = "w12 w7 a", ["w7 w300 w12", "w9", "w55 b c w12 w12 w81 w4", "w200 w201"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a shape that all engines serve."""
    return write_checkpoint(tmp_path_factory.mktemp("bert") / "tiny", "TinyBERT-L2", vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def outside(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(find_source(checkpoint), tmp_path_factory.mktemp("outside") / "bundle", OUTSIDE)


@pytest.fixture(scope="module")
def inside(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(find_source(checkpoint), tmp_path_factory.mktemp("inside") / "bundle", INSIDE)


def pairs(bundle: Bundle) -> PairBatch:
    return PairEncoder(bundle).encode(QUERY, DOCUMENTS).batch


def logits_of_pytorch(checkpoint: Path) -> Any:
    """Scores of the pairs by the checkpoint itself, tokenized by the reference implementation."""
    tokens = read_tokens(checkpoint, read_config(checkpoint), None)
    batch = tokens.encode([(QUERY, document) for document in DOCUMENTS])
    return checkpoint_scorer(load_checkpoint(checkpoint))(batch)[:, 0]


def contents(path: Path) -> list[str]:
    """The hashes of all weights of a graph, whatever they are called."""
    values = onnx_ir.load(path).graph.initializers.values()
    tensors = [value.const_value for value in values if value.const_value is not None]
    return sorted(hashlib.sha256(tensor.tobytes()).hexdigest() for tensor in tensors if tensor.nbytes > 256)


def test_the_weights_are_all_in_the_file_beside_the_graph(outside: Bundle, inside: Bundle):
    names = [graph.files for graph in outside.manifest.graphs]
    assert names == [[name, f"{name}_data"] for name in (graph.file for graph in inside.manifest.graphs)]
    assert len(names) == 4
    for graph, whole in zip(outside.manifest.graphs, inside.manifest.graphs, strict=True):
        assert contents(outside.file(graph.file)) == contents(inside.file(whole.file))
        assert outside.file(graph.file).stat().st_size < 100_000
        assert set(graph.files) <= outside.manifest.files.keys()
    # Where the tracer has no weights, the pass that folds constants transposes them.
    reports = [[entry for entry in bundle.manifest.passes if entry["name"] != "clean"] for bundle in (outside, inside)]
    assert reports[0] == reports[1]
    assert outside.manifest.cost["after"] == inside.manifest.cost["after"]


def test_a_bundle_of_whole_graphs_says_nothing_of_other_files(inside: Bundle):
    assert all(graph.data_file is None for graph in inside.manifest.graphs)
    assert b"data_file" not in inside.file("manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("auto", "fp32"), ("native", "fp32"), ("openvino", "fp32"), ("onnxruntime", "fp32")],
)
def test_every_engine_gives_the_scores_of_pytorch(checkpoint: Path, outside: Bundle, engine: Any, precision: Any):
    expected = logits_of_pytorch(checkpoint)
    assert np.ptp(expected) > 0.1
    scores = make_engine(outside, engine, precision, threads=1).infer(pairs(outside))
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_other_variants_are_those_of_a_bundle_of_whole_graphs(outside: Bundle, inside: Bundle, precision: Any):
    scores = [
        make_engine(bundle, "onnxruntime", precision, threads=1).infer(pairs(bundle)) for bundle in (outside, inside)
    ]
    np.testing.assert_array_equal(*scores)


def test_every_product_of_the_int8_graph_is_quantized(outside: Bundle):
    products = {"fp32": ("MatMul", "Gemm"), "int8": ("MatMulInteger",)}
    found = {}
    for precision, operators in products.items():
        graph = onnx_ir.load(outside.file(outside.manifest.graph(precision).file)).graph  # type: ignore[arg-type]
        nodes = [node for node in graph if node.op_type in operators]
        found[precision] = sum(node.inputs[1] is not None and len(node.inputs[1].shape or ()) == 2 for node in nodes)
    assert found["int8"] == found["fp32"] > 0


def test_the_native_engine_reads_the_words_from_the_file_beside_the_graph(outside: Bundle, inside: Bundle):
    assert outside.manifest.weights is not None
    assert inside.manifest.weights is not None
    there, whole = outside.manifest.weights.shared[WORD], inside.manifest.weights.shared[WORD]
    assert (there.file, whole.file) == ("model.onnx_data", "model.onnx")
    words = [
        np.fromfile(bundle.file(tensor.file), "<f4", VOCABULARY * 128, offset=tensor.offset)
        for bundle, tensor in ((outside, there), (inside, whole))
    ]
    np.testing.assert_array_equal(*words)


@pytest.mark.parametrize("name", ["electra", "roberta", "xlm-roberta", "mpnet"])
def test_every_family_is_traced_without_its_weights(name: str, tmp_path: Path):
    # More words than a table has rows while the tracer runs.
    source = write_checkpoint(tmp_path / "source", name, **{**SMALL[name], "vocab_size": 1500})
    options = ExportOptions(documents=2, inline_bytes=0)
    bundle = export_model(find_source(source), tmp_path / "bundle", options)
    assert bundle.manifest.graph("fp32").data_file == "model.onnx_data"
    whole = export_model(find_source(source), tmp_path / "whole", ExportOptions(documents=2))
    assert bundle.manifest.cost["after"] == whole.manifest.cost["after"]
    scores = make_engine(bundle, "onnxruntime", "fp32", threads=1).infer(pairs(bundle))
    np.testing.assert_allclose(scores, logits_of_pytorch(source), atol=1e-4, rtol=0)


def test_a_changed_byte_of_the_weights_is_found(outside: Bundle, tmp_path: Path):
    shutil.copytree(outside.path, tmp_path / "copy")
    with (tmp_path / "copy" / "model.onnx_data").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.onnx_data has sha256"):
        load_bundle(tmp_path / "copy")


def test_a_manifest_that_does_not_hash_the_weights_is_refused(outside: Bundle, tmp_path: Path):
    shutil.copytree(outside.path, tmp_path / "copy")
    manifest = json.loads(outside.file("manifest.json").read_bytes())
    del manifest["files"]["model.int8.onnx_data"]
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"no sha256 for model\.int8\.onnx_data"):
        load_bundle(tmp_path / "copy")


def test_a_bundle_of_whole_graphs_replaces_one_with_weights_outside(checkpoint: Path, outside: Bundle, tmp_path: Path):
    out = tmp_path / "bundle"
    shutil.copytree(outside.path, out)
    export_model(find_source(checkpoint), out, ExportOptions(documents=2))
    assert [path.name for path in out.iterdir() if path.name.endswith("_data")] == []


def test_a_triton_repository_has_the_weights_beside_the_graph(outside: Bundle, tmp_path: Path):
    spec = make_spec(outside.manifest, "onnxruntime-gpu")
    engine, _ = write_repository(outside, spec, tmp_path / "out")
    ids, types, mask = pad(pairs(outside), 32, outside.manifest.pad_token_id)
    feeds = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    paths = (engine / "1" / "model.onnx", outside.file(spec.graph.file))
    sessions = [onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in paths]
    copied, original = (session.run(["logits"], feeds)[0] for session in sessions)
    np.testing.assert_array_equal(copied, original)
    assert spec.graph.data_file == "model.fp16.onnx_data"


@pytest.mark.parametrize("options", [OUTSIDE, INSIDE], ids=["outside", "inside"])
def test_a_graph_with_weights_outside_is_exported_again(
    options: ExportOptions, outside: Bundle, checkpoint: Path, tmp_path: Path
):
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    (source / "model.safetensors").unlink()
    for name in outside.manifest.graph("fp32").files:
        shutil.copy(outside.file(name), source / name)
    bundle = export_model(find_source(source), tmp_path / "bundle", options)
    scores = make_engine(bundle, "openvino", "fp32", threads=1).infer(pairs(bundle))
    np.testing.assert_allclose(scores, logits_of_pytorch(checkpoint), atol=1e-4, rtol=0)


def test_an_opset_is_refused_for_more_weights_than_the_converter_takes(tmp_path: Path):
    size = INLINE_BYTES + 4
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(size)  # takes no room on disk
    weights = onnx_ir.ExternalTensor(
        "weights", 0, size, onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape([size // 4]), name="w", base_dir=tmp_path
    )
    value = onnx_ir.Value(name="w", const_value=weights, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    graph = onnx_ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 17}, name="large")
    onnx_ir.save(onnx_ir.Model(graph, ir_version=8), tmp_path / "model.onnx")
    assert load_graph(tmp_path / "model.onnx", 17).graph.initializers["w"].const_value is not None
    with pytest.raises(ModelSourceError, match=r"opset 17 and 2\.1 GB of weights.* takes 2\.1 GB: omit --opset"):
        load_graph(tmp_path / "model.onnx", 18)


# --- more than 2 GB, in truth -------------------------------------------------------------------------------------

_WORDS = 4_400_000
_NEEDS_DISK, _NEEDS_MEMORY = 8 << 30, 8 << 30


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_of_more_than_2_gb_is_exported_and_served_in_little_memory(tmp_path: Path):
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached_bytes()
    if shutil.disk_usage(tmp_path).free < _NEEDS_DISK or available < _NEEDS_MEMORY:
        pytest.skip(f"{_NEEDS_DISK >> 30} GiB of disk and {_NEEDS_MEMORY >> 30} GiB of memory are not free")
    source = _write_large_checkpoint(tmp_path / "source")
    size = (source / "model.safetensors").stat().st_size
    assert size > 2 << 30
    expected = logits_of_pytorch(source)
    assert np.ptp(expected) > 0.1
    with (tmp_path / "log").open("wb") as log:
        command = [CROSSRANK, "export", str(source), "--out", str(tmp_path / "bundle"), "--precision", "fp32,fp16,int8"]
        export = subprocess.Popen(command, stdout=log, stderr=log)
        peak = _peak_until_end(export)
    assert export.returncode == 0, (tmp_path / "log").read_text()
    print(f"export: {peak / size:.2f} times the model")
    assert 0 < peak <= 2.5 * size
    graph = load_bundle(tmp_path / "bundle").manifest.graph("fp32")
    assert graph.files == ["model.onnx", "model.onnx_data"]
    for engine in ("auto", "onnxruntime", "openvino"):
        arguments = ("--model", str(tmp_path / "bundle"), "--engine", engine, "--precision", "fp32")
        running = running_server(*arguments, "--threads", "2", start_s=300)
        with running as server, Client(server.base_url, timeout=60) as client:
            answers = [client.rerank(QUERY, DOCUMENTS, raw_scores=True) for _ in range(4)]
            status = _status(server.pid)
        for answer in answers:
            scores = {result.index: result.relevance_score for result in answer.results}
            np.testing.assert_allclose([scores[i] for i in range(len(DOCUMENTS))], expected, atol=1e-4, rtol=0)
        print(
            f"{engine}: {status['VmHWM'] / size:.2f} times the model, {status['RssAnon'] / size:.2f} beside the files"
        )
        assert status["VmHWM"] <= 2.5 * size
        # Two threads share the file's own pages.
        assert status["RssAnon"] <= 0.5 * size


_OPEN = """
import json
import sys
from pathlib import Path

from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.resolve import resolve_model
from crossrank.text.encoding import PairEncoder

source, cache, query, *documents = sys.argv[1:]
bundle = resolve_model(source, cache_dir=Path(cache))
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
logits = OnnxRuntimeEngine(bundle, "fp32", 1).infer(PairEncoder(bundle).encode(query, documents).batch)
print(json.dumps({"peak": peak, "logits": logits.tolist()}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_checkpoint_of_more_than_2_gb_opens_in_little_memory(tmp_path: Path):
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached_bytes()
    if shutil.disk_usage(tmp_path).free < _NEEDS_DISK or available < _NEEDS_MEMORY:
        pytest.skip(f"{_NEEDS_DISK >> 30} GiB of disk and {_NEEDS_MEMORY >> 30} GiB of memory are not free")
    source = _write_large_checkpoint(tmp_path / "source")
    size = (source / "model.safetensors").stat().st_size
    assert size > 2 << 30
    expected = logits_of_pytorch(source)
    command = [sys.executable, "-c", _OPEN, str(source), str(tmp_path / "cache"), QUERY, *DOCUMENTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    print(f"opened: {answer['peak'] / size:.2f} times the model")
    assert answer["peak"] <= 1.5 * size  # the files' own pages among it
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-4, rtol=0)


def _write_large_checkpoint(path: Path) -> Path:
    """Nearly all of it is in the embeddings, so that it is quick."""
    model = build_model("xlm-roberta", vocab_size=_WORDS, hidden_size=128)
    model.save_pretrained(path, max_shard_size="10GB")
    model.config.vocab_size = VOCABULARY
    write_tokenizer(path, model.config)
    return path


def _peak_until_end(process: subprocess.Popen[bytes]) -> int:
    """Return the most memory a process had, in bytes; what the system says afterwards begins with its parent's."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, _status(process.pid).get("VmHWM", 0))
        time.sleep(0.05)
    return peak


def _status(pid: int) -> dict[str, int]:
    """Memory of a process in bytes: at its peak, and now without pages of files; nothing of one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon") if name in fields}


def _cached_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Cached"].split()[0]) * 1024
