"""Padding in native code and in numpy: the same tensors, and the same refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.native import padding
from crossrank.packed import PairBatch, offsets_of


@pytest.fixture(params=["native", "numpy"])
def pad(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(padding, "_library", lambda: None)
    elif padding._library() is None:
        pytest.skip("the native padding is not built here (no compiler at installation)")
    return padding.pad


def packed(lengths: list[int]) -> PairBatch:
    ids = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    return PairBatch(ids, ids % 2, offsets_of(lengths))


def test_rows_hold_their_pair_and_padding_and_further_rows_attend_to_one_token(pad):
    ids, types, mask = pad(packed([3, 0, 1]), 4, 7, rows=5)
    assert ids.tolist() == [[100, 101, 102, 7], [7] * 4, [103, 7, 7, 7], [7] * 4, [7] * 4]
    assert types.tolist() == [[0, 1, 0, 0], [0] * 4, [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert mask.tolist() == [[1, 1, 1, 0], [0] * 4, [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert {array.dtype for array in (ids, types, mask)} == {np.dtype(np.int32)}


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(0, 3), st.integers(0, 5))
def test_native_code_writes_what_numpy_writes(lengths, more_rows, more_columns):
    if padding._library() is None:
        pytest.skip("the native padding is not built here (no compiler at installation)")
    rows, length, batch = len(lengths) + more_rows, max([1, *lengths]) + more_columns, packed(lengths)
    for native, numpy in zip(
        padding.pad(batch, length, 3, rows), padding._pad_in_numpy(batch, rows, length, 3), strict=True
    ):
        np.testing.assert_array_equal(native, numpy)


@pytest.mark.parametrize(
    ("offsets", "rows", "length", "message"),
    [
        ([0, 5], 1, 4, r"1 pairs of 5 to 5 tokens do not fit into \[1, 4\]"),
        ([0, 2, 4], 1, 4, r"2 pairs of 2 to 2 tokens do not fit into \[1, 4\]"),
        ([0, 3, 2], 2, 4, r"2 pairs of -1 to 3 tokens"),
        ([1, 5], 1, 4, r"offsets 1 to 5 do not fit 5 ids"),
        ([0, 4], 1, 4, r"offsets 0 to 4 do not fit 5 ids"),
        ([0, 6], 1, 9, r"offsets 0 to 6 do not fit 5 ids"),
        ([0, 0], 2, 0, r"1 pairs of 0 to 0 tokens do not fit into \[2, 0\]"),
    ],
)
def test_what_does_not_fit_is_refused(pad, offsets, rows, length, message):
    ids = np.arange(5, dtype=np.int32)
    with pytest.raises(ValueError, match=message):
        pad(PairBatch(ids, ids, np.array(offsets, np.int64)), length, 0, rows)
