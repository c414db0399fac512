"""Compute the buckets of MPNet's attention bias, by the distance from the query's token to the key's."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BUCKETS = 32
"""Rows of the table of biases; transformers always computes with this number, whatever config.json says."""

_MAX_DISTANCE = 128


def distance_buckets(positions: int) -> NDArray[np.int64]:
    """Return the bucket of each distance, int64 [2 positions - 1].

    A distance is the key's position minus the query's, from 1 - positions on. Half of the buckets are for keys before
    the query, half for keys after it. Of each half, the first half holds one distance each; the others widen
    logarithmically up to a distance of 128.

    Source: `MPNetEncoder.relative_position_bucket` of https://github.com/huggingface/transformers, v4.57.6

    Args:
        positions: Maximum tokens of a pair.
    """
    distance = np.arange(1 - positions, positions)
    half = BUCKETS // 2
    exact = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(_MAX_DISTANCE / exact)
    )
    wide = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, wide)
