"""The lengths that pairs are padded to: one list for TensorRT's profiles, Triton and CUDA graphs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from crossrank.engines.buckets import BUCKET_LENGTHS, check_lengths, fit_lengths
from crossrank.errors import SetupError


def test_lengths_grow_by_a_half_at_most_from_64_on_and_are_multiples_of_32():
    assert BUCKET_LENGTHS[:2] == (32, 64)
    assert all(length % 32 == 0 for length in BUCKET_LENGTHS)
    assert all(shorter < longer <= 1.5 * shorter for shorter, longer in pairwise(BUCKET_LENGTHS[1:]))


@pytest.mark.parametrize(
    ("window", "lengths"),
    [
        (20, (20,)),
        (32, (32,)),
        (300, (32, 64, 96, 128, 192, 256, 300)),
        (512, (32, 64, 96, 128, 192, 256, 384, 512)),
        (1026, (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1026)),
        (10_000, (*BUCKET_LENGTHS, 10_000)),
    ],
)
def test_lengths_end_at_the_window(window, lengths):
    assert check_lengths(None, window) == fit_lengths(BUCKET_LENGTHS, window) == lengths


def test_given_lengths_are_taken_as_they_are():
    assert check_lengths([48, 512], 512) == (48, 512)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "not ascending"),
        ([64, 32], "64,32 are not ascending"),
        ([0, 512], "0,512 are not ascending"),
        ([32, 32, 512], "not ascending"),
        ([128, 256], "end at 256 tokens, the bundle's pairs have up to 512: make 512 the last bucket"),
        ([512, 1024], "end at 1024"),
    ],
)
def test_lengths_that_do_not_fit_the_window_are_refused(given, message):
    with pytest.raises(SetupError, match=message):
        check_lengths(given, 512)
