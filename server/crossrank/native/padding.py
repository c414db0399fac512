"""Pad packed pairs to tensors: with native code (padding.h) where it was built, with numpy elsewhere.

Numpy takes half a microsecond a pair and holds the GIL for part of it; in that time a GPU scores a pair of a
TinyBERT-L2.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache

import numpy as np
from numpy.typing import NDArray

from crossrank.native.library import Functions, NativeError, declare, open_library
from crossrank.packed import PairBatch

_log = logging.getLogger("crossrank")

Tensors = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]

_POINTER, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_FUNCTIONS: Functions = {"pad": ([_POINTER] * 3 + [_INT64] * 3 + [_INT32] + [_POINTER] * 3, None)}


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = open_library("padding")
    except NativeError as error:
        _log.debug("pairs are padded by numpy, more slowly: %s", error)
        return None
    declare(library, "crossrank_", _FUNCTIONS)
    return library


def pad(batch: PairBatch, length: int, pad_token_id: int, rows: int | None = None) -> Tensors:
    """Return (input_ids, token_type_ids, attention_mask), each int32 [rows, length].

    Args:
        batch: The pairs.
        length: Columns; at least one, and at least the longest pair.
        pad_token_id: Fills input_ids behind each pair.
        rows: At least the pairs, which it defaults to; further rows attend to one padding token, so that no softmax
            runs over an empty row.

    Raises:
        ValueError: A pair is longer than `length`, there are fewer rows than pairs, or offsets and ids do not fit.
    """
    input_ids, token_type_ids, offsets = batch.input_ids, batch.token_type_ids, batch.offsets
    pairs, lengths = len(batch), batch.lengths
    rows = pairs if rows is None else rows
    shortest, longest = (int(lengths.min()), int(lengths.max())) if pairs else (0, 0)
    if shortest < 0 or longest > length or pairs > rows or length < 1:
        raise ValueError(f"{pairs} pairs of {shortest} to {longest} tokens do not fit into [{rows}, {length}]")
    if offsets[0] or not offsets[-1] == len(input_ids) == len(token_type_ids):
        raise ValueError(f"offsets {offsets[0]} to {offsets[-1]} do not fit {len(input_ids)} ids")
    library = _library()
    if library is None:
        return _pad_in_numpy(batch, rows, length, pad_token_id)
    ids, types = (np.ascontiguousarray(array, np.int32) for array in (input_ids, token_type_ids))
    bounds = np.ascontiguousarray(offsets, np.int64)
    padded_ids, padded_types, mask = (np.empty((rows, length), np.int32) for _ in range(3))
    library.crossrank_pad(
        *(array.ctypes.data for array in (ids, types, bounds)),
        pairs,
        rows,
        length,
        pad_token_id,
        *(array.ctypes.data for array in (padded_ids, padded_types, mask)),
    )
    return padded_ids, padded_types, mask


def _pad_in_numpy(batch: PairBatch, rows: int, length: int, pad_token_id: int) -> Tensors:
    pairs = len(batch)
    real = np.arange(length) < batch.lengths[:, None]
    mask = np.zeros((rows, length), np.int32)
    mask[:pairs] = real
    mask[pairs:, 0] = 1
    ids = np.full((rows, length), pad_token_id, np.int32)
    types = np.zeros((rows, length), np.int32)
    ids[:pairs][real] = batch.input_ids
    types[:pairs][real] = batch.token_type_ids
    return ids, types, mask
