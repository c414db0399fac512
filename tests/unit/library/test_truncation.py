"""Long texts: cut from either end, in chunks, within caps, or refused; each chunk is scored as if it were alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossrank.bundles.bundle import Bundle
from crossrank.engines.base import Engine
from crossrank.engines.select import make_engine
from crossrank.errors import InvalidRequest
from crossrank.packed import PairBatch
from crossrank.request import Truncation
from crossrank.text.encoding import EncodedPairs, PairEncoder
from crossrank.text.tokenizer import TextTokenizer
from crossrank.text.truncation import kept_pieces, longest_first

WINDOW = 509
WORDS = ["word ", "Ünïcödé ", "unaffable,", "日本。", "flea ", "a.b,c "]


@pytest.fixture(scope="module")
def encoder(builtin: Bundle) -> PairEncoder:
    return PairEncoder(builtin)


@pytest.fixture(scope="module")
def tokenizer(builtin: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(builtin.file("tokenizer.json")))


@pytest.fixture(scope="module")
def engine(builtin: Bundle) -> Engine:
    return make_engine(builtin, "onnxruntime", "fp32", 1)


@pytest.fixture(scope="module")
def reader(builtin: Bundle) -> TextTokenizer:
    return TextTokenizer(builtin.file("tokenizer.json"))


def pair(batch: PairBatch, i: int) -> list[int]:
    return batch.input_ids[int(batch.offsets[i]) : int(batch.offsets[i + 1])].tolist()


def types(batch: PairBatch, i: int) -> list[int]:
    return batch.token_type_ids[int(batch.offsets[i]) : int(batch.offsets[i + 1])].tolist()


def chunk_ids(encoded: EncodedPairs, query_tokens: int) -> list[list[int]]:
    """The document part of each pair."""
    return [pair(encoded.batch, i)[query_tokens + 2 : -1] for i in range(len(encoded.batch))]


@given(query=st.integers(0, 40), document=st.integers(0, 200), window=st.integers(2, 30), chunks=st.integers(1, 9))
@example(query=0, document=200, window=2, chunks=1)
@example(query=40, document=3, window=2, chunks=5)
@pytest.mark.parametrize("direction", ["right", "left"])
def test_pieces_are_windows_of_the_document_side_by_side(
    direction: Any, query: int, document: int, window: int, chunks: int
) -> None:
    kept_query, pieces = kept_pieces(
        query, document, window, Truncation(direction=direction, max_chunks_per_doc=chunks)
    )
    kept = longest_first(query, document, window)
    assert kept_query == kept[0]
    assert 1 <= len(pieces) <= chunks
    assert all(kept_query + stop - start <= window for start, stop in pieces)
    assert [start for start, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
    assert all(stop - start == kept[1] for start, stop in pieces[:-1])
    covered = pieces[-1][1] - pieces[0][0]
    assert covered == min(document, kept[1] * chunks)
    assert (pieces[-1][1] == document) if direction == "left" else (pieces[0][0] == 0)


def test_a_document_that_fits_is_the_same_with_and_without_chunks(encoder: PairEncoder) -> None:
    documents = ["short", "word " * 507, "", "word " * 300]
    plain = encoder.encode("short query", documents)
    chunked = encoder.encode("short query", documents, Truncation(max_chunks_per_doc=10))
    np.testing.assert_array_equal(plain.batch.input_ids, chunked.batch.input_ids)
    np.testing.assert_array_equal(plain.batch.offsets, chunked.batch.offsets)
    assert chunked.first_pairs is None


def test_chunks_are_consecutive_windows_and_what_they_do_not_cover_is_reported(
    encoder: PairEncoder, tokenizer: Tokenizer
) -> None:
    long = " ".join(f"{i} flea" for i in range(600))
    ids = tokenizer.encode(long, add_special_tokens=False).ids
    room = WINDOW - 2
    assert 2 * room < len(ids) < 3 * room
    for chunks, covered in [(2, 2 * room), (3, len(ids)), (10, len(ids))]:
        encoded = encoder.encode("short query", ["before", long, "after"], Truncation(max_chunks_per_doc=chunks))
        parts = chunk_ids(encoded, 2)
        assert [token for part in parts[1:-1] for token in part] == ids[:covered]
        assert all(len(part) == room for part in parts[1:-2])
        assert encoded.first_pairs is not None
        assert encoded.first_pairs.tolist() == [0, 1, len(parts) - 1]
        assert encoded.truncated == ([1] if covered < len(ids) else [])
        for i in range(len(parts)):
            assert types(encoded.batch, i) == [0] * 4 + [1] * (len(parts[i]) + 1)


def test_the_first_chunk_is_what_truncation_keeps_and_with_left_the_last_one_is(encoder: PairEncoder) -> None:
    long = " ".join(f"{i} flea" for i in range(900))
    for direction, place in (("right", 0), ("left", -1)):
        alone = encoder.encode("query " * 300, [long], Truncation(direction=direction))
        chunked = encoder.encode("query " * 300, [long], Truncation(direction=direction, max_chunks_per_doc=4))
        chunks = [pair(chunked.batch, i) for i in range(len(chunked.batch))]
        assert len(chunks) == 4
        assert chunks[place] == pair(alone.batch, 0)
        assert chunked.query_truncated is alone.query_truncated is True


async def test_the_score_of_a_document_is_that_of_its_best_chunk_scored_alone(
    encoder: PairEncoder, engine: Engine
) -> None:
    query = "how many people live in berlin"
    filler = "the flea is a small insect that lives on other animals . " * 45
    answer = "berlin has a population of 3,520,031 registered inhabitants . "
    documents = [filler + answer + filler, answer, filler * 3, filler + filler, answer + filler * 2]
    encoded = encoder.encode(query, documents, Truncation(max_chunks_per_doc=10))
    logits = await engine.score(encoded.batch)
    best = encoded.document_logits(logits)
    assert encoded.first_pairs is not None
    bounds = [*encoded.first_pairs.tolist(), len(encoded.batch)]
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        alone = [float((await engine.score(one_pair(encoded.batch, j)))[0]) for j in range(start, stop)]
        assert best[i] == pytest.approx(max(alone), abs=1e-5)
    truncated = encoder.encode(query, documents)
    first_only = await engine.score(truncated.batch)
    # The answer is beyond the window of the first document: only chunks find it.
    assert best[0] > first_only[0] + 0.3
    assert (best >= first_only - 1e-5).all()


def one_pair(batch: PairBatch, i: int) -> PairBatch:
    span = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
    ids = batch.input_ids[span]
    return PairBatch(ids, batch.token_type_ids[span], np.array([0, len(ids)]))


def test_a_tie_of_chunks_is_their_score() -> None:
    batch = PairBatch(np.zeros(4, np.int32), np.zeros(4, np.int32), np.arange(5))
    encoded = EncodedPairs(batch, [], False, [], np.array([0, 3]))
    logits: NDArray[np.float32] = np.array([-1, 2, 2, -3], np.float32)
    assert encoded.document_logits(logits).tolist() == [2, -3]


@settings(max_examples=100, deadline=None)
@given(
    query_words=st.integers(0, 700),
    documents=st.lists(st.tuples(st.integers(0, 900), st.sampled_from(WORDS)), min_size=1, max_size=3),
)
@example(query_words=254, documents=[(600, "word "), (255, "word ")])
@example(query_words=600, documents=[(600, "word "), (10, "日本。"), (0, "word ")])
def test_left_keeps_the_ends_as_the_reference_does(
    encoder: PairEncoder, tokenizer: Tokenizer, query_words: int, documents: list[tuple[int, str]]
) -> None:
    query = "".join(f"q{i % 7} " for i in range(query_words // 2))
    passages = ["".join(f"{i % 11} {word}" for i in range(count)) for count, word in documents]
    encoded = encoder.encode(query, passages, Truncation(direction="left"))
    tokenizer.enable_truncation(512, strategy="longest_first", direction="left")
    try:
        expected = tokenizer.encode_batch([(query, passage) for passage in passages])
    finally:
        tokenizer.no_truncation()
    for i, encoding in enumerate(expected):
        assert (pair(encoded.batch, i), types(encoded.batch, i)) == (encoding.ids, encoding.type_ids)


@pytest.mark.parametrize(
    "document",
    [
        "word " * 40_000,
        "x" * 200_000,
        " " * 200_000,
        ("word" + " " * 9_000) * 20,
        "é, " * 60_000,
        "line\n\u0301" * 40_000,
        "日本。" * 60_000,
        "日本" * 60_000,
        "[SEP]" * 40_000,
    ],
    ids=["words", "one word", "blank", "sparse", "non-ascii", "lines", "chinese", "no boundary", "brackets"],
)
def test_the_last_ids_of_a_long_text_are_those_of_all_of_it(
    reader: TextTokenizer, tokenizer: Tokenizer, document: str
) -> None:
    whole = tokenizer.encode(document, add_special_tokens=False).ids
    ids = reader.tokenize([document], 500, from_end=True).text(0).tolist()
    assert len(ids) >= min(501, len(whole))
    assert ids == whole[len(whole) - len(ids) :]


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([*WORDS, "\t", "\u0301", "İ", "##x", "[SEP]"]), max_size=400).map("".join))
def test_a_text_read_from_its_end_has_the_last_ids_of_the_whole(
    reader: TextTokenizer, tokenizer: Tokenizer, text: str
) -> None:
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    for limit in (1, 5, 20):
        ids = reader.tokenize([text], limit, from_end=True).text(0).tolist()
        assert len(ids) > limit or ids == whole
        assert ids == whole[len(whole) - len(ids) :]


@pytest.mark.parametrize("direction", ["right", "left"])
def test_max_tokens_per_doc_cuts_first_and_is_reported(
    encoder: PairEncoder, tokenizer: Tokenizer, direction: Any
) -> None:
    long = " ".join(f"{i} flea" for i in range(900))
    ids = tokenizer.encode(long, add_special_tokens=False).ids
    limits = Truncation(direction=direction, max_tokens_per_doc=700, max_chunks_per_doc=10)
    encoded = encoder.encode("short query", ["ten words of text", long], limits)
    parts = chunk_ids(encoded, 2)
    kept = ids[:700] if direction == "right" else ids[-700:]
    assert [token for part in parts[1:] for token in part] == kept
    assert encoded.truncated == [1]
    small = encoder.encode("short query", ["three words more", "one"], Truncation(max_tokens_per_doc=1))
    assert [len(part) for part in chunk_ids(small, 2)] == [1, 1]
    assert small.truncated == [0]


def test_max_tokens_per_query_cuts_the_query(encoder: PairEncoder) -> None:
    encoded = encoder.encode("one two three four", ["word"], Truncation(max_tokens_per_query=2))
    assert pair(encoded.batch, 0) == pair(encoder.encode("one two", ["word"]).batch, 0)
    assert encoded.query_truncated
    assert not encoder.encode("one two", ["word"], Truncation(max_tokens_per_query=2)).query_truncated


@settings(max_examples=80, deadline=None)
@given(
    query_words=st.integers(400, 1400),
    words=st.integers(0, 1400),
    per_query=st.one_of(st.none(), st.integers(400, 1200)),
    chunks=st.integers(1, 2),
    direction=st.sampled_from(["right", "left"]),
)
@example(query_words=1000, words=700, per_query=900, chunks=1, direction="right")
@example(query_words=1000, words=1200, per_query=None, chunks=1, direction="left")
def test_a_query_over_the_window_is_compared_whole_or_as_its_limit_leaves_it(
    encoder: PairEncoder, query_words: int, words: int, per_query: int | None, chunks: int, direction: Any
) -> None:
    limits = Truncation(max_tokens_per_query=per_query, max_chunks_per_doc=chunks, direction=direction)
    # With so much white space that only the first part of a long text is read at first.
    texts = f"query{' ' * 8}" * query_words, [f"word{' ' * 8}" * words]
    encoded = encoder.encode_groups([("short", ["doc"]), texts], limits)
    query = min(query_words, per_query or query_words)
    kept_query, pieces = kept_pieces(query, words, 509, limits)
    assert encoded.batch.lengths[1:].tolist() == [3 + kept_query + stop - start for start, stop in pieces]
    first_segment = encoded.batch.token_type_ids[encoded.batch.offsets[1] :] == 0
    assert np.count_nonzero(first_segment) == len(pieces) * (kept_query + 2)
    assert encoded.query_truncated == (kept_query < query_words)
    assert encoded.truncated == ([1] if pieces[-1][1] - pieces[0][0] < words else [])


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(5, 600), query_words=st.integers(1, 300), words=st.integers(0, 600))
def test_truncate_prompt_tokens_is_a_smaller_window(
    encoder: PairEncoder, tokenizer: Tokenizer, tokens: int, query_words: int, words: int
) -> None:
    query, document = "query " * query_words, "word " * words
    encoded = encoder.encode(query, [document], Truncation(max_tokens=tokens))
    tokenizer.enable_truncation(min(tokens, 512))
    try:
        expected = tokenizer.encode(query, document).ids
    finally:
        tokenizer.no_truncation()
    assert pair(encoded.batch, 0) == expected


def test_a_window_without_room_for_text_is_refused(encoder: PairEncoder) -> None:
    with pytest.raises(
        InvalidRequest, match="truncate_prompt_tokens is 4; a pair has 3 special tokens: send at least 5"
    ):
        encoder.encode("q", ["a"], Truncation(max_tokens=4))


def test_without_truncation_the_error_names_documents_tokens_and_limit(encoder: PairEncoder) -> None:
    never = Truncation(allowed=False)
    documents = ["fits", "word " * 600, "word " * 507, "word " * 508, "word " * 20_000]
    with pytest.raises(InvalidRequest) as refused:
        encoder.encode("short query", documents, never)
    assert refused.value.param == "documents[1]"
    assert refused.value.code == "too_many_tokens"
    assert refused.value.message == (
        "documents[1] has 600 tokens, documents[3] has 508 tokens, documents[4] has over 5090 tokens; query and "
        "document may have 509 tokens together, the query has 2: shorten them, or let them be truncated"
    )
    assert len(encoder.encode("short query", documents[:1] + documents[2:3], never).batch) == 2


def test_of_many_documents_that_do_not_fit_five_are_named(encoder: PairEncoder) -> None:
    with pytest.raises(InvalidRequest, match=r"texts\[4\] has 510 tokens and 15 more are too long; query") as refused:
        encoder.encode_groups([("q", ["word " * 510] * 20)], Truncation(allowed=False), "texts")
    assert len(refused.value.message) < 400


def test_without_truncation_chunks_that_cover_a_document_are_enough(encoder: PairEncoder) -> None:
    document = "word " * 1000
    covering = Truncation(allowed=False, max_chunks_per_doc=2)
    assert len(encoder.encode("q", [document], covering).batch) == 2
    with pytest.raises(InvalidRequest, match=r"documents\[0\] has 1100 tokens"):
        encoder.encode("q", ["word " * 1100], covering)


def test_without_truncation_a_query_that_would_be_cut_is_refused(encoder: PairEncoder) -> None:
    with pytest.raises(InvalidRequest, match=r"documents\[0\] has 1 tokens; .* the query has 600"):
        encoder.encode("query " * 600, ["word"], Truncation(allowed=False))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 300), st.lists(st.integers(0, 1500), min_size=1, max_size=3)), min_size=1, max_size=4
    ),
    chunks=st.integers(1, 4),
)
def test_groups_are_their_queries_one_after_the_other(
    encoder: PairEncoder, groups: list[tuple[int, list[int]]], chunks: int
) -> None:
    assume(sum(len(documents) for _, documents in groups) > 1)
    limits = Truncation(max_chunks_per_doc=chunks)
    texts = [(f"{i} " * words, ["word " * n for n in documents]) for i, (words, documents) in enumerate(groups)]
    together = encoder.encode_groups(texts, limits)
    alone = [encoder.encode(query, documents, limits) for query, documents in texts]
    np.testing.assert_array_equal(together.batch.input_ids, np.concatenate([one.batch.input_ids for one in alone]))
    assert together.query_truncated == any(one.query_truncated for one in alone)
    scores = np.arange(len(together.batch), dtype=np.float32)
    expected, truncated, pairs, documents = [], [], 0, 0
    for one, (_, own) in zip(alone, texts, strict=True):
        expected += one.document_logits(scores[pairs : pairs + len(one.batch)]).tolist()
        truncated += [documents + i for i in one.truncated]
        pairs += len(one.batch)
        documents += len(own)
    assert together.document_logits(scores).tolist() == expected
    assert together.truncated == truncated


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("query", "document"), [("short", "long"), ("long", "short"), ("long", "long")])
def test_where_a_request_does_not_say_the_side_is_the_tokenizer_s(
    builtin: Bundle, tokenizer: Tokenizer, side: Any, query: str, document: str
) -> None:
    texts = {"short": "how long", "long": " ".join(f"{i} flea" for i in range(700))}
    bundle = Bundle(builtin.path, builtin.manifest.model_copy(update={"truncation_side": side}))
    reference = Tokenizer.from_str(tokenizer.to_str())
    reference.enable_truncation(512, strategy="longest_first", direction=side)
    own = reference.encode(texts[query], texts[document])
    encoder = PairEncoder(bundle)
    encoded = encoder.encode(texts[query], [texts[document]])
    assert (pair(encoded.batch, 0), types(encoded.batch, 0)) == (own.ids, own.type_ids)
    # What it does say counts.
    other: Any = {"right": "left", "left": "right"}[side]
    asked = encoder.encode(texts[query], [texts[document]], Truncation(direction=other))
    assert pair(asked.batch, 0) != own.ids
