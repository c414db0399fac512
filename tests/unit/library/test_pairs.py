"""Token ids, segments and truncation are those of the reference tokenizer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from crossrank.bundles.bundle import Bundle
from crossrank.native.padding import pad
from crossrank.packed import PairBatch
from crossrank.text.encoding import EncodedPairs, PairEncoder
from tests.conftest import Topic

SPECIAL = [
    "[SEP]",
    "[CLS] a [PAD]",
    "\x00\x01\x7f",
    "\u200b\u200d\ufeff",
    "e\u0301\u0327",
    "日本語 한국어",
    "👩‍👩‍👧 👍🏽",
    "\u00ad",
    "İıſß",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.lists(
        st.sampled_from([*SPECIAL, "word", " ", "\t\n", "supercalifragilistic", "a.b,c", "x" * 120]), max_size=12
    ).map("".join),
)


@pytest.fixture(scope="session")
def encoder(builtin: Bundle) -> PairEncoder:
    return PairEncoder(builtin)


@pytest.fixture(scope="session")
def reference(builtin: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(builtin.file("tokenizer.json")))


def pair(batch: PairBatch, i: int) -> tuple[list[int], list[int]]:
    span = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
    return batch.input_ids[span].tolist(), batch.token_type_ids[span].tolist()


def test_every_dl19_pair_has_the_ids_and_segments_of_the_reference(
    encoder: PairEncoder, reference: Tokenizer, dl19: list[Topic]
) -> None:
    compared = 0
    for topic in dl19:
        encoded = encoder.encode(topic.query, topic.passages)
        expected = reference.encode_batch([(topic.query, passage) for passage in topic.passages])
        for i, encoding in enumerate(expected):
            assert pair(encoded.batch, i) == (encoding.ids, encoding.type_ids)
            compared += 1
        assert encoded.truncated == []
    assert compared == 4300


@settings(max_examples=300, deadline=None)
@given(query=texts, documents=st.lists(texts, min_size=1, max_size=4))
@example(query="[SEP]", documents=["", " ", "\x00", "[SEP] [SEP]"])
def test_any_unicode_pair_has_the_ids_and_segments_of_the_reference(
    encoder: PairEncoder, reference: Tokenizer, query: str, documents: list[str]
) -> None:
    encoded = encoder.encode(query, documents)
    for i, document in enumerate(documents):
        expected = reference.encode(query, document)
        assert len(expected.ids) <= 512
        assert pair(encoded.batch, i) == (expected.ids, expected.type_ids)


@settings(max_examples=150, deadline=None)
@given(
    query_words=st.integers(0, 700),
    documents=st.lists(
        st.tuples(st.integers(0, 900), st.sampled_from(["word ", "Ünïcödé ", "unaffable,", "日本"])),
        min_size=1,
        max_size=3,
    ),
)
@example(query_words=254, documents=[(600, "word "), (255, "word "), (256, "word ")])
@example(query_words=255, documents=[(600, "word "), (10, "word "), (254, "word ")])
@example(query_words=600, documents=[(600, "word "), (10, "word "), (0, "word ")])
@example(query_words=2000, documents=[(1900, "a "), (2000, "a "), (2100, "a "), (600, "unaffable,")])
def test_pairs_over_the_window_are_truncated_longest_first(
    encoder: PairEncoder, truncating: BertTokenizerFast, query_words: int, documents: list[tuple[int, str]]
) -> None:
    query = "query " * query_words
    passages = [word * count for count, word in documents]
    encoded = encoder.encode(query, passages)
    expected: Any = truncating([query] * len(passages), passages, truncation="longest_first", max_length=512)
    for i in range(len(passages)):
        assert pair(encoded.batch, i) == (expected["input_ids"][i], expected["token_type_ids"][i])


@pytest.fixture(scope="session")
def truncating(builtin: Bundle) -> BertTokenizerFast:
    return BertTokenizerFast(tokenizer_file=str(builtin.file("tokenizer.json")))


def test_truncation_is_reported_for_the_documents_that_lost_tokens(encoder: PairEncoder) -> None:
    encoded = encoder.encode("short query", ["short", "word " * 600, "", "word " * 507, "word " * 508])
    assert encoded.truncated == [1, 4]
    assert not encoded.query_truncated
    assert encoded.batch.lengths.tolist()[1] == 512


def test_a_query_over_half_of_the_window_is_truncated_and_reported(encoder: PairEncoder) -> None:
    encoded = encoder.encode("query " * 400, ["word " * 400])
    assert encoded.query_truncated
    assert encoded.truncated == [0]


@pytest.mark.parametrize(
    "document",
    [
        "word " * 200_000,
        "x" * 1_000_000,
        " " * 1_000_000,
        "\x00" * 1_000_000,
        (" " * 9_000 + "word") * 100,
        "é, " * 300_000,
        "a,b" * 300_000,
        "line\n\u0301" * 200_000,
        "日本。" * 300_000,
        "[SEP]" * 200_000,
    ],
    ids=["words", "one word", "blank", "control", "sparse", "non-ascii", "commas", "lines", "chinese", "brackets"],
)
def test_a_document_of_a_megabyte_has_the_ids_of_the_whole_text(
    encoder: PairEncoder, reference: Tokenizer, document: str
) -> None:
    encoded = encoder.encode("query", [document])
    reference.enable_truncation(512)
    try:
        expected = reference.encode("query", document)
    finally:
        reference.no_truncation()
    assert pair(encoded.batch, 0) == (expected.ids, expected.type_ids)


def test_the_query_is_the_first_segment_of_every_pair(encoder: PairEncoder) -> None:
    encoded: EncodedPairs = encoder.encode("a query", ["first", "second document"])
    for i in range(2):
        ids, types = pair(encoded.batch, i)
        assert types == [0] * 4 + [1] * (len(ids) - 4)
        assert ids[0] == 101
        assert ids[3] == ids[-1] == 102


def test_padding_attends_to_real_tokens_only() -> None:
    batch = PairBatch(np.array([5, 6, 7], np.int32), np.array([0, 1, 1], np.int32), np.array([0, 1, 3]))
    ids, types, mask = pad(batch, 4, pad_token_id=9, rows=3)
    assert ids.tolist() == [[5, 9, 9, 9], [6, 7, 9, 9], [9, 9, 9, 9]]
    assert types.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_the_tokenizer_of_the_bundle_is_the_published_one(builtin: Bundle, shared_dir: Any) -> None:
    published = json.loads((shared_dir / "data" / "bert-base-uncased-tokenizer" / "tokenizer.json").read_bytes())
    shipped = json.loads(builtin.file("tokenizer.json").read_bytes())
    assert shipped["model"] == published["model"]
    assert shipped["normalizer"] == published["normalizer"]
    assert shipped["post_processor"] == published["post_processor"]
