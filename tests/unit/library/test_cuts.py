"""A text that is read in part, from its beginning or its end, has the ids of the whole: for every kind of tokenizer."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from crossrank.bundles.bundle import Bundle
from crossrank.text import cuts
from crossrank.text.tokenizer import TextTokenizer
from tests import odd_texts
from tests.family_tokenizers import trained

FAMILIES = ["bert", "distilbert", "roberta", "modernbert", "xlm-roberta", "deberta-v2"]
PIECES = [
    *odd_texts.LANGUAGES,
    *odd_texts.ODD,
    *odd_texts.SPECIAL_TOKENS,
    *[
        " ",
        "  ",
        "\n",
        "word",
        "日本",
        "。",
        "[MASK]",
        "<mask>",
        " <mask>",
        "\u0301",
        "İ",
        "\U0001d15e\u302e",
        "\u2028",
        "—",
    ],
]
# Each as often as makes some ten thousand characters.
MONOTONOUS = ["[MASK]", "<mask> ", "日本", "日本。", "x", " ", "a ", "é", "\u0301", "—", "\U0001d15e", "ab" * 60 + " "]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, Tokenizer]:
    """Our reader of a tokenizer, without native code for most, and the tokenizer itself."""
    tokenizer: Tokenizer = trained(request.param)
    return reader_of(tokenizer, tmp_path_factory.mktemp("tokenizer")), tokenizer


def reader_of(tokenizer: Tokenizer, folder: Path) -> TextTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder / "tokenizer.json")


def assert_part_of_whole(reader: TextTokenizer, tokenizer: Tokenizer, text: str, limit: int) -> None:
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    for from_end in (False, True):
        tokens, cut = reader.read([text], limit, from_end=from_end)
        ids = tokens.text(0).tolist()
        used = min(limit + 1, len(whole))
        assert not cut
        assert len(ids) >= used
        assert (ids[len(ids) - used :] if from_end else ids[:used]) == (
            whole[len(whole) - used :] if from_end else whole[:used]
        )


def test_odd_texts_in_any_order(family: tuple[TextTokenizer, Tokenizer]) -> None:
    reader, tokenizer = family
    for seed in range(12):
        rng = random.Random(seed)
        text = rng.choice(["", " "]).join(rng.choices(PIECES, k=rng.randint(20, 160)))
        for limit in (1, 7, 40):
            assert_part_of_whole(reader, tokenizer, text, limit)


@pytest.mark.parametrize("unit", MONOTONOUS, ids=ascii)
def test_the_same_over_and_over(family: tuple[TextTokenizer, Tokenizer], unit: str) -> None:
    reader, tokenizer = family
    text = unit * (3_001 // len(unit))
    for edge in ("", "word <mask>"):
        assert_part_of_whole(reader, tokenizer, f"{edge}{text}{edge[::-1]}", 20)


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=60).map("".join), limit=st.integers(1, 30))
@example(text="word" + "\u0301" * 4000 + "word", limit=1)
@example(text="[MASK" + "]" * 900 + "[MASK][MASK]" * 50, limit=3)
@pytest.mark.parametrize("native", [False, True])
def test_any_text_of_the_built_in_model(
    builtin_readers: dict[bool, TextTokenizer], reference: Tokenizer, native: bool, text: str, limit: int
) -> None:
    assert_part_of_whole(builtin_readers[native], reference, text, limit)


@pytest.fixture(scope="module")
def reference(builtin: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(builtin.file("tokenizer.json")))


@pytest.fixture(scope="module")
def builtin_readers(builtin: Bundle) -> dict[bool, TextTokenizer]:
    readers = {native: TextTokenizer(builtin.file("tokenizer.json")) for native in (False, True)}
    readers[False]._native = None
    return readers


LONG = {
    "words": odd_texts.words(20_000, 5),
    "languages": " ".join(odd_texts.LANGUAGES * 400),
    "one word": "x" * 200_000,
    "marks in a word": "wo" + "\u0301" * 150_000 + "rd " + "x" * 99 + "\u0301" * 150_000 + "yy",
    "blank": "a" + " \t\n" * 60_000 + "b",
    "left to the tokenizer": "\U0001d15e" * 150_000 + "x",
}


@pytest.mark.parametrize("name", LONG)
def test_a_text_of_several_calls_has_the_ids_of_one(
    builtin_readers: dict[bool, TextTokenizer], reference: Tokenizer, name: str
) -> None:
    text = LONG[name]
    whole = reference.encode_batch_fast([text], add_special_tokens=False)[0].ids
    for reader in builtin_readers.values():
        tokens, cut = reader.read(["first", text, text[-90_000:], "last"], 1_000_000)
        assert not cut
        assert tokens.text(1).tolist() == whole
        assert tokens.text(3).tolist() == reference.encode("last", add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["xlm-roberta", "roberta", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("from_end", [False, True])
def test_other_tokenizers_read_long_texts_in_parts_too(tmp_path: Path, name: str, from_end: bool) -> None:
    tokenizer: Tokenizer = trained(name)
    text = LONG["languages"]
    whole = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    tokens, cut = reader_of(tokenizer, tmp_path).read([text], 1_000_000, from_end=from_end)
    assert not cut
    assert tokens.text(0).tolist() == whole


@pytest.mark.parametrize("from_end", [False, True])
def test_where_no_place_to_cut_is_known_so_much_is_read_and_the_rest_is_told(tmp_path: Path, from_end: bool) -> None:
    tokenizer: Tokenizer = trained("xlm-roberta")
    reader = reader_of(tokenizer, tmp_path)
    unbroken = "日本のベルリン" * 30_000
    texts = ["short text", "a " * 100 + unbroken + " b" * 100, "word " * 60_000]
    tokens, cut = reader.read(texts, 1_000_000, from_end=from_end)
    assert cut == [1]
    lengths = tokens.lengths.tolist()
    assert lengths[2] == len(tokenizer.encode(texts[2], add_special_tokens=False).ids)
    assert cuts.MOST_UNCUT / 8 < lengths[1] < 2 * cuts.MOST_UNCUT
    # What the window holds is exact all the same, so that nothing need be told.
    assert reader.read(texts, 500, from_end=from_end)[1] == []


def test_work_ends_where_the_caller_says_so(builtin_readers: dict[bool, TextTokenizer]) -> None:
    class GoneError(Exception):
        pass

    steps = []

    def proceed() -> None:
        steps.append(time.monotonic())
        if len(steps) == 3:
            raise GoneError

    for reader, text in zip(builtin_readers.values(), ("word " * 100_000, "word " * 1_000_000), strict=True):
        steps.clear()
        with pytest.raises(GoneError):
            reader.read([text] * 3, 10_000_000, proceed=proceed)
        assert len(steps) == 3


@pytest.mark.parametrize(
    "change", [{"single_word": True}, {"content": "[a b]"}, {"content": "北京", "normalized": True}]
)
def test_added_tokens_of_other_kinds(builtin: Bundle, tmp_path: Path, change: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(builtin.file("tokenizer.json")))
    content = change.pop("content", "token")
    tokenizer.add_tokens([AddedToken(content, **change)])
    reader = reader_of(tokenizer, tmp_path)
    rng = random.Random(1)
    for _ in range(40):
        text = "".join(rng.choices([content, " ", "a", "[", "]", "北", "京", "-", content[1:], content[:1]], k=300))
        assert_part_of_whole(reader, tokenizer, text, rng.choice([2, 5, 9]))
    assert np.array_equal(
        reader.tokenize([content], 5).text(0), tokenizer.encode(content, add_special_tokens=False).ids
    )
    assert json.loads(tokenizer.to_str())["added_tokens"][-1]["content"] == content
