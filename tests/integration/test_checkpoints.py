"""What `save_pretrained` writes just opens: without PyTorch, in a moment, and as PyTorch's export makes it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from crossrank.bundles.bundle import Bundle, load_bundle
from crossrank.checkpoints import converters
from crossrank.errors import ModelSourceError
from crossrank.native.weights import read_weights
from crossrank.resolve import resolve_model
from crossrank.text.encoding import PairEncoder
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.sources import find_source
from tests import odd_texts
from tests.checkpoints import build_model, write_family, write_tokenizer
from tests.fake_hub import FakeHub, Repository
from tests.family_matrix import WINDOW
from tests.model_layouts import DOCUMENTS, QUERY, logits_of, reference, write_checkpoint, write_onnx

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
QUICK = ExportOptions(documents=2)
FACTS = (
    *("architecture", "num_labels", "label", "max_length", "pad_token_id", "special_token_ids", "pair_template"),
    *("truncation_side", "activation"),
)
# Importing any of these raises: nobody may even try.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "optimum", "sentence_transformers", "crossrank_export"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Blocker())
"""


def run_blocked(program: str, *args: str) -> str:
    """Run a program in a process that has neither PyTorch nor the export package; return what it prints."""
    done = subprocess.run([sys.executable, "-c", BLOCKED + program, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("family", "labels"),
    [("bert", 2), ("electra", 1), ("roberta", 3), ("xlm-roberta", 1), ("mpnet", 2), ("distilbert", 2)],
)
def test_a_family_is_opened_as_its_export(tmp_path: Path, family: str, labels: int):
    source = write_family(tmp_path / "m", family, num_labels=labels, window=WINDOW)
    label = labels - 1 if labels > 1 else None
    exported = export_model(
        find_source(source, kind="safetensors"), tmp_path / "exported", ExportOptions(documents=2, label=label)
    )
    opened = resolve_model(str(source), cache_dir=tmp_path / "cache", label=label)
    assert opened.manifest.source == exported.manifest.source
    for fact in FACTS:
        assert getattr(opened.manifest, fact) == getattr(exported.manifest, fact), fact
    assert opened.file("tokenizer.json").read_bytes() == exported.file("tokenizer.json").read_bytes()
    spread = []
    for query, documents in odd_texts.groups():
        batches = [PairEncoder(bundle).encode(query, documents).batch for bundle in (opened, exported)]
        np.testing.assert_array_equal(batches[0].input_ids, batches[1].input_ids)
        np.testing.assert_array_equal(batches[0].token_type_ids, batches[1].token_type_ids)
    for query, documents in list(odd_texts.groups())[:3]:
        for engine in ("onnxruntime", "openvino"):
            logits = [odd_logits(bundle, engine, query, documents) for bundle in (opened, exported)]
            np.testing.assert_allclose(logits[0], logits[1], atol=2e-5, rtol=0, err_msg=engine)
        spread += logits[0].tolist()
    assert np.std(spread) > 1e-3, "logits that do not differ would prove nothing"


def odd_logits(bundle: Bundle, engine: str, query: str, documents: list[str]) -> np.ndarray:
    from crossrank.engines.select import make_engine

    batch = PairEncoder(bundle).encode(query, documents).batch
    return make_engine(bundle, engine, "fp32", threads=1).infer(batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(("labels", "label"), [(1, 0), (2, 1)])
def test_weights_by_role_are_those_of_the_export(tmp_path: Path, labels: int, label: int):
    source = write_checkpoint(tmp_path / "m", labels)
    asked = label if labels > 1 else None
    exported = export_model(find_source(source), tmp_path / "exported", ExportOptions(documents=2, label=asked))
    opened = resolve_model(str(source), cache_dir=tmp_path / "cache", label=asked)
    shapes, arrays = zip(
        *(read_weights(b.path, b.manifest.weights, b.manifest.architecture) for b in (opened, exported)), strict=True
    )
    assert shapes[0] == shapes[1]
    for role, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][role], err_msg=role)


