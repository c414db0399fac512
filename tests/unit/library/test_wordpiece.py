"""The native tokenizer gives the ids that the Rust tokenizer gives, or leaves the text to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from crossrank.bundles.bundle import Bundle
from crossrank.native.library import NativeError
from crossrank.native.wordpiece import WordPiece
from crossrank.text.tokenizer import TextTokenizer
from tests.conftest import Topic


@pytest.fixture(scope="session")
def definition(builtin: Bundle) -> dict[str, Any]:
    return dict(json.loads(builtin.file("tokenizer.json").read_bytes()))


@pytest.fixture(scope="session")
def reference(builtin: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(builtin.file("tokenizer.json")))


@pytest.fixture(scope="session")
def native(reference: Tokenizer, definition: dict[str, Any]) -> WordPiece:
    return built(reference, definition)


def built(reference: Tokenizer, definition: dict[str, Any]) -> WordPiece:
    if not WordPiece.serves(definition):
        pytest.skip("the native tokenizer is not built (make native)")
    return WordPiece(reference, definition)


def expected(reference: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]


def answered(native: WordPiece, texts: list[str]) -> dict[int, list[int]]:
    """Return the ids of the texts that are not left, by index."""
    tokens, left = native.tokenize(texts)
    assert all(tokens.text(i).size == 0 for i in left)
    return {i: tokens.text(i).tolist() for i in sorted(set(range(len(texts))).difference(left))}


def assert_exact(native: WordPiece, reference: Tokenizer, texts: list[str]) -> int:
    """Compare all that is answered; return how much that is."""
    known = answered(native, texts)
    for (i, ids), exact in zip(known.items(), expected(reference, [texts[i] for i in known]), strict=True):
        assert ids == exact, repr(texts[i])
    return len(known)


def test_every_code_point_before_inside_and_after_a_word(native: WordPiece, reference: Tokenizer) -> None:
    total = 0
    for plane in range(0, sys.maxunicode + 1, 4096):
        points = [chr(c) for c in range(plane, plane + 4096) if not 0xD800 <= c <= 0xDFFF]
        total += assert_exact(native, reference, [f"{c}xy x{c}y xy{c} {c} {c}{c}A\u0301{c}." for c in points])
    # Left to the tokenizer: code points that this Python does not know, and a few that canonical ordering moves.
    assert total > 280_000


def test_every_dl19_text_is_answered_with_the_ids_of_the_tokenizer(
    native: WordPiece, reference: Tokenizer, dl19: list[Topic]
) -> None:
    texts = [text for topic in dl19 for text in (topic.query, *topic.passages)]
    assert assert_exact(native, reference, texts) == len(texts)


def test_every_token_of_the_vocabulary_alone_and_within_words(
    native: WordPiece, reference: Tokenizer, definition: dict[str, Any]
) -> None:
    tokens = [token.removeprefix("##") for token in definition["model"]["vocab"] if not token.startswith("[")]
    texts = [f"{token} x{token} {token}ing {token}{token} {token}\u2603x un{token}{token}able" for token in tokens]
    assert assert_exact(native, reference, texts) == len(texts)


@settings(max_examples=1000, deadline=None)
@given(
    texts=st.lists(
        st.text(
            st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB \t\n.,-[]#'\u0301\u0327İß日")),
            max_size=60,
        ),
        min_size=1,
        max_size=4,
    )
)
@example(texts=["[SEP]", "a [CLS]b", "[sep] [ SEP ]", ""])
@example(texts=["##ing x##y"])
@example(texts=["\U0001d15e\u302e\u302f e\u0327\u0301", "a", "\U0001d15e\u302e\u302f e\u0327\u0301"])
@example(texts=["ΑΣ ΟΔΟΣ ΣΑΣ. ẞ ǅ ﬁ Ⅷ K"])
@example(texts=["word" * 24 + "worde wordw", "x" * 100 + " " + "x" * 101, "é" * 100 + " " + "日" + "é" * 101])
@example(texts=["a\x00b \x7f\x1f\ufffd\u200d \u00a0\u3000x"])
@example(texts=["각" * 101, "각 " * 50])
def test_any_text_has_the_ids_of_the_tokenizer_or_is_left_to_it(
    native: WordPiece, reference: Tokenizer, texts: list[str]
) -> None:
    assert_exact(native, reference, texts)


@pytest.mark.parametrize("text", ["a\U0001d15e\u302eb", "[MASK] \U0001d15e\u302e"])
def test_what_only_the_tokenizer_can_tell_is_left_to_it_whole(
    native: WordPiece, reader: TextTokenizer, reference: Tokenizer, text: str
) -> None:
    assert native.tokenize(["one", text, "two"])[1] == [1]
    mixed = ["one", text, "", text, "two"]
    tokens = reader.tokenize(mixed, 500)
    assert [tokens.text(i).tolist() for i in range(5)] == expected(reference, mixed)


def test_added_tokens_have_their_ids_and_end_words(native: WordPiece, reference: Tokenizer) -> None:
    texts = [
        "[SEP]",
        "see [MASK] here",
        "[CLS][SEP]x[PAD]y[UNK]",
        "un[SEP]able[MASK",
        "[[SEP]] [sep]",
        "é[SEP]\u0301[SEP]日",
    ]
    assert assert_exact(native, reference, texts) == len(texts)


def test_of_added_tokens_that_match_the_longest_counts_and_one_without_an_entry_is_left(
    reference: Tokenizer, definition: dict[str, Any]
) -> None:
    changed = json.loads(json.dumps(definition))
    model = changed["model"]["vocab"]
    kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for content in ("[SEP", "[SEP][SEP]"):
        model[content] = len(model)
        changed["added_tokens"].append({"id": model[content], "content": content, "special": False, **kinds})
    changed["added_tokens"].append({"id": len(model), "content": "[NEW]", "special": False, **kinds})
    tokenizer = Tokenizer.from_str(json.dumps(changed))
    texts = ["a[SEP b", "[SEP][SEP][SEP]", "[SEP[SEP]", "x[NEW]y", "[NEW"]
    found = answered(built(tokenizer, changed), texts)
    exact = expected(tokenizer, texts)
    assert sorted(found) == [0, 1, 2, 4]
    assert all(found[i] == exact[i] for i in found)


@pytest.fixture(scope="session")
def reader(builtin: Bundle) -> TextTokenizer:
    return TextTokenizer(builtin.file("tokenizer.json"))


def test_threads_that_teach_and_read_at_once_get_the_same_ids(
    reference: Tokenizer, definition: dict[str, Any], dl19: list[Topic]
) -> None:
    native = built(reference, definition)  # knows ASCII only
    scripts = [chr(c) * 3 + "x " + chr(c + 1) for c in range(0x100, 0x3000, 7)]
    texts = scripts + [passage for topic in dl19[:8] for passage in topic.passages]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: native.tokenize(texts), range(8)))
    exact = expected(reference, texts)
    for tokens, left in results:
        assert all(tokens.text(i).tolist() == exact[i] for i in set(range(len(texts))).difference(left))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_does_not_grow_with_ten_million_distinct_words(native: WordPiece, reference: Tokenizer) -> None:
    before = 0
    for start in range(0, 10_000_000, 1000):
        text = " ".join(f"w{i:07x}" for i in range(start, start + 1000))
        ids = answered(native, [text])[0]
        if start % 1_000_000 == 0:
            assert ids == expected(reference, [text])[0]
            before = before or resident_bytes()
    assert resident_bytes() < before + 2 * 2**20


def test_memory_after_all_of_unicode_is_bounded(reference: Tokenizer, definition: dict[str, Any]) -> None:
    native = built(reference, definition)
    before = resident_bytes()
    for start in range(0, 0x30000, 0x1000):
        native.tokenize([" ".join(chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c <= 0xDFFF)])
    assert resident_bytes() < before + 16 * 2**20


WITHOUT_LIBRARY = """
import json, logging, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from crossrank.text.tokenizer import TextTokenizer
path = Path(sys.argv[1])
readers = [TextTokenizer(path), TextTokenizer(path)]
tokens = readers[0].tokenize(["Unaffable cafés.", "[SEP] x"], 500)
print(json.dumps([readers[0].native, [tokens.text(i).tolist() for i in range(2)]]))
"""


def test_without_the_library_the_ids_are_the_same_and_it_is_said_once(
    builtin: Bundle, reference: Tokenizer, tmp_path: Path
) -> None:
    environment = {"CROSSRANK_NATIVE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT_LIBRARY, str(builtin.file("tokenizer.json"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, expected(reference, ["Unaffable cafés.", "[SEP] x"])]
    assert (
        done.stderr.count("the native tokenizer is not used, and texts are tokenized more slowly: it was not built")
        == 1
    )


def test_a_vocabulary_that_no_tokenizer_has_is_refused(reference: Tokenizer, definition: dict[str, Any]) -> None:
    built(reference, definition)
    for token, index, message in [("x" * 600, 5, "600 bytes, the limit is 512"), ("y", -3, "id of token y is neg")]:
        model = {**definition["model"], "vocab": {**definition["model"]["vocab"], token: index}}
        with pytest.raises(NativeError, match=message):
            WordPiece(reference, {**definition, "model": model})


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["normalizer"].update(lowercase=False),
        lambda d: d["normalizer"].update(strip_accents=False),
        lambda d: d["normalizer"].update(type="NFC"),
        lambda d: d["pre_tokenizer"].update(type="Whitespace"),
        lambda d: d["model"].update(type="Unigram"),
        lambda d: d["added_tokens"][0].update(normalized=True),
        lambda d: d["added_tokens"][0].update(single_word=True),
        lambda d: d.update(normalizer=None),
        lambda d: d["model"].update(unk_token="[NONE]"),
    ],
)
def test_other_tokenizers_are_not_taken_for_this_kind(definition: dict[str, Any], change: Any) -> None:
    assert WordPiece.serves(definition)
    other = json.loads(json.dumps(definition))
    change(other)
    assert not WordPiece.serves(other)


def test_chinese_characters_may_be_parts_of_words(definition: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(definition))
    changed["normalizer"]["handle_chinese_chars"] = False
    tokenizer = Tokenizer.from_str(json.dumps(changed))
    texts = ["北京 museums 柏林", "a北b 京", "日本語。", "museum北", "x" * 99 + "北"]
    assert assert_exact(built(tokenizer, changed), tokenizer, texts) == len(texts)
    before = Tokenizer.from_str(json.dumps(definition))
    assert expected(tokenizer, texts) != expected(before, texts)
