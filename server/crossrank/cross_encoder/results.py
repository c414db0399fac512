"""Convert scores to the types that sentence-transformers returns: arrays, tensors, lists, ranked dictionaries."""

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
    """Logits of pairs, with token counts and truncation.

    Attributes:
        logits: float32 [pairs].
        tokens: int64 [pairs], number of tokens scored, special tokens included.
        truncated: bool [pairs], whether the query or the document lost tokens because both did not fit the window.
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class Prediction:
    """Result of `predict` with `return_details=True`; for a single pair, each field is one value.

    Attributes:
        scores: Result of `predict` without details.
        truncated: bool [pairs], whether a part of the query or of the document was not read because both together are
            longer than `max_length`.
        tokens: int64 [pairs], number of tokens scored, special tokens included.
    """

    scores: Any
    truncated: Any
    tokens: Any


def converted(scores: NDArray[Any], *, to_numpy: bool, to_tensor: bool) -> Any:
    """Return scores as a float32 array [pairs], as a tensor [pairs], or as a list of tensors without dimensions.

    Where PyTorch is not installed, the list has NumPy's float32 in place of tensors.

    Args:
        scores: One number for each pair.
        to_numpy: False requests a list.
        to_tensor: Requests one tensor; takes precedence over `to_numpy`.

    Raises:
        SetupError: A tensor is requested, and PyTorch is not installed.
    """
    if to_numpy and not to_tensor:
        # For no pairs, sentence-transformers returns float64.
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
    """Return documents by descending score; equal scores keep the order of the documents.

    Args:
        scores: One number for each document.
        documents: Documents in the caller's order.
        top_k: Maximum number of results; None returns all.
        return_documents: Add each document's text as `text`.
        details: `truncated` and `tokens` of each document, to be added.

    Returns:
        Dictionaries with `corpus_id` (int, the document's index), `score` (float) and the requested additions.
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
    """Return `top_k` as an int, or None.

    Raises:
        TypeError: `top_k` is not a whole number.
        ValueError: `top_k` is negative.
    """
    if top_k is None:
        return None
    number = operator.index(top_k)
    if number < 0:
        raise ValueError(f"top_k is {number}: give 0 or more, or None for all documents")
    return number


def check_batch_size(batch_size: Any) -> None:
    """Refuse the batch sizes that sentence-transformers refuses; otherwise the value has no effect.

    Raises:
        TypeError: `batch_size` is not a number.
        ValueError: `batch_size` is not positive.
    """
    if batch_size <= 0:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
