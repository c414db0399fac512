"""Make the requests of a benchmark: from a candidates file, or synthetic text with the same lengths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossrank.errors import SetupError
from crossrank_perf.base.topics import Topic, read_candidates

# Percentiles of TREC DL 2019's 4,300 pairs (BM25 top-100) under the BERT-uncased tokenizer, with [CLS] and both [SEP].
_PERCENT = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
_PAIR_TOKENS = (28, 41, 53, 59, 69, 85, 118, 147, 162, 196, 268)
_QUERY_TOKENS = (4, 4, 4, 4, 5, 7, 8, 10, 12, 12, 13)
_SPECIAL_TOKENS = 3
_TOPICS, _DEPTH = 43, 100
_FIXED_QUERY_TOKENS, _FIXED_REQUESTS, _FIXED_DOCUMENTS = 5, 8, 1000

# Chosen so that a word has DL 2019's 1.36 tokens (it splits, or a mark follows) and a token its 4.5 characters.
_SHARE_SPLIT, _SHARE_MARK = 0.14, 0.2
_COMMON_WORDS, _ZIPF = 20_000, 1.25
_SPLIT_WORDS = 2_000


@dataclass(frozen=True)
class Request:
    """A query and its documents."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """Requests of equally many documents, sent in order and then from the start again.

    Attributes:
        source: Origin of the text, for the report.
        documents: Documents in each request.
        requests: The distinct requests, shuffled once.
    """

    source: str
    documents: int
    requests: tuple[Request, ...]

    def bodies(self, *, grpc: bool = False) -> list[bytes]:
        """Return each request as the JSON body of POST /v1/rerank, or as a message of crossrank.v1.

        `top_n` asks for all results.
        """
        if grpc:
            from crossrank_client.proto.crossrank_v1_pb2 import RerankRequest

            return [
                RerankRequest(query=each.query, documents=each.documents).SerializeToString() for each in self.requests
            ]
        import orjson

        return [
            orjson.dumps({"query": each.query, "documents": each.documents, "top_n": self.documents})
            for each in self.requests
        ]


def load_workload(candidates: Path | None, documents: int, *, synthetic: bool = False, seed: int = 0) -> Workload:
    """Return requests of `documents` documents each.

    Args:
        candidates: File of queries with candidates. Defaults to the DL 2019 file beside the project, or to synthetic
            text with its distribution of lengths where that is absent.
        documents: Documents in each request, at least 1.
        synthetic: Take synthetic text even where the file is present.
        seed: Seed of the synthetic text and of the order of requests.

    Raises:
        SetupError: The file cannot be read.
    """
    path = candidates or find_candidates()
    if path is None or (synthetic and candidates is None):
        topics, source = synthetic_topics(_builtin_tokenizer(), seed), f"synthetic text, seed {seed}"
    else:
        topics, source = read_candidates(path), path.name
    requests = requests_from_topics(topics, documents)
    order = np.random.default_rng(seed).permutation(len(requests))
    return Workload(source, documents, tuple(requests[i] for i in order))


def fixed_length_workload(tokens: int, documents: int, seed: int = 0) -> Workload:
    """Return synthetic requests whose pairs all have exactly `tokens` tokens, [CLS] and both [SEP] included.

    Raises:
        SetupError: `tokens` is too small for a query and a document.
    """
    left = tokens - _FIXED_QUERY_TOKENS - _SPECIAL_TOKENS
    if left < 1:
        least = _FIXED_QUERY_TOKENS + _SPECIAL_TOKENS + 1
        raise SetupError(f"pairs of {tokens} tokens cannot be written: give at least {least}")
    writer = _Writer(_builtin_tokenizer(), np.random.default_rng(seed))
    count = max(_FIXED_REQUESTS, -(-_FIXED_DOCUMENTS // documents))
    requests = tuple(
        Request(writer.text(_FIXED_QUERY_TOKENS), tuple(writer.text(left) for _ in range(documents)))
        for _ in range(count)
    )
    return Workload(f"synthetic text, pairs of {tokens} tokens, seed {seed}", documents, requests)


def find_candidates() -> Path | None:
    """Return the DL 2019 candidates file beside the project, or None where there is none."""
    path = shared_folder() / "data" / "dl19-bm25-top100.jsonl.gz"
    return path if path.is_file() else None


def shared_folder() -> Path:
    """Return the folder of data and weights beside the project, which may be absent."""
    return Path(os.environ.get("CROSSRANK_SHARED", "../shared"))


def single_documents(workload: Workload) -> Workload:
    """Return the same text as requests of one document each."""
    requests = tuple(Request(each.query, (text,)) for each in workload.requests for text in each.documents)
    return Workload(workload.source, 1, requests)


def requests_from_topics(topics: Sequence[Topic], documents: int) -> list[Request]:
    """Cut each topic's candidates into requests of exactly `documents` documents.

    A topic with fewer candidates gets those of the next topics too; a remainder too small for a request is left out.
    """
    if documents < 1:
        raise SetupError(f"a request of {documents} documents cannot be built: give at least 1")
    requests = []
    for number, topic in enumerate(topics):
        own = topic.documents
        if len(own) < documents:
            own = _filled_up(topics, number, documents)
        starts = range(0, len(own) - documents + 1, documents)
        requests += [Request(topic.query, own[start : start + documents]) for start in starts]
    return requests


def _filled_up(topics: Sequence[Topic], number: int, documents: int) -> tuple[str, ...]:
    texts: list[str] = []
    while len(texts) < documents:
        texts += topics[number % len(topics)].documents
        number += 1
    return tuple(texts[:documents])


def synthetic_topics(tokenizer: Tokenizer, seed: int = 0, topics: int = _TOPICS, depth: int = _DEPTH) -> list[Topic]:
    """Return queries and passages of DL 2019's token lengths, made of the tokenizer's own words.

    Words follow Zipf's law over the vocabulary (which lists them by frequency), some are split into several tokens, and
    punctuation stands between them, so that a tokenizer has as much work as with English text.
    """
    rng = np.random.default_rng(seed)
    writer = _Writer(tokenizer, rng)
    made = []
    for number in range(topics):
        query_tokens = int(_sample(rng, _QUERY_TOKENS, 1)[0])
        lengths = _sample(rng, _PAIR_TOKENS, depth) - query_tokens - _SPECIAL_TOKENS
        documents = tuple(writer.text(max(1, int(length))) for length in lengths)
        docids = tuple(f"{number}-{i}" for i in range(depth))
        made.append(Topic(f"synthetic-{number}", writer.text(query_tokens), docids, documents))
    return made


def _sample(rng: np.random.Generator, quantiles: Sequence[int], count: int) -> NDArray[np.int64]:
    """Draw whole numbers from the distribution with these quantiles at _PERCENT, linear in between."""
    return np.rint(np.interp(rng.uniform(0, 100, count), _PERCENT, quantiles)).astype(np.int64)


class _Writer:
    """Generates text of an exact number of tokens."""

    def __init__(self, tokenizer: Tokenizer, rng: np.random.Generator) -> None:
        ordered = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        ascii_words = [word for word, _ in ordered if word.isascii() and word.isalpha() and len(word) > 1]
        self._words = ascii_words[:_COMMON_WORDS]
        endings = [word[2:] for word, _ in ordered if word.startswith("##") and word[2:].isalpha() and word.isascii()]
        joined = [
            self._words[int(i)] + endings[int(j)]
            for i, j in zip(
                rng.integers(0, len(self._words), _SPLIT_WORDS),
                rng.integers(0, min(1000, len(endings)), _SPLIT_WORDS),
                strict=True,
            )
        ]
        pieces = [len(encoding.ids) for encoding in tokenizer.encode_batch(joined, add_special_tokens=False)]
        self._split = [(word, count) for word, count in zip(joined, pieces, strict=True) if count > 1]
        weight = (np.arange(len(self._words)) + 3.0) ** -_ZIPF
        self._cumulative = np.cumsum(weight / weight.sum())
        self._rng = rng

    def text(self, tokens: int) -> str:
        """Return words and punctuation that the tokenizer turns into exactly `tokens` tokens."""
        kinds = self._rng.random(tokens)
        ranks = np.minimum(np.searchsorted(self._cumulative, self._rng.random(tokens)), len(self._words) - 1)
        parts: list[str] = []
        left = tokens
        for kind, rank in zip(kinds.tolist(), ranks.tolist(), strict=True):
            if left <= 0:
                break
            word, cost = self._words[rank], 1
            if kind < _SHARE_SPLIT:
                split, pieces = self._split[rank % len(self._split)]
                if pieces <= left:
                    word, cost = split, pieces
            if kind > 1 - _SHARE_MARK and cost < left:
                word, cost = word + (", " if kind > 1 - _SHARE_MARK / 2 else ". "), cost + 1
            else:
                word += " "
            parts.append(word)
            left -= cost
        return "".join(parts).strip()


def _builtin_tokenizer() -> Tokenizer:
    from crossrank.resolve import builtin_path

    return tokenizer_from(builtin_path())


def tokenizer_from(bundle: Path) -> Tokenizer:
    """Return a bundle's tokenizer, without padding or truncation."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
