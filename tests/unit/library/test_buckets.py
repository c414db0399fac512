"""Pairs split into buckets, padded and read back are the pairs they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.engines.triton.buckets import split_by_bucket, split_by_rows
from crossrank.native.padding import pad
from crossrank.packed import PairBatch, join_pairs, pairs_from_padded, take_pairs
from crossrank.scheduling.similar import first_similar

BUCKETS = (4, 8, 16)
VOCAB = 100

lengths_strategy = st.lists(st.integers(1, 16), min_size=1, max_size=40)


def batch_of(lengths: list[int], seed: int = 0) -> PairBatch:
    random = np.random.default_rng(seed)
    tokens = sum(lengths)
    return PairBatch(
        random.integers(0, VOCAB, tokens, np.int32),
        random.integers(0, 2, tokens, np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def pairs_of(batch: PairBatch) -> list[tuple[list[int], list[int]]]:
    spans = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    return [(batch.input_ids[a:b].tolist(), batch.token_type_ids[a:b].tolist()) for a, b in spans]


@given(lengths_strategy, st.integers(1, 10))
def test_every_pair_is_in_one_part_whose_bucket_is_the_shortest_that_holds_it(lengths, max_rows):
    parts = split_by_bucket(np.array(lengths, np.int64), BUCKETS, max_rows)
    assert sorted(row for part in parts for row in part.rows) == list(range(len(lengths)))
    for part in parts:
        assert 1 <= len(part.rows) <= max_rows
        assert all(part.length == min(b for b in BUCKETS if b >= lengths[row]) for row in part.rows)


@given(lengths_strategy)
def test_a_bucket_is_split_only_when_it_is_full(lengths):
    parts = split_by_bucket(np.array(lengths, np.int64), BUCKETS, 5)
    for bucket in BUCKETS:
        sizes = [len(part.rows) for part in parts if part.length == bucket]
        assert all(size == 5 for size in sizes[:-1])


@given(lengths_strategy, st.integers(1, 10))
def test_parts_of_mixed_lengths_are_full_and_padded_to_the_bucket_of_their_longest_pair(lengths, max_rows):
    parts = split_by_rows(np.array(lengths, np.int64), BUCKETS, max_rows)
    assert sorted(row for part in parts for row in part.rows) == list(range(len(lengths)))
    assert all(len(part.rows) == max_rows for part in parts[:-1])
    for part in parts:
        assert part.length == min(b for b in BUCKETS if b >= max(lengths[row] for row in part.rows))


@pytest.mark.parametrize("split", [split_by_bucket, split_by_rows])
def test_a_pair_over_the_last_bucket_is_refused(split):
    with pytest.raises(ValueError, match="17 tokens, the longest bucket 16"):
        split(np.array([3, 17], np.int64), BUCKETS, 8)


@given(lengths_strategy, st.integers(0, 5))
def test_padding_and_reading_back_gives_the_same_pairs(lengths, extra):
    batch = batch_of(lengths)
    again = pairs_from_padded(*pad(batch, max(lengths) + extra, 0), VOCAB)
    assert pairs_of(again) == pairs_of(batch)


@given(lengths_strategy, st.randoms(use_true_random=False))
def test_taking_rows_gives_those_pairs_in_that_order(lengths, random):
    batch = batch_of(lengths)
    rows = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    taken = take_pairs(batch, np.array(rows, np.int64))
    assert pairs_of(taken) == [pairs_of(batch)[row] for row in rows]


@given(st.lists(lengths_strategy, min_size=1, max_size=4))
def test_joining_keeps_all_pairs_in_order(groups):
    batches = [batch_of(lengths, seed) for seed, lengths in enumerate(groups)]
    assert pairs_of(join_pairs(batches)) == [pair for batch in batches for pair in pairs_of(batch)]


def test_a_row_of_zeros_is_one_token_as_in_a_warm_up():
    zeros = np.zeros((2, 8), np.int32)
    assert pairs_from_padded(zeros, zeros, zeros, VOCAB).lengths.tolist() == [1, 1]


def test_a_model_without_segments_gets_segment_zero():
    ids, _, mask = pad(batch_of([3, 5]), 8, 0)
    assert pairs_from_padded(ids, None, mask, VOCAB).token_type_ids.tolist() == [0] * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, types, mask: mask.__setitem__((0, 0), 0), "ones followed by zeros"),
        (lambda ids, types, mask: mask.__setitem__((0, 1), 0), "ones followed by zeros"),
        (lambda ids, types, mask: ids.__setitem__((1, 2), VOCAB), "0 to 99, not"),
        (lambda ids, types, mask: ids.__setitem__((1, 2), -1), "not -1 to"),
        (lambda ids, types, mask: ids.__setitem__((0, 7), VOCAB), None),
    ],
    ids=["first-token-hidden", "hole-in-mask", "id-too-large", "negative-id", "id-in-padding-is-not-read"],
)
def test_tensors_that_are_no_right_padded_pairs_are_refused(change, message):
    tensors = pad(batch_of([3, 5]), 8, 0)
    change(*tensors)
    if message is None:
        assert pairs_from_padded(*tensors, VOCAB).lengths.tolist() == [3, 5]
        return
    with pytest.raises(ValueError, match=message):
        pairs_from_padded(*tensors, VOCAB)


def test_tensors_of_different_shapes_are_refused():
    ids, types, mask = pad(batch_of([3, 5]), 8, 0)
    with pytest.raises(ValueError, match=r"\[2, 8\], \[2, 8\], \[2, 7\]"):
        pairs_from_padded(ids, types, mask[:, :7], VOCAB)


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=60).map(sorted),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.integers(0, 5000),
)
def test_similar_pairs_are_those_of_the_share_or_all_if_their_padding_is_worth_less_than_a_call(lengths, share, spare):
    longest = lengths[-1]
    start, left = first_similar(lengths, len(lengths), longest, share, spare)
    shorter = [longest - length for length in lengths if length < int(longest * share)]
    if sum(shorter) <= spare:
        assert (start, left) == (0, spare - sum(shorter))
    else:
        assert (start, left) == (len(shorter), spare)
