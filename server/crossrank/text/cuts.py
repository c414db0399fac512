"""Find where a text can be cut so that the tokens of its parts are those of the whole.

For BERT's tokenizers that is proven: before white space, punctuation and Chinese characters. Their normalizer works
character by character (canonical ordering never crosses these, which are starters and do not decompose), words never
span them, and no added token holds one but at its start.

For others each cut is tried: before a single space, where the text around it has the same tokens in one part and in
two. Where there is no such place, `TextTokenizer` compares parts of different length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

# Characters looked through at a time, and at first where cuts are sought backwards: one search holds the GIL.
_WINDOW, _FIRST_WINDOW = 1 << 16, 1 << 8
# Characters on either side of a cut that is tried, and cuts that are tried in a window.
_AROUND = 128
_TRIES = 8
# Characters of the longest text that is tokenized whole where no cut is known.
MOST_UNCUT = 1 << 17
# Characters of Chinese, as BERT's tokenizers know them, without those for compatibility, which decompose.
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002a6df\U0002a700-\U0002b73f"
# Punctuation of nearly all scripts is below, that of Chinese included.
_LAST_SEPARATOR = 0x3040
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")

Ids = Callable[[list[str]], list[list[int]]]


class Cuts:
    """Find cuts of one kind of tokenizer.

    Args:
        tokenizer: The tokenizer.
        definition: Its parsed `tokenizer.json`.
        ids: Tokenizes short texts.

    Attributes:
        proven: Whether every cut is known to be right.
    """

    def __init__(self, tokenizer: Tokenizer, definition: dict[str, Any], ids: Ids) -> None:
        proven = _proven(tokenizer, definition)
        self.proven = proven is not None
        self._pattern = proven or _BETWEEN_WORDS
        self._ids = ids
        self._normalize = tokenizer.normalizer.normalize_str if self.proven else str
        self._word_characters = int((definition.get("model") or {}).get("max_input_chars_per_word") or 0)

    def after(self, text: str, start: int, most: int | None = None) -> int | None:
        """Return the first cut at or after `start` and before `most`, None if there is none."""
        most = len(text) if most is None else min(most, len(text))
        for low in range(start, most, _WINDOW):
            found = self._pattern.finditer(text, low, min(low + _WINDOW, most))
            for match in islice(found, None if self.proven else _TRIES):
                if self._fits(text, match.start()):
                    return match.start()
        return None

    def before(self, text: str, stop: int, least: int = 0) -> int | None:
        """Return the last cut from `least` to `stop`, None if there is none."""
        end, reach = min(stop + 1, len(text)), _FIRST_WINDOW
        while end > least:
            start = max(end - reach, least)
            # One more character on either side, as a place between words is known by its neighbours.
            low, high = max(start - 1, 0), min(end + 1, len(text))
            found = self._pattern.finditer(text[low:high][::-1])
            for match in islice(found, None if self.proven else _TRIES):
                at = high - match.end()
                if start <= at < end and self._fits(text, at):
                    return at
            end, reach = start, min(reach * 8, _WINDOW)
        return None

    def pieces(self, text: str, characters: int) -> Iterator[str]:
        """Yield the text in pieces to be tokenized one by one, each of about `characters`.

        One is longer where no cut is known, by up to `MOST_UNCUT`; of a word of BERT's tokenizers that is too long for
        them, the beginning stands for all.
        """
        start = 0
        while start < len(text):
            least = start + characters
            stop = self.after(text, least, None if self.proven else least + MOST_UNCUT)
            if stop is None:
                stop = len(text) if self.proven else min(least + MOST_UNCUT, len(text))
            if self.proven and stop - least > characters:
                word = self.before(text, least, start)
                word = start if word is None else word
                yield text[start:word] + self._squeezed(text, word, stop)
            else:
                yield text[start:stop]
            start = stop

    def readable(self, text: str, *, from_end: bool) -> str:
        """Return the text, or its part up to a place (its end from there) where no cut is known for too long."""
        if self.proven:
            return text
        start, stop = 0, len(text)
        while stop - start > MOST_UNCUT:
            if from_end:
                at = self.before(text, stop - MOST_UNCUT // 2, stop - MOST_UNCUT)
            else:
                at = self.after(text, start + MOST_UNCUT // 2, start + MOST_UNCUT)
            if at is None:
                return text[stop - MOST_UNCUT :] if from_end else text[: start + MOST_UNCUT]
            start, stop = (start, at) if from_end else (at, stop)
        return text

    def _fits(self, text: str, at: int) -> bool:
        if self.proven:
            return True
        left, right = text[max(at - _AROUND, 0) : at], text[at : at + _AROUND]
        both, first, second = self._ids([left + right, left, right])
        return both == first + second

    def _squeezed(self, text: str, start: int, stop: int) -> str:
        """Return the beginning of a word in its normal form: of a word over the tokenizer's limit, no more matters."""
        form = ""
        for low in range(start, stop, _WINDOW // 4):
            form += self._normalize(text[low : min(low + _WINDOW // 4, stop)])
            if len(form) > self._word_characters:
                break
        return form


def _proven(tokenizer: Tokenizer, definition: dict[str, Any]) -> re.Pattern[str] | None:
    """Return what matches the characters before which a text can be cut, None if that is not proven."""
    normalizer = definition.get("normalizer") or {}
    splitter = definition.get("pre_tokenizer") or {}
    model = definition.get("model") or {}
    kinds = (normalizer.get("type"), splitter.get("type"), model.get("type"))
    tokens = definition.get("added_tokens", [])
    # Whether a token is a single word depends on what stands before it.
    if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece") or any(t.get("single_word") for t in tokens):
        return None
    inside = {character for token in tokens for character in token["content"][1:]}
    if any(map(str.isspace, inside)):  # as all white space is normalized to spaces
        inside.update(" \t\n\r\u00a0\u3000")
    separators = [c for c in _separators() if c not in inside and _separates(tokenizer, c)]
    chinese = normalizer.get("handle_chinese_chars", True) and not re.search(f"[{_CHINESE}]", "".join(inside))
    return re.compile(f"[{''.join(map(re.escape, separators))}{_CHINESE if chinese else ''}]")


def _separates(tokenizer: Tokenizer, character: str) -> bool:
    """Tell whether a character stays as it is, or becomes a space, and ends words."""
    if tokenizer.normalizer.normalize_str(character) not in (character, " "):
        return False
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{character}a")) > 1


@cache
def _separators() -> list[str]:
    """Return white space and punctuation that may end words: starters that do not decompose."""
    found = [" ", "\t", "\n", "\r", *(chr(c) for c in range(33, 127) if not chr(c).isalnum())]
    for character in map(chr, range(0x80, _LAST_SEPARATOR)):
        starter = not unicodedata.combining(character) and not unicodedata.decomposition(character)
        if starter and unicodedata.category(character)[0] in "PZ":
            found.append(character)
    return found
