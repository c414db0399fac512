"""Write a bundle's weights by role, for the native engine, once they have proved to give the source's scores.

The word embeddings are nine tenths of a small model and lie in model.onnx already, unchanged: the manifest says where,
and they are not written a second time.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from crossrank.bundles.bundle import Architecture, SharedTensor, Weights
from crossrank.native.weights import WEIGHTS_FILE, WORD, is_native_shape, read_weights, write_arrays
from crossrank_export.bert import score_pairs
from crossrank_export.graph_files import data_file
from crossrank_export.parity import SampleSet, compare, limit_of
from crossrank_export.roles import NoRolesError, find_roles

_RUNTIME = "numpy fp32"
# Elements by which a place in a file is found, and those that are compared at a time.
_START, _PIECE = 1024, 1 << 20

logger = logging.getLogger(__name__)


def write_weights(
    graph: onnx_ir.Model,
    architecture: Architecture,
    label: int,
    samples: Sequence[SampleSet],
    fp32: Path,
) -> Weights | None:
    """Write `weights.safetensors` beside the fp32 graph, or return None for a model it cannot serve.

    A model of a shape that the native engine serves, but with other operations, is named in a warning.

    Args:
        graph: The source's graph.
        architecture: Its shape.
        label: Which logit is the score.
        samples: Pairs with the source's logits.
        fp32: The bundle's fp32 graph file.
    """
    if not is_native_shape(architecture):
        return None
    try:
        shape, arrays = find_roles(graph, architecture, label)
    except NoRolesError as error:
        logger.warning("no weights for the native engine: %s", error)
        return None
    shared = _shared(arrays, fp32)
    file = fp32.with_name(WEIGHTS_FILE)
    write_arrays(file, {role: array for role, array in arrays.items() if role not in shared})
    record = Weights(
        file=WEIGHTS_FILE,
        positions=shape.positions,
        segments=shape.segments,
        epsilon=shape.epsilon,
        shared=shared,
        read_back=True,
    )
    parity = _prove(file, record, architecture, samples)
    if parity is None:
        file.unlink()
        return None
    return record.model_copy(update={"parity": parity})


def _prove(
    file: Path, record: Weights, architecture: Architecture, samples: Sequence[SampleSet]
) -> dict[str, Any] | None:
    """Score the pairs with the weights as they were written; None, after a warning, where the logits differ."""
    shape, arrays = read_weights(file.parent, record, architecture)
    parity: dict[str, Any] = {"runtime": _RUNTIME}
    for sample in samples:
        agreement = compare(sample, score_pairs(shape, arrays, sample.batch))
        if not agreement.within("fp32"):
            logger.warning(
                "no weights for the native engine: read as BERT's they give logits %.3g off the source's on the %s "
                "pairs (limit %g)",
                agreement.max_abs_delta,
                sample.name,
                limit_of("fp32", agreement.logit_range),
            )
            return None
        parity[sample.name] = agreement.judged_as("fp32")
    return parity


def _shared(arrays: dict[str, NDArray[np.float32]], fp32: Path) -> dict[str, SharedTensor]:
    """Say where the graph's files hold the word embeddings; empty if they store them otherwise."""
    for file in (fp32, data_file(fp32)):
        offset = _find(arrays[WORD], file) if file.is_file() else None
        if offset is not None:
            return {WORD: SharedTensor(file=file.name, offset=offset)}
    return {}


def _find(array: NDArray[np.float32], file: Path) -> int | None:
    """Return the byte where a file holds an array's elements; neither is copied."""
    elements = array.reshape(-1)
    start = elements[:_START].astype("<f4").tobytes()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        offset = content.find(start)
        while offset >= 0:
            if offset + array.nbytes <= len(content) and _holds(file, offset, elements):
                return offset
            offset = content.find(start, offset + 1)
    return None


def _holds(file: Path, offset: int, elements: NDArray[np.float32]) -> bool:
    there = np.memmap(file, "<f4", "r", offset, (elements.size,))
    pieces = range(0, elements.size, _PIECE)
    # As bytes, in which zeros have signs and NaN is itself.
    return all(np.array_equal(there[i : i + _PIECE].view("<u4"), elements[i : i + _PIECE].view("<u4")) for i in pieces)
