"""Small models in the layouts that people keep them in, made on the spot: what tests/integration/test_layouts*.py read.

All have the shape of TinyBERT-L2, so that every engine may serve them, a small vocabulary, and seeded random weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.select import make_engine
from crossrank.text.encoding import PairEncoder
from tests.checkpoints import build_model, write_tokenizer
from tests.onnx_exports import Exporter, export_onnx

QUERY = "w7 berlin w12"
DOCUMENTS = ["w30 w31 w32", "berlin w99, w12!", "", "x " * 40 + "w7", "w200 w201 w7 w8 w9 w10 w11 w12"]
SHAPE: dict[str, Any] = {"vocab_size": 400, "max_position_embeddings": 64}


@cache
def torch_model(num_labels: int = 1) -> Any:
    return build_model("TinyBERT-L2", num_labels=num_labels, **SHAPE)


def write_small_files(directory: Path, num_labels: int = 1, **config: Any) -> Path:
    """Write config.json and the tokenizer; fields of the config that are None are left out."""
    directory.mkdir(parents=True, exist_ok=True)
    model = torch_model(num_labels)
    fields = {**json.loads(model.config.to_json_string()), "architectures": ["BertForSequenceClassification"], **config}
    (directory / "config.json").write_text(
        json.dumps({key: value for key, value in fields.items() if value is not None})
    )
    write_tokenizer(directory, model.config)
    return directory


def write_checkpoint(directory: Path, num_labels: int = 1, **config: Any) -> Path:
    """Write safetensors beside the small files."""
    directory.mkdir(parents=True, exist_ok=True)
    torch_model(num_labels).save_pretrained(directory)
    return write_small_files(directory, num_labels, **config)


@cache
def _graph_bytes(num_labels: int) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="crossrank-layout-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(torch_model(num_labels), Exporter(False, "eager", 17), path)
        return path.read_bytes()


def graph_of(num_labels: int = 1) -> onnx.ModelProto:
    """Return the model's ONNX graph, weights inside."""
    return onnx.load_from_string(_graph_bytes(num_labels))


def write_onnx(directory: Path, graph: str = "onnx/model.onnx", num_labels: int = 1, **config: Any) -> Path:
    """Write an ONNX graph under a name beside the small files."""
    write_small_files(directory, num_labels, **config)
    (directory / graph).parent.mkdir(parents=True, exist_ok=True)
    (directory / graph).write_bytes(_graph_bytes(num_labels))
    return directory


def write_external(directory: Path, graph: str = "onnx/model.onnx", location: str = "model.onnx_data") -> Path:
    """Write an ONNX graph whose weights lie in another file."""
    write_small_files(directory)
    (directory / graph).parent.mkdir(parents=True, exist_ok=True)
    model = graph_of()
    onnx.save(model, directory / graph, save_as_external_data=True, location=location, size_threshold=256)
    return directory


def write_hub_cache(cache: Path, model_id: str = "someone/reranker-ONNX") -> Path:
    """Lay a model with external data down as huggingface_hub does, by links to blobs; return its snapshot."""
    plain = write_external(cache / "plain")
    repository = cache / "hub" / f"models--{model_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0123456789abcdef" * 2 + "01234567")
    for folder in (snapshot / "onnx", repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for path in [path for path in plain.rglob("*") if path.is_file()]:
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(plain)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(plain)
    return snapshot


def reference(num_labels: int = 1, label: int = 0, documents: list[str] = DOCUMENTS) -> NDArray[np.float32]:
    """Return PyTorch's logits, float32 [documents], each pair tokenized by transformers and scored alone."""
    import tempfile

    import torch
    from transformers import AutoTokenizer

    model = torch_model(num_labels)
    with tempfile.TemporaryDirectory(prefix="crossrank-layout-") as folder:
        write_small_files(Path(folder), num_labels)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = []
    with torch.inference_mode():
        for document in documents:
            # As lists: transformers takes one empty text by itself for none at all.
            inputs = tokenizer(
                [QUERY],
                [document],
                truncation="longest_first",
                max_length=SHAPE["max_position_embeddings"],
                return_tensors="pt",
            )
            names = ("input_ids", "attention_mask", "token_type_ids")
            logits.append(model(**{name: inputs[name] for name in names if name in inputs}).logits[0, label].item())
    return np.array(logits, np.float32)


def logits_of(bundle: Bundle, engine: str = "auto", documents: list[str] = DOCUMENTS) -> NDArray[np.float32]:
    """Return a bundle's logits in fp32, float32 [documents]."""
    batch = PairEncoder(bundle).encode(QUERY, documents).batch
    return make_engine(bundle, engine, "fp32", threads=1).infer(batch)  # type: ignore[arg-type]
