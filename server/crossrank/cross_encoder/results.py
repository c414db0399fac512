"""Scores in the types that sentence-transformers returns: arrays, tensors, lists, ranked dictionaries."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import SetupError


@dataclass(frozen=True)
class Scored:
    """The logits of pairs, and what was read of them.

    Attributes:
        logits: float32 [pairs].
        tokens: int64 [pairs], those that were scored, special tokens included.
        truncated: bool [pairs], whether the query or the document lost tokens, as both did not fit the window.
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class Prediction:
    """What `predict` returns with `return_details=True`; of a single pair, each field is one value.

    Attributes:
        scores: What it returns without.
        truncated: bool [pairs], whether a part of the query or of the document was not read, as both together are
            longer than `max_length`.
        tokens: int64 [pairs], tokens that were scored, special tokens included.
    """

    scores: Any
    truncated: Any
    tokens: Any


def converted(scores: NDArray[Any], *, to_numpy: bool, to_tensor: bool) -> Any:
    """Return scores [pairs] as float32 array, as tensor, or as list of tensors of no dimension.

    Where PyTorch is not installed the list has NumPy's float32 in place of tensors.

    Args:
        scores: One number a pair.
        to_numpy: False asks for a list.
        to_tensor: Ask for one tensor; goes before `to_numpy`.

    Raises:
        SetupError: A tensor is asked for, and PyTorch is not installed.
    """
    if to_numpy and not to_tensor:
        # float64 is what sentence-transformers has for no pairs at all.
        return scores.astype(np.float32, copy=False) if len(scores) else np.array([])
    try:
        import torch
    except ImportError:
        if to_tensor:
            raise SetupError("convert_to_tensor=True needs PyTorch: pip install torch, or leave it out") from None
        return list(scores)
    tensor = torch.from_numpy(np.ascontiguousarray(scores))
    return tensor if to_tensor else list(tensor)


def ranked(
    scores: NDArray[Any],
    documents: Sequence[Any],
    top_k: int | None,
    *,
    return_documents: bool,
    details: tuple[NDArray[np.bool_], NDArray[np.int64]] | None = None,
) -> list[dict[str, Any]]:
    """Return documents by falling score; equal scores stay in the order of the documents.

    Args:
        scores: One number a document.
        documents: As they were given.
        top_k: How many are returned at most.
        return_documents: Add each document as `text`.
        details: `truncated` and `tokens` of each document, to add.

    Returns:
        Dictionaries with `corpus_id` (int) and `score` (float), and what is asked for.
    """
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    values = scores.tolist()
    results: list[dict[str, Any]] = []
    for i in order:
        result: dict[str, Any] = {"corpus_id": i, "score": values[i]}
        if return_documents:
            result["text"] = documents[i]
        if details is not None:
            result["truncated"], result["tokens"] = bool(details[0][i]), int(details[1][i])
        results.append(result)
    return results


def checked_top_k(top_k: Any) -> int | None:
    """Return `top_k` as it is used.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is negative.
    """
    if top_k is None:
        return None
    number = operator.index(top_k)
    if number < 0:
        raise ValueError(f"top_k is {number}: give 0 or more, or None for all documents")
    return number


def check_batch_size(batch_size: Any) -> None:
    """Refuse what sentence-transformers refuses, although batches are made by the library's own measure.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not positive.
    """
    if batch_size <= 0:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
