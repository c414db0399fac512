"""BERT's tokenizer at memory speed: every word is tokenized once and remembered.

The Rust tokenizer remains the only authority. It is asked how each character is normalized and whether it separates
words, and which ids each word has; this module only remembers the answers. What memory cannot answer exactly (added
tokens in the text, characters that canonical ordering could move) is left to it whole.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

# Words remembered beside those of the vocabulary, about 20 MB of English; a stream of only new words fills memory and
# starts it anew, so it stays bounded.
_MAX_WORDS = 80_000
# Longer words are one [UNK] or rarities: not worth remembering.
_MAX_WORD_CHARACTERS = 64
# Of lower-cased ASCII text without control characters this finds exactly the words.
_ASCII_WORDS = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]").findall
_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search


class _UnsafeCharacter(Exception):
    """A character whose normal form depends on its neighbours."""


class _Characters(dict[int, str]):
    """Code point -> its normalized form, with spaces where words end; filled as code points are met.

    Bounded by the number of code points. Used as the table of `str.translate`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._normalize = tokenizer.normalizer.normalize_str
        self._split = tokenizer.pre_tokenizer.pre_tokenize_str

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        normalized = self._normalize(character)
        # Normalization works character by character but for one step, the canonical ordering of combining marks.
        # Those it strips cannot be out of order. This Python may not know of marks newer than itself: "Cn".
        moving = any(unicodedata.combining(c) for c in normalized)
        if moving or unicodedata.category(character) == "Cn":
            raise _UnsafeCharacter
        form = self[code_point] = "".join(map(self._separated, normalized))
        return form

    def _separated(self, character: str) -> str:
        pieces = [piece for piece, _ in self._split(f"a{character}a")]
        if len(pieces) == 1:
            return character
        return " " if pieces == ["a", "a"] else f" {character} "


class WordMemory:
    """Tokenizes texts with ids equal to those of a BERT `tokenizer.json`.

    Args:
        tokenizer: One for which `WordMemory.fits` holds.
    """

    def __init__(self, tokenizer: Tokenizer, definition: dict[str, Any]) -> None:
        self._model = tokenizer.model
        self._characters = _Characters(tokenizer)
        contents = [re.escape(token["content"]) for token in definition.get("added_tokens", [])]
        self._added = re.compile("|".join(contents) or r"(?!)").search
        # A word that is in the vocabulary is its own longest match.
        prefix = definition["model"]["continuing_subword_prefix"]
        self._known = {word: (i,) for word, i in definition["model"]["vocab"].items() if not word.startswith(prefix)}
        self._words: dict[str, tuple[int, ...]] = dict(self._known)

    @staticmethod
    def fits(definition: dict[str, Any]) -> bool:
        """Tell whether a tokenizer definition is of the kind whose rules this module relies on."""
        parts = {name: definition.get(name) or {} for name in ("normalizer", "pre_tokenizer", "model")}
        normalizer = parts["normalizer"]
        strips_accents = normalizer.get("strip_accents")
        return (
            [part.get("type") for part in parts.values()] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
            and normalizer.get("lowercase") is True
            and normalizer.get("clean_text") is True
            and (strips_accents is None or strips_accents is True)
            and not any(token.get("normalized") for token in definition.get("added_tokens", []))
        )

    def tokenize(self, text: str) -> list[int] | None:
        """Return the ids of a text, or None where only the tokenizer itself can tell."""
        if self._added(text):
            return None
        if text.isascii() and not _ASCII_CONTROL(text):
            words = _ASCII_WORDS(text.lower())
        else:
            try:
                words = text.translate(self._characters).split()
            except _UnsafeCharacter:
                return None
        try:
            return list(chain.from_iterable(map(self._words.__getitem__, words)))
        except KeyError:
            return list(chain.from_iterable(map(self._learn, words)))

    def _learn(self, word: str) -> tuple[int, ...]:
        ids = self._words.get(word)
        if ids is None:
            ids = tuple(token.id for token in self._model.tokenize(word))
            if len(word) <= _MAX_WORD_CHARACTERS:
                if len(self._words) >= len(self._known) + _MAX_WORDS:
                    self._words = dict(self._known)
                self._words[word] = ids
        return ids
