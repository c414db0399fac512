"""Encode queries and documents as packed pairs, framed as in the model's training; each text is tokenized once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import TOKENIZER, Bundle
from crossrank.errors import BundleError, InvalidRequest
from crossrank.packed import PairBatch, Spans, Tokens, join_pairs, offsets_of
from crossrank.request import Truncation
from crossrank.text.tokenizer import TextTokenizer, go_on
from crossrank.text.truncation import MOST_NAMED, does_not_fit, kept_pieces, too_many_chunks

# Characters that are tokenized in less than a millisecond: by native code, and by the Rust tokenizer.
_INLINE_CHARACTERS, _INLINE_CHARACTERS_SLOWLY = 50_000, 2_000
# Windows up to which the tokens of a document that does not fit are counted exactly.
_COUNTED_WINDOWS = 10
# Tokens, and pairs whatever their tokens, that are assembled in a few milliseconds.
_TOKENS_AT_ONCE, _PAIRS_AT_ONCE = 1 << 18, 100
_TRUNCATE = Truncation()


@dataclass(frozen=True)
class EncodedPairs:
    """Encoded pairs of one request, in document order.

    Attributes:
        batch: Packed token ids.
        truncated: Indices of the documents that are scored only in part.
        query_truncated: Whether a query lost tokens (it is longer than its cap or than half the window).
        over_window: Indices of the documents that do not fit the window with their query, so that one of the two lost
            tokens.
        first_pairs: int64 [documents], index of each document's first pair; None if each document has exactly one.
    """

    batch: PairBatch
    truncated: list[int]
    query_truncated: bool
    over_window: list[int]
    first_pairs: NDArray[np.int64] | None = None

    def document_logits(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logit of each document, that of its best chunk, float32 [documents].

        Args:
            logits: float32 [pairs].
        """
        if self.first_pairs is None:
            return logits
        best: NDArray[np.float32] = np.maximum.reduceat(logits, self.first_pairs)
        return best


