"""Tokenize texts as BERT does, with native code (wordpiece.h) that learns each character from the Rust tokenizer.

The Rust tokenizer decides. It is asked once for each character how that is normalized and whether it separates words.
It also tokenizes the texts whose ids the native code could get wrong: those with characters that Unicode's canonical
ordering could move.
"""

from __future__ import annotations

import ctypes
import logging
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossrank.native.library import ERROR_BYTES, Functions, NativeError, declare, open_library
from crossrank.packed import Tokens, offsets_of

_log = logging.getLogger(__name__)

_POINTER, _INT32, _INT64, _BUFFER = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
# The outcomes of a text, as in native/wordpiece.h.
_TOKENIZED, _UNTAUGHT, _LEFT = range(3)


class _Strings(ctypes.Structure):
    _fields_ = [("text", _BUFFER), ("offsets", _POINTER), ("count", _INT64)]


_STRINGS = ctypes.POINTER(_Strings)
_FUNCTIONS: Functions = {
    "create": ([_STRINGS, _POINTER, _BUFFER, _INT32, _INT64, _STRINGS, _BUFFER], _POINTER),
    "destroy": ([_POINTER], None),
    "teach": ([_POINTER, _INT32, _BUFFER, _INT64, _BUFFER], ctypes.c_bool),
    "tokenize": ([_POINTER, _STRINGS, _POINTER, _INT64, _POINTER, _POINTER, _BUFFER], ctypes.c_bool),
}


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = open_library("wordpiece")
    except NativeError as error:
        _log.warning("the native tokenizer is not used, and texts are tokenized more slowly: %s", error)
        return None
    declare(library, "crossrank_wordpiece_", _FUNCTIONS)
    return library


class WordPiece:
    """Tokenize texts with ids equal to those of a BERT `tokenizer.json`. Threads may share it.

    It keeps the vocabulary and the characters met so far, and no words: memory does not grow with the texts.

    Args:
        tokenizer: One for whose definition `WordPiece.serves` holds.
        definition: The parsed `tokenizer.json`.

    Raises:
        NativeError: The vocabulary is not a valid one, there is no memory, or the library cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, definition: dict[str, Any]) -> None:
        self._pointer: int | None = None
        library = _library()
        if library is None:
            raise NativeError("the native tokenizer cannot be used here")
        self._library = library
        self._characters = _Characters(tokenizer)
        model = definition["model"]
        tokens, _tokens_alive = _strings(list(model["vocab"]))
        added, _added_alive = _strings([token["content"] for token in definition.get("added_tokens", [])])
        ids = np.fromiter(model["vocab"].values(), np.int32)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        self._pointer = library.crossrank_wordpiece_create(
            tokens,
            ids.ctypes.data,
            model["continuing_subword_prefix"].encode(),
            model["vocab"][model["unk_token"]],
            model["max_input_chars_per_word"],
            added,
            error,
        )
        if not self._pointer:
            raise NativeError(error.value.decode())
        self._teach(range(128))

    @staticmethod
    def serves(definition: dict[str, Any]) -> bool:
        """Tell whether the native code follows the rules of a tokenizer definition, and can be used here."""
        parts = {name: definition.get(name) or {} for name in ("normalizer", "pre_tokenizer", "model")}
        normalizer, model = parts["normalizer"], parts["model"]
        strips_accents = normalizer.get("strip_accents")
        return (
            [part.get("type") for part in parts.values()] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
            and normalizer.get("lowercase") is True
            and normalizer.get("clean_text") is True
            and (strips_accents is None or strips_accents is True)
            and model.get("unk_token") in model.get("vocab", {})
            and not any(
                token.get("normalized") or token.get("single_word") for token in definition.get("added_tokens", [])
            )
            and _library() is not None
        )

    def tokenize(self, texts: list[str]) -> tuple[Tokens, list[int]]:
        """Return the ids of each text, and the indices of the texts left to the Rust tokenizer, which have no ids."""
        tokens, outcomes = self._tokenize(texts)
        untaught = (outcomes == _UNTAUGHT).nonzero()[0].tolist()
        if untaught:
            self._teach(np.unique(np.concatenate([tokens.text(i) for i in untaught])).tolist())
            again, outcomes[untaught] = self._tokenize([texts[i] for i in untaught])
            tokens = tokens.replaced(untaught, again)
        return tokens, (outcomes == _LEFT).nonzero()[0].tolist()

    def _tokenize(self, texts: list[str]) -> tuple[Tokens, NDArray[np.uint8]]:
        strings, alive = _strings(texts)
        # No text has more tokens than bytes, or it is left.
        ids = np.empty(alive[1][-1], np.int32)
        tokens = Tokens(ids, np.empty(len(texts) + 1, np.int64))
        outcomes = np.empty(len(texts), np.uint8)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        done = self._library.crossrank_wordpiece_tokenize(
            self._pointer, strings, ids.ctypes.data, len(ids), tokens.offsets.ctypes.data, outcomes.ctypes.data, error
        )
        if not done:
            raise NativeError(error.value.decode())
        return Tokens(ids[: tokens.offsets[-1]], tokens.offsets), outcomes

    def _teach(self, code_points: Iterable[int]) -> None:
        error = ctypes.create_string_buffer(ERROR_BYTES)
        for code_point in code_points:
            form = self._characters.form(chr(code_point))
            encoded = None if form is None else form.encode()
            length = 0 if encoded is None else len(encoded)
            if not self._library.crossrank_wordpiece_teach(self._pointer, code_point, encoded, length, error):
                raise NativeError(error.value.decode())

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._library.crossrank_wordpiece_destroy(self._pointer)


class _Characters:
    """Ask the Rust tokenizer for the normalized form of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._normalize = tokenizer.normalizer.normalize_str
        self._split = tokenizer.pre_tokenizer.pre_tokenize_str

    def form(self, character: str) -> str | None:
        """Return a character's form, with spaces where words end; None if that depends on its neighbours."""
        normalized = self._normalize(character)
        # Normalization works character by character but for one step, the canonical ordering of combining marks.
        # Those it strips cannot be out of order. This Python may not know of marks newer than itself: "Cn".
        moving = any(unicodedata.combining(c) for c in normalized)
        if moving or unicodedata.category(character) == "Cn":
            return None
        return "".join(map(self._separated, normalized))

    def _separated(self, character: str) -> str:
        pieces = [piece for piece, _ in self._split(f"a{character}a")]
        if len(pieces) == 1:
            return character
        return " " if pieces == ["a", "a"] else f" {character} "


def _strings(texts: list[str]) -> tuple[_Strings, tuple[bytes, NDArray[np.int64]]]:
    """Return texts as the library reads them, and the memory they point to, which the caller keeps alive."""
    encoded = [text.encode() for text in texts]
    offsets = offsets_of(list(map(len, encoded)))
    joined = b"".join(encoded)
    return _Strings(joined, offsets.ctypes.data, len(encoded)), (joined, offsets)
