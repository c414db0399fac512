"""Query and documents to packed token ids: each text is tokenized once, and assembled as the model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank_server.bundle import TOKENIZER, Bundle, PairTemplate
from crossrank_server.engines.base import PairBatch
from crossrank_server.errors import BundleError, InvalidRequest
from crossrank_server.request import Truncation
from crossrank_server.tokenization import TextTokenizer
from crossrank_server.truncation import does_not_fit, kept_pieces

# Tokens of a document that does not fit are counted exactly up to this many windows.
_COUNTED_WINDOWS = 10
_TRUNCATE = Truncation()


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of one request, in document order.

    Attributes:
        batch: The packed token ids.
        truncated: Indices of the documents of which only a part is scored.
        query_truncated: Whether a query lost tokens too (it is longer than half the window).
        first_pairs: int64 [documents], the first pair of each document; None where each has exactly one.
    """

    batch: PairBatch
    truncated: list[int]
    query_truncated: bool
    first_pairs: NDArray[np.int64] | None = None

    def document_logits(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logit of each document, float32 [documents]: that of its best chunk.

        Args:
            logits: float32 [pairs].
        """
        if self.first_pairs is None:
            return logits
        best: NDArray[np.float32] = np.maximum.reduceat(logits, self.first_pairs)
        return best


class PairEncoder:
    """Assembles `start + query + middle + document + end` as the bundle's pair template says.

    Raises:
        BundleError: The tokenizer cannot be read, or gives ids that the model has no embedding for.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._tokenizer = TextTokenizer(bundle.file(TOKENIZER))
        self._template = manifest.pair_template
        self._window = manifest.max_length - manifest.pair_template.special_tokens
        # An id without an embedding would be scored all the same by some runtimes.
        template = manifest.pair_template
        ids = [*template.start, *template.middle, *template.end, manifest.pad_token_id, self._tokenizer.vocab_size - 1]
        rows = manifest.architecture.vocab_size
        if not 0 <= min(ids) <= max(ids) < rows:
            raise BundleError(
                f"{bundle.path}: token ids reach from {min(ids)} to {max(ids)}, the model has embeddings for 0 to "
                f"{rows - 1}; the tokenizer or the template belongs to another model: export it again"
            )

    def encode(self, query: str, documents: list[str], truncation: Truncation = _TRUNCATE) -> EncodedPairs:
        """Tokenize and assemble all pairs of one query.

        A pair over the window is truncated as Hugging Face's `longest_first` does it: the document gives way,
        unless the query alone takes more than half of the window.
        Source: https://huggingface.co/docs/transformers/pad_truncation

        Raises:
            InvalidRequest: See `encode_groups`.
        """
        return self.encode_groups([(query, documents)], truncation)

    def encode_groups(
        self, groups: Sequence[tuple[str, list[str]]], truncation: Truncation, field: str = "documents"
    ) -> EncodedPairs:
        """Tokenize and assemble the pairs of several queries.

        Args:
            groups: (query, its documents); documents are counted on from group to group.
            truncation: What happens to long texts.
            field: What the caller calls the documents.

        Raises:
            InvalidRequest: A pair does not fit and may not be truncated, or the window asked for holds no text.
        """
        window = self._window_for(truncation)
        packer = _Packer(self._template)
        for query, documents in groups:
            query_ids = self._query_ids(packer, query, window, truncation)
            lost = self._pack(packer, query_ids, documents, window, truncation)
            if lost and not truncation.allowed:
                counts = self._counts(documents, lost, truncation)
                first = packer.documents - len(documents)
                raise does_not_fit(field, [(first + i, n) for i, n in counts], len(query_ids), window)
        return packer.pairs()

    def _window_for(self, truncation: Truncation) -> int:
        """Return how many tokens query and document may have together."""
        if truncation.max_tokens is None:
            return self._window
        special = self._template.special_tokens
        if truncation.max_tokens < special + 2:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {truncation.max_tokens}; a pair has {special} special tokens: "
                f"send at least {special + 2}, or -1 for the whole window of the model",
                param="truncate_prompt_tokens",
            )
        return min(self._window, truncation.max_tokens - special)

    def _query_ids(self, packer: _Packer, query: str, window: int, truncation: Truncation) -> list[int]:
        left = truncation.direction == "left"
        cap = truncation.max_tokens_per_query
        if cap is not None:
            ids = self._tokenizer.tokenize([query], cap, from_end=left)[0]
            packer.query_truncated |= len(ids) > cap
            return _keep(ids, cap, left)
        ids = self._tokenizer.tokenize([query], window, from_end=left)[0]
        # It may have more; a document over the window too must be compared with all of it: the longer keeps more.
        return ids if len(ids) <= window else self._tokenizer.tokenize([query], len(query))[0]

    def _pack(
        self, packer: _Packer, query_ids: list[int], documents: list[str], window: int, truncation: Truncation
    ) -> list[int]:
        """Add the pairs of a query; return the indices of the documents whose pairs lose tokens to the window."""
        left = truncation.direction == "left"
        limit = max(window * truncation.max_chunks_per_doc, len(query_ids))
        cap = truncation.max_tokens_per_doc
        document_ids = self._tokenizer.tokenize(documents, limit if cap is None else min(limit, cap), from_end=left)
        packer.set_query(query_ids)
        room = window - len(query_ids)
        lost = []
        for i, ids in enumerate(document_ids):
            capped = cap is not None and len(ids) > cap
            if capped:
                ids = _keep(ids, cap or 0, left)
            if len(ids) <= room:
                packer.add(ids)
                short = False
            else:
                kept_query, pieces = kept_pieces(len(query_ids), len(ids), window, truncation)
                packer.add_pieces(_keep(query_ids, kept_query, left), [ids[start:stop] for start, stop in pieces])
                short = pieces[-1][1] - pieces[0][0] < len(ids)
                if short or kept_query < len(query_ids):
                    lost.append(i)
            if short or capped:
                packer.truncated.append(packer.documents - 1)
        return lost

    def _counts(self, documents: list[str], lost: list[int], truncation: Truncation) -> list[tuple[int, str]]:
        """Return how many tokens documents have, as text; exactly where they are not far too long."""
        most = _COUNTED_WINDOWS * self._window
        counts = []
        for i in lost:
            tokens = min(
                len(self._tokenizer.tokenize([documents[i]], most)[0]), truncation.max_tokens_per_doc or most + 1
            )
            counts.append((i, str(tokens) if tokens <= most else f"over {most}"))
        return counts


