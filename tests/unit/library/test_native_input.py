"""Whatever is given to the native encoder, it scores or says what is wrong; it never reads or writes elsewhere."""

from __future__ import annotations

from ctypes import create_string_buffer
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.native.library import NativeContext, NativeError, NativeModel, load_library, usable_kernels
from tests.native_models import TINY, random_pairs, random_weights

pytestmark = pytest.mark.skipif(not usable_kernels(), reason="the native encoder was not built: no C++ compiler")

SHAPE = replace(TINY, positions=60, vocab_size=50)
KERNEL = next((name for name in ("avx2", "portable") if name in usable_kernels()), "portable")


@pytest.fixture(scope="module")
def scorer() -> NativeContext:
    return NativeContext(NativeModel(KERNEL, SHAPE, random_weights(SHAPE)))


@pytest.mark.parametrize(
    ("ids", "types", "offsets", "message"),
    [
        ([1, 50], [0, 0], [0, 2], r"input_ids\[1\] is 50, not 0 to 49"),
        ([-1, 5], [0, 0], [0, 2], r"input_ids\[0\] is -1, not 0 to 49"),
        ([1, 2], [0, 2], [0, 2], r"token_type_ids\[1\] is 2, not 0 to 1"),
        ([1, 2], [-1, 0], [0, 2], r"token_type_ids\[0\] is -1, not 0 to 1"),
        ([1, 2], [0, 0], [0, 1], "offsets reach from 0 to 1, not from 0 to the 2 tokens"),
        ([1, 2], [0, 0], [1, 2], "offsets reach from 1 to 2, not from 0 to the 2 tokens"),
        ([1, 2], [0, 0], [0, 0, 2], "pair 0 reaches from token 0 to 0: a pair has 1 to 60 tokens"),
        ([1, 2], [0, 0], [0, 9, 2], "pair 0 reaches from token 0 to 9"),
        ([1, 2], [0, 0], [0, 1, -5, 2], "pair 1 reaches from token 1 to -5"),
        ([1, 2], [0, 0], [0, -(2**63), 2], "pair 0 reaches"),
        ([1, 2], [0, 0], [0, 2**63 - 1, 2], "pair 0 reaches"),
        ([1] * 61, [0] * 61, [0, 61], "a pair has 1 to 60 tokens"),
        ([1, 2], [0], [0, 2], r"not \[2\], \[1\], \[2\]"),
        ([1, 2], [0, 0], [], r"not \[2\], \[2\], \[0\]"),
    ],
)
def test_what_is_no_batch_of_pairs_is_named(
    scorer: NativeContext, ids: list[int], types: list[int], offsets: list[int], message: str
) -> None:
    arrays = (np.array(ids, np.int32), np.array(types, np.int32), np.array(offsets, np.int64))
    with pytest.raises(NativeError, match=message):
        scorer.score(*arrays)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_batches_are_scored_or_refused(scorer: NativeContext, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 60), max_size=6))
    batch = random_pairs(SHAPE, lengths)
    arrays: list[Any] = [batch.input_ids.copy(), batch.token_type_ids.copy(), batch.offsets.copy()]
    for array in arrays:
        for place in data.draw(st.lists(st.integers(0, len(array) - 1), max_size=2)) if len(array) else []:
            limits = np.iinfo(array.dtype)
            number = data.draw(st.one_of(st.integers(-3, 70), st.integers(int(limits.min), int(limits.max))))
            array[place] = number
    sound = (
        all(0 <= i < SHAPE.vocab_size for i in arrays[0].tolist())
        and all(0 <= i < SHAPE.segments for i in arrays[1].tolist())
        and arrays[2][0] == 0
        and arrays[2][-1] == len(arrays[0])
        and all(1 <= b - a <= 60 for a, b in zip(arrays[2][:-1].tolist(), arrays[2][1:].tolist(), strict=True))
    )
    if sound:
        logits = scorer.score(*arrays)
        assert len(logits) == len(arrays[2]) - 1
        assert np.isfinite(logits).all()
    else:
        with pytest.raises(NativeError):
            scorer.score(*arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0, not 1 to 48"),
        ({"hidden": -128}, "hidden is -128, not 1 to 2048"),
        ({"heads": 3}, "hidden 128 is no multiple of heads 3"),
        ({"heads": 200}, "heads is 200, not 1 to 128"),
        ({"ffn": 2**31 - 1}, "ffn is 2147483647"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"positions": 70_000}, "positions is 70000"),
        ({"segments": 17}, "segments is 17"),
        ({"epsilon": 0.0}, "epsilon is not between 0 and 1"),
        ({"epsilon": float("nan")}, "epsilon is not between 0 and 1"),
        ({"layers": 3}, "no weight has the role layer.2.query.weight"),
        ({"ffn": 500}, r"layer.0.up.weight has 65536 numbers, the shape asks for 64000"),
        ({"vocab_size": 51}, "embeddings.word has 6400 numbers, the shape asks for 6528"),
    ],
)
def test_a_shape_that_the_weights_do_not_have_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NativeError, match=message):
        NativeModel(KERNEL, replace(SHAPE, **changes), random_weights(SHAPE))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("role", sorted(replace(SHAPE, layers=1).arrays()))
def test_a_weight_that_is_no_number_of_a_trained_model_is_named(role: str, value: float) -> None:
    shape = replace(SHAPE, layers=1)
    weights = random_weights(shape)
    weights[role].flat[-1] = value
    with pytest.raises(NativeError, match=rf"{role}\[{weights[role].size - 1}\] is .*not a number of a trained model"):
        NativeModel(KERNEL, shape, weights)


@pytest.mark.parametrize("role", sorted(SHAPE.arrays()))
def test_a_missing_weight_is_named(role: str) -> None:
    weights = random_weights(SHAPE)
    del weights[role]
    with pytest.raises(NativeError, match=f"no weight has the role {role}"):
        NativeModel(KERNEL, SHAPE, weights)


def test_an_unknown_elementwise_function_is_refused() -> None:
    error = create_string_buffer(256)
    x = np.zeros(1, np.float32)
    assert not load_library(KERNEL).crossrank_elementwise(b"sin", x.ctypes.data, 1, x.ctypes.data, error)
    assert error.value == b"no function is called sin"


def test_a_kernel_that_is_not_there_is_refused() -> None:
    with pytest.raises(NativeError, match="kernel neon: there is none of that name: portable, "):
        load_library("neon")  # type: ignore[arg-type]