RESOLVE = """
from pathlib import Path
from crossrank.resolve import resolve_model

print(resolve_model(sys.argv[1], cache_dir=Path(sys.argv[2])).path)
"""
OPEN = """
import json
from pathlib import Path
from crossrank.engines.select import make_engine
from crossrank.resolve import resolve_model
from crossrank.text.encoding import PairEncoder

source, cache, query, *documents = sys.argv[1:]
logits = {}
for _ in range(2):
    bundle = resolve_model(source, cache_dir=Path(cache))
    for engine in ("auto", "onnxruntime", "openvino"):
        batch = PairEncoder(bundle).encode(query, documents).batch
        logits[engine] = make_engine(bundle, engine, "fp32", threads=1).infer(batch).tolist()
print(json.dumps(logits))
"""


def test_a_directory_opens_where_nothing_else_is_installed(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m")
    logits = json.loads(run_blocked(OPEN, str(source), str(tmp_path / "cache"), QUERY, *DOCUMENTS))
    for engine in ("auto", "onnxruntime", "openvino"):
        np.testing.assert_allclose(logits[engine], reference(), atol=1e-4, err_msg=engine)


def test_a_vocabulary_serves_in_place_of_a_fast_tokenizer(tmp_path: Path):
    """As tokenizers of before 2020 were saved."""
    source = write_checkpoint(tmp_path / "m")
    definition = json.loads((source / "tokenizer.json").read_text())
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    (source / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with FakeHub() as hub:
        hub.repositories["owner/m"] = Repository({path.name: path.read_bytes() for path in source.iterdir()})
        for spec in (str(source), "owner/m"):
            bundle = resolve_model(spec, cache_dir=tmp_path / "cache", endpoint=hub.url)
            assert "vocab.txt" in bundle.manifest.source.sha256
            np.testing.assert_allclose(logits_of(bundle), reference(), atol=1e-4)


def test_a_directory_is_ranked_by_the_command_without_pytorch(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m")
    # The command line reads the names of all subcommands, those of the export package among them.
    program = BLOCKED.replace(', "crossrank_export"', "") + "from crossrank_server.cli import main\nmain()"
    command = ["rerank", "--query", QUERY, "--model", str(source), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--precision", "fp32", "--raw-scores", "--json"],
        input="\n".join(document or " " for document in DOCUMENTS[:2]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    scores = {result["index"]: result["relevance_score"] for result in results}
    np.testing.assert_allclose([scores[0], scores[1]], reference()[:2], atol=1e-4)


def test_safetensors_come_before_an_older_graph_beside_them(tmp_path: Path):
    """As training again into a directory leaves it: the graph is of the weights of before."""
    source = write_onnx(tmp_path / "m")
    assert resolve_model(str(source), cache_dir=tmp_path / "cache").manifest.graph("fp32").parity
    build_model("TinyBERT-L2", seed=5, vocab_size=400, max_position_embeddings=64).save_pretrained(source)
    again = resolve_model(str(source), cache_dir=tmp_path / "cache")
    assert "model.safetensors" in again.manifest.source.sha256
    assert np.abs(logits_of(again) - reference()).max() > 0.01
    graph = resolve_model(str(source / "onnx/model.onnx"), cache_dir=tmp_path / "cache")
    np.testing.assert_allclose(logits_of(graph), reference(), atol=1e-4)


def test_a_hub_model_of_safetensors_is_opened_and_nothing_else_of_it_is_fetched(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with FakeHub() as hub:
        hub.repositories["owner/m"] = Repository({**files, "onnx/model.onnx": b"older", "pytorch_model.bin": b"pickle"})
        bundle = resolve_model("owner/m", cache_dir=tmp_path / "cache", endpoint=hub.url)
        fetched = {path for method, path in hub.requests if method == "GET"}
    assert bundle.manifest.source.kind == "hub"
    assert set(bundle.manifest.source.sha256) == set(files)
    assert not any("onnx" in path or "pytorch_model" in path for path in fetched)
    np.testing.assert_allclose(logits_of(bundle), reference(), atol=1e-4)
    assert resolve_model("owner/m", cache_dir=tmp_path / "cache", offline=True).path == bundle.path


def test_a_hub_model_that_is_damaged_is_called_by_its_id(tmp_path: Path):
    source = write_checkpoint(tmp_path / "m", vocab_size=401)
    with FakeHub() as hub:
        hub.repositories["owner/m"] = Repository({path.name: path.read_bytes() for path in source.iterdir()})
        with pytest.raises(ModelSourceError, match=r"^owner/m: bert\.embeddings\.word_embeddings\.weight has shape"):
            resolve_model("owner/m", cache_dir=tmp_path / "cache", endpoint=hub.url)


# --- what the library does not open itself ----------------------------------------------------------------------


def test_another_family_needs_pytorch_once_and_says_so_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_family(tmp_path / "m", "deberta-v2", window=WINDOW)
    cache = tmp_path / "cache"
    with monkeypatch.context() as without:
        without.setattr("crossrank.resolve.torch_is_installed", lambda: False)
        with pytest.raises(ModelSourceError) as caught:
            resolve_model(str(source), cache_dir=cache)
    assert caught.value.message == (
        f"{source}: model_type 'deberta-v2' is none of bert, electra, roberta, xlm-roberta, camembert, mpnet, "
        "distilbert, so that its safetensors need PyTorch to become a graph: pip install 'crossrank[export]', or give "
        "a model that has onnx/model.onnx"
    )
    bundle = resolve_model(str(source), cache_dir=cache)
    assert bundle.manifest.graph("fp32").parity["reference"].startswith("pytorch")
    assert run_blocked(RESOLVE, str(source), str(cache)).strip() == str(bundle.path)


def test_the_converter_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (point,) = entry_points(group=converters.GROUP)
    assert (point.name, point.value) == ("export", "crossrank_export.pipeline:bundle_from_files")
    source = write_onnx(tmp_path / "m")
    monkeypatch.setattr(converters, "entry_points", lambda group: ())
    with pytest.raises(ModelSourceError, match=r"^m must be converted, and no converter is installed .*pip install"):
        resolve_model(str(source), cache_dir=tmp_path / "cache")
    broken = type(point)("broken", "crossrank_export.nowhere:convert", converters.GROUP)
    monkeypatch.setattr(converters, "entry_points", lambda group: (broken,))
    with pytest.raises(
        ModelSourceError, match=r"crossrank_export\.nowhere:convert cannot be imported \(ModuleNotFound"
    ):
        resolve_model(str(source), cache_dir=tmp_path / "cache")


# --- memory -----------------------------------------------------------------------------------------------------

PEAK = """
from pathlib import Path
from crossrank.resolve import resolve_model
import onnx, tokenizers

def peak():
    # Not getrusage, which begins with the parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
resolve_model(sys.argv[1], cache_dir=Path(sys.argv[2]))
print(peak() - before)
"""


def test_opening_takes_no_more_memory_than_the_model_and_a_half(tmp_path: Path):
    """Its own pages, mapped, among them."""
    config = {"vocab_size": 60_000, "num_hidden_layers": 2}
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape: dict[str, Any] = {"model_type": "bert", "num_labels": 1, **config}
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**shape))
    source = tmp_path / "m"
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(source)
    write_tokenizer(source, model.config)
    arrays = {name: np.full(tuple(tensor.shape), 0.01, np.float32) for name, tensor in model.state_dict().items()}
    save_file(arrays, source / "model.safetensors", {"format": "pt"})
    size = (source / "model.safetensors").stat().st_size
    assert size > 240e6
    peak = int(run_blocked(PEAK, str(source), str(tmp_path / "cache")))
    print(f"{peak / size:.2f} times the model")
    assert 0 < peak <= 1.5 * size
    bundle = next((tmp_path / "cache/bundles").glob("*/directory*"))
    assert sum(file.stat().st_size for file in bundle.iterdir()) <= 1.02 * size + (4 << 20)
    assert load_bundle(bundle).manifest.model_id == "m"