class _Packer:
    """Gathers pairs into one packed batch."""

    def __init__(self, template: PairTemplate) -> None:
        self._template = template
        self._ids: list[int] = []
        self._types: list[int] = []
        self._offsets = [0]
        self._first_pairs: list[int] = []
        self.truncated: list[int] = []
        self.query_truncated = False
        self.set_query([])

    @property
    def documents(self) -> int:
        """How many documents have been added."""
        return len(self._first_pairs)

    def set_query(self, ids: list[int]) -> None:
        """Take this query for the documents that follow."""
        self._query_tokens = len(ids)
        self._head = self._template.start + ids + self._template.middle
        self._head_types = [self._template.segments[0]] * len(self._head)

    def add(self, ids: list[int]) -> None:
        """Add a document with the whole query."""
        self._first_pairs.append(len(self._offsets) - 1)
        self._add(self._head, self._head_types, ids)

    def add_pieces(self, query_ids: list[int], pieces: list[list[int]]) -> None:
        """Add a document in pieces, each with what is kept of the query."""
        self.query_truncated |= len(query_ids) < self._query_tokens
        self._first_pairs.append(len(self._offsets) - 1)
        head = self._template.start + query_ids + self._template.middle
        for ids in pieces:
            self._add(head, self._head_types[: len(head)], ids)

    def _add(self, head: list[int], head_types: list[int], ids: list[int]) -> None:
        end = self._template.end
        self._ids += head
        self._ids += ids
        self._ids += end
        self._types += head_types
        self._types += [self._template.segments[1]] * (len(ids) + len(end))
        self._offsets.append(len(self._ids))

    def pairs(self) -> EncodedPairs:
        """Return what was added."""
        batch = PairBatch(
            np.array(self._ids, np.int32), np.array(self._types, np.int32), np.array(self._offsets, np.int64)
        )
        first_pairs = None if len(batch) == self.documents else np.array(self._first_pairs, np.int64)
        return EncodedPairs(batch, self.truncated, self.query_truncated, first_pairs)


def _keep(ids: list[int], count: int, left: bool) -> list[int]:
    """Return the first `count` ids, or the last ones if the left side gives way."""
    return ids[max(len(ids) - count, 0) :] if left else ids[:count]
