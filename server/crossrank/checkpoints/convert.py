"""Convert a checkpoint to a bundle: write its graph and, for the native engine, its weights by role."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crossrank.bundles.bundle import (
    Graph,
    Manifest,
    SharedTensor,
    Source,
    Tensor,
    Weights,
    sha256_of,
    write_manifest,
)
from crossrank.bundles.layout import CARD, CONFIG, read_object
from crossrank.checkpoints.activations import ERF_GELU
from crossrank.checkpoints.config import ModelConfig, choose_label, read_config
from crossrank.checkpoints.emitter import Emitter, WeightsFile
from crossrank.checkpoints.families import activation_of, why_not_built
from crossrank.checkpoints.graph import LOGITS, GraphBuilder
from crossrank.checkpoints.tensors import Array
from crossrank.checkpoints.tokens import PairTokens, read_tokens
from crossrank.checkpoints.weights import CheckpointWeights
from crossrank.errors import ModelSourceError
from crossrank.native.weights import WEIGHTS_FILE, Shape, is_native_shape, write_arrays

_GRAPH = "model.onnx"
_TOOLS = ("crossrank", "numpy", "onnx", "tokenizers")

logger = logging.getLogger(__name__)


def bundle_from_checkpoint(
    directory: Path, weights_files: list[str], out: Path, source: Source, label: int | None = None
) -> None:
    """Write an fp32 bundle of a checkpoint whose family `families` describes.

    Args:
        directory: Directory with config.json, the tokenizer and the safetensors.
        weights_files: Names of the safetensors.
        out: Bundle directory to create.
        source: Origin of the model, recorded in the manifest.
        label: Index of the logit that is the score, where the model gives several.

    Raises:
        ModelSourceError: The files are damaged, contradict each other, or are not of a supported cross-encoder.
    """
    config = read_config(directory, "safetensors")
    chosen = choose_label(config.num_labels, label if config.num_labels > 1 else None, str(directory))
    tokens = read_tokens(directory, config, None)
    raw = read_object(CONFIG, str(directory), lambda name: (directory / name).read_bytes())
    reason = why_not_built(raw)
    if reason is not None:
        raise ModelSourceError(f"{directory}: no graph is built of it, as {reason}")
    weights = CheckpointWeights(
        directory, [directory / name for name in weights_files], raw, config.architecture, config.num_labels
    )
    _refuse_lost_segments(directory, weights, tokens)
    out.mkdir()
    activation = activation_of(weights.family, raw)
    graph, offsets, sha256 = _write_graph(out, weights, activation, tokens.pad_token_id)
    record = _write_weights(out, weights, activation, chosen, graph, offsets)
    tokens.write(out)
    if (directory / CARD).is_file():
        (out / CARD).write_bytes((directory / CARD).read_bytes())
    files = {path.name: sha256.get(path.name) or sha256_of(path) for path in sorted(out.iterdir())}
    write_manifest(out, _manifest(config, tokens, source, chosen, graph, record, files))


def _refuse_lost_segments(directory: Path, weights: CheckpointWeights, tokens: PairTokens) -> None:
    """Refuse a tokenizer that gives segments for which the model has no embeddings."""
    most = max(tokens.template.segments)
    if weights.segments and most >= weights.segments:
        raise ModelSourceError(
            f"{directory}: its tokenizer gives segments up to {most}, the model has {weights.segments}: the two are of "
            "different models"
        )


def _write_graph(
    out: Path, weights: CheckpointWeights, activation: str, pad_token_id: int
) -> tuple[Graph, dict[str, int], dict[str, str]]:
    """Write the graph and its weights; return its manifest entry, byte offsets by role, and sha256 by file name."""
    with WeightsFile(out / f"{_GRAPH}_data") as file:
        emit = Emitter(file)
        builder = GraphBuilder(emit, weights, activation, pad_token_id)
        builder.build()
        emit.write(out / _GRAPH, builder.inputs, LOGITS, weights.num_labels)
    axes: list[str | int] = ["batch", "sequence"]
    entry = Graph(
        file=_GRAPH,
        data_file=file.name,
        precision="fp32",
        inputs=[Tensor(name=name, dtype="int32", shape=axes) for name in builder.inputs],
        output=Tensor(name=LOGITS, dtype="float32", shape=["batch", weights.num_labels]),
    )
    return entry, emit.offsets, {file.name: file.sha256}


def _write_weights(
    out: Path, weights: CheckpointWeights, activation: str, label: int, graph: Graph, offsets: dict[str, int]
) -> Weights | None:
    """Write the weights that the native engine reads and the graph does not hold; return None for other models.

    Args:
        out: The bundle directory.
        weights: Weights of the checkpoint.
        activation: Activation of the layers.
        label: Index of the logit that is the score.
        graph: Manifest entry of the graph.
        offsets: Byte offsets of weights in the graph's data file, by role.
    """
    sizes = weights.sizes
    if not is_native_shape(sizes) or activation not in ERF_GELU or not weights.segments:
        return None
    integers = {name: getattr(sizes, name) for name in ("layers", "hidden", "heads", "ffn", "vocab_size")}
    epsilon = float(np.float32(weights.epsilon))
    shape = Shape(**integers, positions=weights.positions, segments=weights.segments, epsilon=epsilon)
    shared: dict[str, SharedTensor] = {}
    arrays: dict[str, Array] = {}
    for role in shape.arrays():
        if role in offsets:
            shared[role] = SharedTensor(file=str(graph.data_file), offset=offsets[role])
        else:
            arrays[role] = _native_array(weights, role, label)
    write_arrays(out / WEIGHTS_FILE, arrays)
    return Weights(
        file=WEIGHTS_FILE,
        positions=shape.positions,
        segments=shape.segments,
        epsilon=epsilon,
        shared=shared,
        read_back=True,
    )


def _native_array(weights: CheckpointWeights, role: str, label: int) -> Array:
    array = weights.array(role)
    if role.startswith("classifier."):
        return array[label] if role.endswith("weight") else array[label : label + 1]
    return array.T if role.endswith(".weight") and array.ndim == 2 else array


def _manifest(
    config: ModelConfig,
    tokens: PairTokens,
    source: Source,
    label: int,
    graph: Graph,
    weights: Weights | None,
    files: dict[str, str],
) -> Manifest:
    built: dict[str, Any] = {
        "name": "built",
        "applied": True,
        "detail": "The graph is built from the weights by role; no other implementation was asked for its logits.",
    }
    return Manifest(
        model_id=source.name,
        source=source,
        architecture=config.architecture,
        num_labels=config.num_labels,
        label=label,
        max_length=tokens.max_length,
        pad_token_id=tokens.pad_token_id,
        special_token_ids=tokens.special_token_ids,
        pair_template=tokens.template,
        truncation_side=tokens.truncation_side,
        activation=config.activation,
        graphs=[graph],
        weights=weights,
        passes=[built],
        files=files,
        tool_versions={name: version(name) for name in _TOOLS},
    )
