"""Pack the token ids of texts, or of pairs of texts, one after the other into one array without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Spans(NamedTuple):
    """Ranges of an array of token ids.

    Attributes:
        starts: int64 [spans], index of the first id of each.
        lengths: int64 [spans], number of ids of each.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def kept(self, most: int | NDArray[np.int64], *, left: bool) -> Spans:
        """Return at most `most` ids of each span: the first ones, or the last ones if `left`."""
        lengths = np.minimum(self.lengths, most)
        return Spans(self.starts + (self.lengths - lengths) if left else self.starts, lengths)

    def split(self, at: int) -> tuple[Spans, Spans]:
        """Return the first `at` spans, and the rest."""
        return Spans(self.starts[:at], self.lengths[:at]), Spans(self.starts[at:], self.lengths[at:])

    def taken(self, indices: NDArray[np.int64]) -> Spans:
        """Return the spans at these indices, which may repeat."""
        return Spans(self.starts[indices], self.lengths[indices])

    def places(self) -> NDArray[np.int64]:
        """Return where the ids of all spans lie, one span after the other, int64 [sum of lengths]."""
        places: NDArray[np.int64] = (self.starts + self.lengths - self.lengths.cumsum()).repeat(self.lengths)
        places += np.arange(len(places))
        return places

    def gathered(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the ids of all spans, one span after the other, int32 [sum of lengths]."""
        gathered: NDArray[np.int32] = ids[self.places()]
        return gathered


class Tokens(NamedTuple):
    """Token ids of several texts, one after the other.

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

    @classmethod
    def joined(cls, several: Sequence[Tokens]) -> Tokens:
        """Pack the texts of all of them, in order."""
        ids = np.concatenate([np.empty(0, np.int32), *(tokens.ids for tokens in several)])
        return cls(ids, offsets_of(np.concatenate([np.empty(0, np.int64), *(tokens.lengths for tokens in several)])))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, int64 [texts]."""
        return self.offsets[1:] - self.offsets[:-1]

    def spans(self) -> Spans:
        """Return the span of each text in `ids`."""
        return Spans(self.offsets[:-1], self.lengths)

    def text(self, index: int) -> NDArray[np.int32]:
        """Return the ids of one text, int32 [tokens]."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def replaced(self, indices: Sequence[int], others: Tokens) -> Tokens:
        """Return a copy in which the texts at `indices` are replaced by those of `others`, in that order."""
        texts = [self.text(i) for i in range(len(self.offsets) - 1)]
        for i, index in enumerate(indices):
            texts[index] = others.text(i)
        return Tokens.of(texts)


def offsets_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the start of each of these lengths and the end of the last one, int64 [lengths + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    offsets[1:] = lengths
    return offsets.cumsum()


@dataclass(frozen=True)
class PairBatch:
    """Tokenized pairs, one after the other.

    Attributes:
        input_ids: int32 [tokens], all pairs concatenated, special tokens included.
        token_type_ids: int32 [tokens], the segment of each token.
        offsets: int64 [pairs + 1]; pair i is `input_ids[offsets[i]:offsets[i + 1]]`.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each pair, int64 [pairs]."""
        return np.diff(self.offsets)


def take_pairs(batch: PairBatch, rows: NDArray[np.int64]) -> PairBatch:
    """Return the pairs at `rows`, int64 [pairs to take], in that order."""
    spans = Spans(batch.offsets[:-1], batch.lengths).taken(rows)
    places = spans.places()
    return PairBatch(batch.input_ids[places], batch.token_type_ids[places], offsets_of(spans.lengths))


def join_pairs(batches: Sequence[PairBatch]) -> PairBatch:
    """Return the pairs of all batches as one batch, in order."""
    return PairBatch(
        np.concatenate([batch.input_ids for batch in batches]),
        np.concatenate([batch.token_type_ids for batch in batches]),
        offsets_of(np.concatenate([batch.lengths for batch in batches])),
    )


def pairs_from_padded(
    input_ids: NDArray[np.int32],
    token_type_ids: NDArray[np.int32] | None,
    attention_mask: NDArray[np.int32],
    vocab_size: int,
) -> PairBatch:
    """Return the pairs of padded tensors in packed form: the inverse of `native.padding.pad`.

    A row whose attention mask is all zeros is read as one token: Triton's warm-up requests are all zeros, and the
    softmax of an empty row is undefined.

    Args:
        input_ids: int32 [rows, length].
        token_type_ids: int32 [rows, length], or None where the model has no segments.
        attention_mask: int32 [rows, length], ones and then zeros.
        vocab_size: Number of token embeddings; every id must be below it.

    Raises:
        ValueError: The tensors do not describe right-padded pairs of known tokens.
    """
    types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    if input_ids.ndim != 2 or not input_ids.shape == types.shape == attention_mask.shape or 0 in input_ids.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (input_ids, types, attention_mask))
        raise ValueError(f"input_ids, token_type_ids and attention_mask must be equal [rows, length], not {shapes}")
    attended = attention_mask.astype(np.bool_)
    attended[~attended.any(axis=1), 0] = True
    lengths = attended.sum(axis=1)
    if not np.array_equal(attended, np.arange(attended.shape[1]) < lengths[:, None]):
        raise ValueError("attention_mask must be ones followed by zeros in every row: pad on the right")
    ids = input_ids[attended]
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"input_ids must be 0 to {vocab_size - 1}, not {ids.min()} to {ids.max()}")
    return PairBatch(
        ids.astype(np.int32, copy=False),
        types[attended].astype(np.int32, copy=False),
        offsets_of(lengths),
    )
