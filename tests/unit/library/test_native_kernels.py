"""Every kernel of the native encoder computes BERT, whatever else is in the batch."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from ctypes import create_string_buffer
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.engines.native import precision_of
from crossrank.native.library import KERNELS, NativeContext, NativeModel, load_library, usable_kernels
from crossrank.native.weights import Shape
from crossrank.packed import PairBatch, take_pairs
from crossrank_export.bert import score_pairs
from tests.native_models import TINY, each_kernel, random_pairs, random_weights

pytestmark = pytest.mark.skipif(not usable_kernels(), reason="the native encoder was not built: no C++ compiler")

# Of logits that are of size one: fp32 differs by the order of additions, bf16 by its operands of 8 bits.
LIMIT = {kernel: 2e-5 if precision_of(kernel) == "fp32" else 0.06 for kernel in KERNELS}
SHAPES = {
    "TinyBERT-L2": TINY,
    "one layer": replace(TINY, layers=1),
    "three layers": replace(TINY, layers=3),
    "one segment": replace(TINY, segments=1, positions=40, epsilon=1e-5),
    "MiniLM-L2": replace(TINY, hidden=384, heads=12, ffn=1536),
    "heads that end within a block": replace(TINY, hidden=160, heads=8),
    "TinyBERT-L4": replace(TINY, layers=4, hidden=312, heads=12, ffn=1200),
    "nothing even": replace(TINY, hidden=90, heads=5, ffn=77),
    "too many words for a table": replace(TINY, hidden=320, heads=10, vocab_size=17_500),
}

# Two layers, as the last one keeps one row a document.
LONG = replace(TINY, hidden=32, ffn=64, positions=700)


def context(kernel: str, shape: Shape = TINY) -> NativeContext:
    return NativeContext(NativeModel(kernel, shape, random_weights(shape)))


def score(scorer: NativeContext, batch: PairBatch) -> NDArray[np.float32]:
    return scorer.score(batch.input_ids, batch.token_type_ids, batch.offsets)


@pytest.mark.parametrize("kernel", each_kernel())
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_bert(kernel: str, name: str) -> None:
    shape = SHAPES[name]
    lengths = [n for n in (1, 2, 5, 16, 31, 32, 33, 40, 97, 130) if n <= shape.positions]
    batch = random_pairs(shape, lengths)
    expected = score_pairs(shape, random_weights(shape), batch)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(score(context(kernel, shape), batch), expected, atol=LIMIT[kernel], rtol=0)


@pytest.mark.parametrize("kernel", each_kernel(amx_emulated=pytest.mark.skip(reason="slow: the next test has some")))
def test_every_length_is_scored_as_the_portable_kernel_does(kernel: str) -> None:
    batch = random_pairs(TINY, list(range(1, TINY.positions + 1)))
    if kernel == "portable":
        some = np.arange(2, TINY.positions, 17)
        expected = score_pairs(TINY, random_weights(TINY), take_pairs(batch, some))
        np.testing.assert_allclose(score(context(kernel), batch)[some], expected, atol=2e-5, rtol=0)
    else:
        expected = score(context("portable"), batch)
        np.testing.assert_allclose(score(context(kernel), batch), expected, atol=LIMIT[kernel], rtol=0)


def test_tiles_are_right_at_every_length_around_a_tile() -> None:
    lengths = [*range(1, 70), 127, 128, 129, 255, 256, 257, 511, 512]
    batch = random_pairs(TINY, lengths)
    expected = score(context("portable"), batch)
    np.testing.assert_allclose(score(context("amx_emulated"), batch), expected, atol=LIMIT["amx_emulated"], rtol=0)


@pytest.mark.parametrize("kernel", each_kernel())
def test_a_logit_does_not_depend_on_the_rest_of_the_batch(kernel: str) -> None:
    scorer = context(kernel)
    rng = np.random.default_rng(3)
    sizes = range(1, 66) if kernel != "amx_emulated" else (1, 2, 31, 65)
    lengths = rng.integers(1, 120, 65).tolist()
    whole = random_pairs(TINY, lengths)
    alone = np.concatenate([score(scorer, take_pairs(whole, np.array([i]))) for i in range(65)])
    for size in sizes:
        rows = rng.permutation(65)[:size]
        np.testing.assert_array_equal(score(scorer, take_pairs(whole, rows)), alone[rows], err_msg=f"{size} pairs")


@pytest.mark.parametrize("kernel", each_kernel())
def test_documents_longer_than_a_group_are_scored_like_all_others(kernel: str) -> None:
    """A group has up to 576 rows (kGroupRows), or one longer document, for which the buffers have room."""
    lengths = [3, 576, 2, 577, 33, 1, 699, 700, 5]
    batch = random_pairs(LONG, lengths)
    scorer = context(kernel, LONG)
    logits = score(scorer, batch)
    expected = score_pairs(LONG, random_weights(LONG), batch)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=LIMIT[kernel], rtol=0)
    alone = [score(scorer, take_pairs(batch, np.array([i]))) for i in range(len(lengths))]
    np.testing.assert_array_equal(logits, np.concatenate(alone))
    # Longest first: the others find the buffers as it left them.
    order = np.argsort(lengths)[::-1]
    np.testing.assert_array_equal(score(scorer, take_pairs(batch, order)), logits[order])


@pytest.mark.parametrize("kernel", each_kernel())
def test_threads_with_contexts_of_their_own_give_the_same_bits(kernel: str) -> None:
    model = NativeModel(kernel, TINY, random_weights(TINY))
    batches = [random_pairs(TINY, [3 + i, 40, 7 * i + 1], seed=i) for i in range(8)]
    expected = [score(NativeContext(model), batch) for batch in batches]

    def work(_: int) -> list[NDArray[np.float32]]:
        own = NativeContext(model)
        return [score(own, batch) for batch in batches]

    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(work, range(8)):
            np.testing.assert_array_equal(np.concatenate(answers), np.concatenate(expected))


@pytest.mark.parametrize("kernel", each_kernel())
@pytest.mark.parametrize("name", ["gelu", "exp2", "tanh"])
def test_elementwise_functions_keep_their_stated_error(kernel: str, name: str) -> None:
    x = np.linspace(-126 if name == "exp2" else -30, 30, 40_001, dtype=np.float32)
    y = np.empty_like(x)
    library = load_library(kernel)
    assert library.crossrank_elementwise(name.encode(), x.ctypes.data, len(x), y.ctypes.data, create_string_buffer(256))
    exact = {
        "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
        "exp2": lambda v: 2.0**v,
        "tanh": math.tanh,
    }[name]
    expected = np.array([exact(v) for v in x.astype(float).tolist()])
    error = np.abs(y - expected) / (expected if name == "exp2" else 1)
    assert error.max() < {"gelu": 1e-5, "exp2": 3e-7, "tanh": 3e-7}[name]


@pytest.mark.parametrize("kernel", each_kernel())
def test_an_empty_batch_has_no_logits(kernel: str) -> None:
    assert score(context(kernel), random_pairs(TINY, [])).shape == (0,)