class PairEncoder:
    """Encode pairs as `start + query + middle + document + end`, by the bundle's pair template.

    Attributes:
        inline_characters: Texts of at most this many characters in total are encoded faster than another thread could
            take over.

    Raises:
        BundleError: The tokenizer cannot be read, or gives ids that the model has no embedding for.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._tokenizer = TextTokenizer(bundle.file(TOKENIZER))
        self.inline_characters = _INLINE_CHARACTERS if self._tokenizer.native else _INLINE_CHARACTERS_SLOWLY
        self._template = manifest.pair_template
        self._truncation_side = manifest.truncation_side
        self._window = manifest.max_length - manifest.pair_template.special_tokens
        self._fixed = Tokens.of([self._template.start, self._template.middle, self._template.end])
        self._fixed_spans = self._fixed.spans()
        query_segment, document_segment = self._template.segments
        self._segments = [query_segment] * 3 + [document_segment] * 2
        # Some runtimes score ids without an embedding and report no error.
        template = manifest.pair_template
        ids = [*template.start, *template.middle, *template.end, manifest.pad_token_id, self._tokenizer.vocab_size - 1]
        rows = manifest.architecture.vocab_size
        if not 0 <= min(ids) <= max(ids) < rows:
            raise BundleError(
                f"{bundle.path}: token ids reach from {min(ids)} to {max(ids)}, the model has embeddings for 0 to "
                f"{rows - 1}; the tokenizer or the template belongs to another model: export it again"
            )

    def encode(self, query: str, documents: list[str], truncation: Truncation = _TRUNCATE) -> EncodedPairs:
        """Encode the pairs of one query.

        A pair over the window is truncated like Hugging Face's `longest_first`: the document loses tokens, unless the
        query alone takes more than half of the window.
        Source: https://huggingface.co/docs/transformers/pad_truncation

        Raises:
            InvalidRequest: See `encode_groups`.
        """
        return self.encode_groups([(query, documents)], truncation)

    def encode_groups(
        self,
        groups: Sequence[tuple[str, list[str]]],
        truncation: Truncation,
        field: str = "documents",
        *,
        max_pairs: int | None = None,
        proceed: Callable[[], None] = go_on,
    ) -> EncodedPairs:
        """Encode the pairs of several queries.

        Args:
            groups: (query, its documents) each; indices of documents count through all groups.
            truncation: Rules for long texts.
            field: Name of the documents in the caller's dialect, for error messages.
            max_pairs: Limit of pairs, each chunk of a document counted.
            proceed: Called before each step of bounded work, of some ten milliseconds; what it raises ends the work.

        Raises:
            InvalidRequest: A pair does not fit and must not be truncated, the requested window holds no text, or there
                are more pairs than the limit.
        """
        truncation = replace(truncation, direction=truncation.direction or self._truncation_side)
        window = self._window_for(truncation)
        left = truncation.direction == "left"
        documents = [document for _, own in groups for document in own]
        if max_pairs is not None:  # of a document, no more is read than they can hold
            most = max(min(truncation.max_chunks_per_doc, max_pairs + 1), 1)
            truncation = replace(truncation, max_chunks_per_doc=most)
        tokens, unread = self._tokens([query for query, _ in groups], documents, window, truncation, proceed)
        whole = tokens.spans()
        queries, parts = whole.split(len(groups))
        if truncation.max_tokens_per_query is not None:
            queries = queries.kept(truncation.max_tokens_per_query, left=left)
        if truncation.max_tokens_per_doc is not None:
            parts = parts.kept(truncation.max_tokens_per_doc, left=left)
        query_of = np.arange(len(groups)).repeat([len(own) for _, own in groups])
        cut = _Cut(queries.taken(query_of), parts, window, truncation)
        queries_unread = any(i < len(groups) for i in unread)
        unread = [i - len(groups) for i in unread if i >= len(groups)]
        lost = sorted({*cut.lost, *unread}) if unread else cut.lost
        if lost and not truncation.allowed:
            group = query_of[lost[0]]
            same = [i for i in lost if query_of[i] == group]
            counts = self._counts(documents, same[:MOST_NAMED], truncation)
            raise does_not_fit(field, counts, len(same), int(queries.lengths[group]), window)
        if max_pairs is not None and len(cut.queries.starts) > max_pairs:
            raise too_many_chunks(len(cut.queries.starts), max_pairs)
        truncated = parts.lengths < whole.lengths[len(groups) :]
        truncated[cut.short] = True
        truncated[unread] = True
        return EncodedPairs(
            self._assembled(tokens.ids, cut.queries, cut.documents, proceed),
            truncated.nonzero()[0].tolist(),
            cut.query_truncated or queries_unread or bool((queries.lengths < whole.lengths[: len(groups)]).any()),
            lost,
            cut.first_pairs,
        )

    def _window_for(self, truncation: Truncation) -> int:
        """Return the maximum tokens of query and document together."""
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

    def _tokens(
        self,
        queries: list[str],
        documents: list[str],
        window: int,
        truncation: Truncation,
        proceed: Callable[[], None],
    ) -> tuple[Tokens, list[int]]:
        """Return the tokens of queries and documents, of each at least as many as can be used.

        Also the indices of texts of which no more could be read; see `TextTokenizer.read`.
        """
        texts = queries + documents
        left = truncation.direction == "left"
        limit = window * truncation.max_chunks_per_doc
        tokens, unread = self._tokenizer.read(texts, limit, from_end=left, proceed=proceed)
        over = tokens.lengths > limit
        over_queries = over[: len(queries)].nonzero()[0].tolist()
        most = truncation.max_tokens_per_query or max(map(len, queries), default=0)
        if not over_queries or most <= limit:
            return tokens, unread
        if truncation.allowed and not over[len(queries) :].any():
            return tokens, unread  # the documents are shorter, whatever the length of the query
        # Truncation shortens the longer of query and document, so with a query over the limit both must be counted
        # beyond the limit: the query in full, the documents up to the length of the longest query.
        longer, more = self._tokenizer.read([queries[i] for i in over_queries], most, from_end=left, proceed=proceed)
        tokens, unread = self._tokenizer.read(texts, int(longer.lengths.max()), from_end=left, proceed=proceed)
        unread = sorted({*unread, *(over_queries[i] for i in more)})
        return tokens.replaced(over_queries, longer), unread

    def _assembled(
        self, ids: NDArray[np.int32], queries: Spans, documents: Spans, proceed: Callable[[], None] = go_on
    ) -> PairBatch:
        """Assemble the parts of every pair, with bounded numbers of pairs at a time."""
        ids = np.concatenate([self._fixed.ids, ids])
        lengths = queries.lengths + documents.lengths
        if len(lengths) <= _PAIRS_AT_ONCE or lengths.sum() <= _TOKENS_AT_ONCE:
            return self._joined(ids, queries, documents)
        batches = []
        stops = np.searchsorted(lengths.cumsum(), np.arange(0, lengths.sum(), _TOKENS_AT_ONCE)).tolist()
        for start, stop in pairwise([*stops, len(lengths)]):
            proceed()
            rows = np.arange(start, stop)
            batches.append(self._joined(ids, queries.taken(rows), documents.taken(rows)))
        return join_pairs(batches)

    def _joined(self, ids: NDArray[np.int32], queries: Spans, documents: Spans) -> PairBatch:
        """Join the parts of every pair: start, query, middle, document, end."""
        fixed = len(self._fixed.ids)
        # Each is int64 [pairs, parts].
        starts, lengths, segments = np.empty((3, len(queries.starts), 5), np.int64)
        starts[:, ::2], lengths[:, ::2] = self._fixed_spans
        segments[:] = self._segments
        starts[:, 1], lengths[:, 1] = fixed + queries.starts, queries.lengths
        starts[:, 3], lengths[:, 3] = fixed + documents.starts, documents.lengths
        parts = Spans(starts.ravel(), lengths.ravel())
        return PairBatch(
            parts.gathered(ids),
            segments.ravel().repeat(parts.lengths).astype(np.int32),
            offsets_of(lengths.sum(axis=1)),
        )

    def _counts(self, documents: list[str], lost: list[int], truncation: Truncation) -> list[tuple[int, str]]:
        """Return (index, token count as text) of each document in `lost`; beyond ten windows the count is a bound."""
        most = _COUNTED_WINDOWS * self._window
        counts = []
        for i in lost:
            found, unread = self._tokenizer.read([documents[i]], most)
            tokens = min(int(found.lengths[0]), truncation.max_tokens_per_doc or most + 1)
            counts.append((i, f"over {min(tokens, most)}" if tokens > most or unread else str(tokens)))
        return counts


class _Cut:
    """Pairs cut to the window: one for each document, or several pieces of a document that does not fit.

    Args:
        queries: Span of the query of each document.
        documents: Span of each document.
        window: Maximum tokens of query and document together.
        truncation: Rules for long texts, with a direction.

    Attributes:
        queries, documents: Spans that each pair keeps.
        short: Indices of the documents that lose tokens.
        lost: Indices of the documents that lose tokens or whose query does.
        query_truncated: Whether a query loses tokens.
        first_pairs: int64 [documents], index of each document's first pair; None if each document has exactly one.
    """

    def __init__(self, queries: Spans, documents: Spans, window: int, truncation: Truncation) -> None:
        self.queries, self.documents = queries, documents
        self.short: list[int] = []
        self.lost: list[int] = []
        self.query_truncated = False
        self.first_pairs: NDArray[np.int64] | None = None
        misfits = np.flatnonzero(queries.lengths + documents.lengths > window).tolist()
        if misfits:
            self._cut(misfits, window, truncation)

    def _cut(self, misfits: list[int], window: int, truncation: Truncation) -> None:
        kept_queries = self.queries.lengths.copy()
        counts = np.ones(len(kept_queries), np.int64)
        pieces = {}
        for i in misfits:
            query, document = int(self.queries.lengths[i]), int(self.documents.lengths[i])
            kept_queries[i], pieces[i] = kept_pieces(query, document, window, truncation)
            counts[i] = len(pieces[i])
            short = pieces[i][-1][1] - pieces[i][0][0] < document
            query_cut = bool(kept_queries[i] < query)
            self.query_truncated |= query_cut
            if short:
                self.short.append(i)
            if short or query_cut:
                self.lost.append(i)
        document_of = np.repeat(np.arange(len(counts)), counts)
        first_pairs = np.cumsum(counts) - counts
        self.queries = self.queries.kept(kept_queries, left=truncation.direction == "left").taken(document_of)
        self.documents = self.documents.taken(document_of)
        for i, own in pieces.items():
            starts, stops = np.array(own, np.int64).T
            pairs = slice(first_pairs[i], first_pairs[i] + len(own))
            self.documents.starts[pairs] += starts
            self.documents.lengths[pairs] = stops - starts
        if len(document_of) > len(counts):
            self.first_pairs = first_pairs
