"""Remembered words have the ids that the Rust tokenizer gives, or the text is left to it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from crossrank_server import wordpiece
from crossrank_server.bundle import Bundle
from crossrank_server.wordpiece import WordMemory
from tests.conftest import Topic


@pytest.fixture(scope="session")
def definition(builtin: Bundle) -> dict[str, Any]:
    return dict(json.loads(builtin.file("tokenizer.json").read_bytes()))


@pytest.fixture(scope="session")
def reference(builtin: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(builtin.file("tokenizer.json")))


@pytest.fixture(scope="session")
def memory(reference: Tokenizer, definition: dict[str, Any]) -> WordMemory:
    return WordMemory(reference, definition)


def expected(reference: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]


def test_every_code_point_before_inside_and_after_a_word(memory: WordMemory, reference: Tokenizer) -> None:
    answered = 0
    for plane in range(0, sys.maxunicode + 1, 4096):
        points = [chr(c) for c in range(plane, plane + 4096) if not 0xD800 <= c <= 0xDFFF]
        texts = [f"{c}xy x{c}y xy{c} {c} {c}{c}A\u0301{c}." for c in points]
        known = [
            (c, text, ids) for c, text in zip(points, texts, strict=True) if (ids := memory.tokenize(text)) is not None
        ]
        for (c, _, ids), exact in zip(known, expected(reference, [text for _, text, _ in known]), strict=True):
            assert ids == exact, f"U+{ord(c):04X}"
        answered += len(known)
    # Left to the tokenizer: code points that this Python does not know, and a few that canonical ordering moves.
    assert answered > 280_000


def test_every_dl19_text_is_answered_with_the_ids_of_the_tokenizer(
    memory: WordMemory, reference: Tokenizer, dl19: list[Topic]
) -> None:
    texts = [text for topic in dl19 for text in (topic.query, *topic.passages)]
    assert [memory.tokenize(text) for text in texts] == expected(reference, texts)


@settings(max_examples=1000, deadline=None)
@given(
    text=st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB \t\n.,-[]#'\u0301\u0327İß日")),
        max_size=60,
    )
)
@example(text="[SEP]")
@example(text="a [CLS]b")
@example(text="[sep] [ SEP ]")
@example(text="##ing x##y")
@example(text="\U0001d15e\u302e\u302f e\u0327\u0301")
@example(text="ΑΣ ΟΔΟΣ ΣΑΣ. ẞ ǅ ﬁ Ⅷ K")
@example(text="word" * 24 + "worde wordw")
@example(text="x" * 100 + " " + "x" * 101)
def test_any_text_has_the_ids_of_the_tokenizer_or_is_left_to_it(
    memory: WordMemory, reference: Tokenizer, text: str
) -> None:
    assert memory.tokenize(text) in (None, reference.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("text", ["[SEP]", "see [MASK] here", "a\U0001d15e\u302eb"])
def test_what_memory_cannot_know_is_left_to_the_tokenizer(memory: WordMemory, text: str) -> None:
    assert memory.tokenize(text) is None


def stream(memory: WordMemory, words: int) -> int:
    """Feed that many distinct words; return the most that were remembered beside the vocabulary's."""
    most = 0
    for start in range(0, words, 1000):
        memory.tokenize(" ".join(f"w{i:07x}" for i in range(start, start + 1000)))
        most = max(most, len(memory._words) - len(memory._known))
    return most


def test_memory_is_bounded_whatever_the_vocabulary(
    reference: Tokenizer, definition: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordpiece, "_MAX_WORDS", 40_000)
    memory = WordMemory(reference, definition)
    assert stream(memory, 100_000) <= 40_000
    long = "y" * 90
    assert memory.tokenize(long) == reference.encode(long, add_special_tokens=False).ids
    assert long not in memory._words
    assert (
        memory.tokenize("still exact: wordw0000")
        == reference.encode("still exact: wordw0000", add_special_tokens=False).ids
    )


@pytest.mark.slow
def test_ten_million_distinct_words_leave_memory_bounded(reference: Tokenizer, definition: dict[str, Any]) -> None:
    memory = WordMemory(reference, definition)
    assert stream(memory, 10_000_000) <= wordpiece._MAX_WORDS


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["normalizer"].update(lowercase=False),
        lambda d: d["normalizer"].update(strip_accents=False),
        lambda d: d["normalizer"].update(type="NFC"),
        lambda d: d["pre_tokenizer"].update(type="Whitespace"),
        lambda d: d["model"].update(type="Unigram"),
        lambda d: d["added_tokens"][0].update(normalized=True),
        lambda d: d.update(normalizer=None),
    ],
)
def test_other_tokenizers_are_not_taken_for_this_kind(definition: dict[str, Any], change: Any) -> None:
    assert WordMemory.fits(definition)
    other = json.loads(json.dumps(definition))
    change(other)
    assert not WordMemory.fits(other)
