"""Choose the tokens of a query and a document that are scored when both do not fit the window together."""

from __future__ import annotations

from crossrank.errors import InvalidRequest
from crossrank.request import Truncation

# Maximum number of documents named in an error.
MOST_NAMED = 5


def kept_pieces(query: int, document: int, window: int, truncation: Truncation) -> tuple[int, list[tuple[int, int]]]:
    """Return how many query tokens are kept, and the parts of the document that are scored with them.

    What fits is scored whole. Else the longer side gives way, and a document that loses tokens is cut into at most
    `max_chunks_per_doc` pieces as long as what truncation alone would keep: the first piece (with the direction
    `left`: the last) is what one without chunks would read. Pieces do not overlap and are in document order.
    Source: https://docs.cohere.com/docs/reranking-best-practices (document chunking)

    Args:
        query: Tokens of the query.
        document: Tokens of the document.
        window: Tokens that both may have together.
        truncation: Its direction and its number of chunks.

    Returns:
        Tokens of the query kept, and (start, stop) of each piece.
    """
    kept_query, kept = longest_first(query, document, window)
    if kept == document:
        return kept_query, [(0, document)]
    covered = min(truncation.max_chunks_per_doc * kept, document)
    first = document - covered if truncation.direction == "left" else 0
    return kept_query, [(start, min(start + kept, first + covered)) for start in range(first, first + covered, kept)]


def longest_first(query: int, document: int, window: int) -> tuple[int, int]:
    """Return how many tokens of the query and of the document are kept; the longer side gives way.

    Source: `TruncationStrategy::LongestFirst` in https://github.com/huggingface/tokenizers (utils/truncation.rs)
    """
    if query + document <= window:
        return query, document
    short, long = sorted((query, document))
    long = short if short > window else max(short, window - short)
    if short + long > window:
        short = window // 2
        long = short + window % 2
    return (short, long) if query <= document else (long, short)


def does_not_fit(
    field: str, counts: list[tuple[int, str]], misfits: int, query_tokens: int, window: int
) -> InvalidRequest:
    """Return the error for documents that would have to be truncated and may not be.

    Args:
        field: What the caller calls the documents.
        counts: (index, tokens as text) of the first documents that do not fit, at most MOST_NAMED.
        misfits: Number of documents that do not fit.
        query_tokens: Tokens of the query.
        window: Tokens that query and document may have together.
    """
    named = ", ".join(f"{field}[{index}] has {tokens} tokens" for index, tokens in counts)
    more = f" and {misfits - len(counts)} more are too long" if misfits > len(counts) else ""
    return InvalidRequest(
        f"{named}{more}; query and document may have {window} tokens together, the query has {query_tokens}: "
        "shorten them, or let them be truncated",
        param=f"{field}[{counts[0][0]}]",
        code="too_many_tokens",
    )


def too_many_chunks(chunks: int, limit: int) -> InvalidRequest:
    """Return the error for documents that make more chunks than one request may have."""
    return InvalidRequest(
        f"the documents make {chunks} chunks, the limit is {limit}; send fewer documents, a smaller "
        "max_chunks_per_doc, or raise --max-documents",
        param="max_chunks_per_doc",
        code="too_many_chunks",
    )
