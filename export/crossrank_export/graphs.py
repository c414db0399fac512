"""Load ONNX graphs, check that they are cross-encoders, and score with them in ONNX Runtime."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import external_data

from crossrank.bundles.bundle import Graph, PairTemplate, Precision, Tensor
from crossrank.bundles.model_directory import external_locations
from crossrank.checkpoints.config import ModelConfig
from crossrank.errors import ModelSourceError
from crossrank.native.padding import pad
from crossrank.packed import PairBatch, take_pairs
from crossrank.reasons import reason_of
from crossrank_export.graph_files import INLINE_BYTES, open_graph, save_graph, weight_bytes

# From pairs to logits, float32 [pairs, labels]; implemented with PyTorch and with ONNX Runtime.
Scorer = Callable[[PairBatch], NDArray[np.float32]]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_BATCH_TOKENS, _ATTENTION_TOKENS = 4096, 512


def load_graph(path: Path, opset: int | None) -> onnx_ir.Model:
    """Read an ONNX file with its external data, and convert it to another opset if one is given.

    Raises:
        ModelSourceError: It is not a readable ONNX graph, or cannot be converted.
    """
    try:
        model = open_graph(path)
        present = model.opset_imports.get("", 0)
        if opset is None or opset == present:
            return model
        size = weight_bytes(model)
        if size > INLINE_BYTES:
            raise ModelSourceError(
                f"{path} has opset {present} and {size / 1e9:.1f} GB of weights, ONNX's converter to opset {opset} "
                f"takes {INLINE_BYTES / 1e9:.1f} GB: omit --opset"
            )
        proto = onnx_ir.to_proto(external_data.load_to_model(model))
    except ModelSourceError:
        raise
    except Exception as error:  # protobuf and onnx_ir raise many types
        raise ModelSourceError(
            f"{path} is not a readable ONNX graph ({reason_of(error)}): download it again"
        ) from error
    try:
        from onnx import version_converter

        return onnx_ir.from_proto(version_converter.convert_version(proto, opset))
    except Exception as error:
        raise ModelSourceError(
            f"{path} has opset {present} and cannot be converted to {opset} ({reason_of(error)}): omit --opset"
        ) from error


def check_graph(model: onnx_ir.Model, config: ModelConfig, template: PairTemplate, where: str) -> None:
    """Check that a graph is a cross-encoder with the inputs that engines feed.

    Raises:
        ModelSourceError: It has other inputs, fixed shapes, or no token_type_ids although the model
            tells query from document by them.
    """
    names = [value.name for value in model.graph.inputs]
    unknown = [name for name in names if name not in INPUTS]
    if unknown or not {"input_ids", "attention_mask"} <= set(names):
        raise ModelSourceError(
            f"{where} has inputs {names}: a cross-encoder has input_ids, attention_mask and perhaps token_type_ids"
            + (f", and nothing says here what {unknown[0]} is to be" if unknown else "")
        )
    if "token_type_ids" not in names and config.segment_types > 1 and template.segments[0] != template.segments[1]:
        raise ModelSourceError(
            f"{where} has lost the input token_type_ids, which {config.architecture.model_type} needs to tell query "
            "from document: export it again with it, or say that the model was trained without (model_input_names of "
            "tokenizer_config.json)"
        )
    for value in model.graph.inputs:
        dtype = str(value.dtype).lower()
        if dtype not in ("int32", "int64"):
            raise ModelSourceError(f"{where}: input {value.name} is {dtype}, not int32 or int64")
        if value.shape is None or len(value.shape) != 2 or any(isinstance(dim, int) for dim in value.shape):
            raise ModelSourceError(
                f"{where}: input {value.name} has shape {value.shape}: batch and sequence must be dynamic"
            )


def describe_graph(
    model: onnx_ir.Model, file: str, precision: Precision, num_labels: int, data_file: str | None = None
) -> Graph:
    """Return the manifest's entry of a graph, without its parity."""
    inputs = [
        Tensor(
            name=str(value.name),
            dtype=cast(Literal["int32", "int64"], str(value.dtype).lower()),
            shape=["batch", "sequence"],
        )
        for value in model.graph.inputs
    ]
    names = [str(value.name) for value in model.graph.outputs]
    output = Tensor(name="logits" if "logits" in names else names[0], dtype="float32", shape=["batch", num_labels])
    return Graph(file=file, data_file=data_file, precision=precision, inputs=inputs, output=output)


