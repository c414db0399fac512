"""Token ids of several texts in one array, and parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Spans(NamedTuple):
    """Parts of an array of ids.

    Attributes:
        starts: int64 [spans], where each begins.
        lengths: int64 [spans], ids of each.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def kept(self, most: int | NDArray[np.int64], *, left: bool) -> Spans:
        """Return the first `most` ids of each span, or the last ones if the left side gives way."""
        lengths = np.minimum(self.lengths, most)
        return Spans(self.starts + (self.lengths - lengths) if left else self.starts, lengths)

    def split(self, at: int) -> tuple[Spans, Spans]:
        """Return the first `at` spans and the others."""
        return Spans(self.starts[:at], self.lengths[:at]), Spans(self.starts[at:], self.lengths[at:])

    def taken(self, indices: NDArray[np.int64]) -> Spans:
        """Return the spans of these indices, which may repeat."""
        return Spans(self.starts[indices], self.lengths[indices])

    def gathered(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the ids of all spans, int32 [sum of lengths], one span after the other."""
        places = (self.starts + self.lengths - self.lengths.cumsum()).repeat(self.lengths)
        places += np.arange(len(places))
        gathered: NDArray[np.int32] = ids[places]
        return gathered


class Tokens(NamedTuple):
    """The token ids of several texts, one after the other.

    Attributes:
        ids: int32 [tokens].
        offsets: int64 [texts + 1]; text i has `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int] | NDArray[np.int32]]) -> Tokens:
        """Pack the ids of each text."""
        ids = np.concatenate([np.empty(0, np.int32), *(np.asarray(text, np.int32) for text in texts)])
        return cls(ids, offsets_of([len(text) for text in texts]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [texts]: tokens of each text."""
        return self.offsets[1:] - self.offsets[:-1]

    def spans(self) -> Spans:
        """Return where each text lies in `ids`."""
        return Spans(self.offsets[:-1], self.lengths)

    def text(self, index: int) -> NDArray[np.int32]:
        """Return the ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def replaced(self, indices: Sequence[int], others: Tokens) -> Tokens:
        """Return these with the texts of `indices` taken from `others`, in that order."""
        texts = [self.text(i) for i in range(len(self.offsets) - 1)]
        for i, index in enumerate(indices):
            texts[index] = others.text(i)
        return Tokens.of(texts)


def offsets_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 [texts + 1], where each of these lengths begins and the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    offsets[1:] = lengths
    return offsets.cumsum()