def session_scorer(path: Path, graph: Graph, pad_token_id: int, threads: int = 0) -> Scorer:
    """Return a function that scores with an ONNX file in ONNX Runtime on the CPU; defaults to a thread for each core.

    Raises:
        ModelSourceError: ONNX Runtime does not accept the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own types are not exported
        raise ModelSourceError(f"ONNX Runtime does not accept {path.name} ({reason_of(error)})") from error

    def run(ids: NDArray[Any], types: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float32]:
        arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        feeds = {tensor.name: arrays[tensor.name].astype(tensor.dtype) for tensor in graph.inputs}
        logits: NDArray[np.float32] = session.run([graph.output.name], feeds)[0]
        return logits

    return lambda batch: score_in_batches(batch, pad_token_id, run)


def model_scorer(model: onnx_ir.Model, graph: Graph, pad_token_id: int) -> Scorer:
    """Return a function that scores with a graph in memory, in ONNX Runtime on the CPU.

    Raises:
        ModelSourceError: ONNX Runtime does not accept the graph.
    """
    with tempfile.TemporaryDirectory(prefix="crossrank-graph-") as folder:
        path = Path(folder) / graph.file
        save_graph(model, path)
        return session_scorer(path, graph, pad_token_id)


def without_links(path: Path, scratch: Path) -> Path:
    """Return the path of a graph whose external data are plain files, a copy if any is a symbolic link.

    Neither ONNX Runtime nor onnx_ir reads external data through links. `find_source` has checked which links may be
    followed.
    Source: https://github.com/microsoft/onnxruntime/issues/27353

    Args:
        path: The graph file.
        scratch: Directory for the copy.
    """
    files = [path, *(path.parent / location for location in external_locations(path))]
    folder = path.parent.resolve()
    if len(files) == 1 or all(file.resolve().is_relative_to(folder) and not file.is_symlink() for file in files):
        return path
    for file in files:
        target = scratch / file.relative_to(path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return scratch / path.name


def score_in_batches(
    batch: PairBatch,
    pad_token_id: int,
    run: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Score pairs in batches of similar length, so that most batches have some padding and none has much.

    Args:
        batch: The pairs.
        pad_token_id: Id of the padding token.
        run: Maps (input_ids, token_type_ids, attention_mask), each int32 [rows, length], to logits [rows, labels].

    Returns:
        float32 [pairs, labels], in the order of the batch.

    Raises:
        ModelSourceError: The model cannot score the pairs, or returns another shape than a row for each.
    """
    lengths = batch.lengths
    order = np.argsort(lengths, kind="stable")
    results: list[NDArray[np.float32]] = []
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= _most_tokens(lengths[order[stop]]):
            stop += 1
        part = take_pairs(batch, order[start:stop])
        results.append(_run(run, part, pad_token_id))
        start = stop
    logits = np.concatenate(results).astype(np.float32)
    restored = np.empty_like(logits)
    restored[order] = logits
    return restored


def _run(
    run: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float32]], part: PairBatch, pad_token_id: int
) -> NDArray[np.float32]:
    longest = int(part.lengths.max())
    try:
        logits = run(*pad(part, longest, pad_token_id))
    except Exception as error:  # PyTorch and ONNX Runtime raise many types
        raise ModelSourceError(
            f"{len(part)} pairs of up to {longest} tokens cannot be scored ({reason_of(error)}): if the model has "
            "fewer positions than its config.json says, cap them with --max-length"
        ) from error
    if logits.ndim != 2 or len(logits) != len(part):
        raise ModelSourceError(
            f"the model gives an array of shape {list(logits.shape)} for {len(part)} pairs, and a cross-encoder "
            "gives one row of logits each: export it with its classification head (task text-classification)"
        )
    return logits


def _most_tokens(length: int) -> int:
    """Return the most tokens of a batch: its attention scores, rows x length^2, are no more than at 512 tokens."""
    return min(_BATCH_TOKENS, _BATCH_TOKENS * _ATTENTION_TOKENS // length)
