"""Tokenize texts without special tokens, exactly as the model's own fast tokenizer does."""

from __future__ import annotations

import json
import logging
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from crossrank.errors import BundleError, EngineFailure
from crossrank.native.library import NativeError
from crossrank.native.wordpiece import WordPiece
from crossrank.packed import Tokens

_log = logging.getLogger(__name__)

# A text is first cut to this many characters for each usable token. English has about 4.5 characters a token, so nearly
# every document that must be truncated is tokenized once, and a 1 MB document costs no more than a page.
_CHARACTERS_PER_TOKEN = 16
# That of a model with a million tokens has about 60 MB.
_MAX_FILE_BYTES = 256_000_000
# Characters in which the boundary of a suffix is searched first.
_SUFFIX_REACH = 256
# White space, and punctuation for texts without spaces.
_SEPARATORS = " \t\n" + string.punctuation + "、。，"


_Part = Callable[[str, int, "re.Pattern[str]"], str]


class TextTokenizer:
    """Tokenize single texts; the caller assembles pairs.

    Args:
        path: A Hugging Face `tokenizer.json`; its own truncation and padding settings are ignored.

    Raises:
        BundleError: The file cannot be read by the `tokenizers` library.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise BundleError(f"{path} has {size} bytes, the limit is {_MAX_FILE_BYTES}: it is no tokenizer of a model")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the Rust library raises plain Exception, or panics, which is none
            raise BundleError(f"{path} is not a readable tokenizer: {str(error)[:500]}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        definition = json.loads(path.read_bytes())
        boundaries = _boundaries(definition)
        self._boundary = re.compile(f"[{re.escape(boundaries)}]") if boundaries else None
        self._native = _native(self._tokenizer, definition)

    @property
    def native(self) -> bool:
        """Whether native code does nearly all of the work."""
        return self._native is not None

    @property
    def vocab_size(self) -> int:
        """Largest possible token id plus one, added tokens included."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(ids.values(), default=-1) + 1

    def tokenize(self, texts: list[str], limit: int, *, from_end: bool = False) -> Tokens:
        """Return the token ids of each text: all of them, or at least the first `limit + 1`.

        One id beyond the limit shows the caller that the text is longer.

        Args:
            texts: Texts to tokenize.
            limit: Number of ids that the caller can use.
            from_end: Return the last ids in place of the first.
        """
        characters = (limit + 1) * _CHARACTERS_PER_TOKEN
        if self._boundary is None or max(map(len, texts), default=0) <= characters:
            return self._tokenize_whole(texts)
        return self._tokenize_parts(texts, limit, self._boundary, _suffix if from_end else _prefix)

    def _tokenize_parts(self, texts: list[str], limit: int, boundary: re.Pattern[str], part: _Part) -> Tokens:
        """Tokenize no more of each text than is needed for `limit + 1` ids."""
        characters = (limit + 1) * _CHARACTERS_PER_TOKEN
        read = list(range(len(texts)))
        tokens = Tokens.of([[]] * len(texts))
        while read:
            parts = self._tokenize_whole([part(texts[i], characters, boundary) for i in read])
            tokens = tokens.replaced(read, parts)
            short = np.flatnonzero(tokens.lengths <= limit).tolist()
            read = [i for i in short if len(texts[i]) > characters]
            characters *= 8
        return tokens

    def _tokenize_whole(self, texts: list[str]) -> Tokens:
        if self._native is None:
            return Tokens.of([encoding.ids for encoding in self._encode(texts)])
        tokens, left = self._native.tokenize(texts)
        if not left:
            return tokens
        return tokens.replaced(left, Tokens.of([encoding.ids for encoding in self._encode([texts[i] for i in left])]))

    def _encode(self, texts: list[str]) -> list[Any]:
        """Tokenize with the Rust library.

        Raises:
            EngineFailure: It panicked, as when a text takes one of the tokenizer's own patterns too many steps.
        """
        try:
            if len(texts) == 1:
                return [self._tokenizer.encode(texts[0], add_special_tokens=False)]
            encodings: list[Any] = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return encodings
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as panic:
            raise EngineFailure(f"the model's tokenizer failed on a text: {str(panic)[:200]}") from panic


def _native(tokenizer: Tokenizer, definition: dict[str, Any]) -> WordPiece | None:
    """Return the native tokenizer, or None if it cannot replace the Rust one."""
    if not WordPiece.serves(definition):
        return None
    try:
        return WordPiece(tokenizer, definition)
    except NativeError as error:
        _log.warning("the native tokenizer does not take this vocabulary (%s): texts are tokenized more slowly", error)
        return None


def _prefix(text: str, characters: int, boundary: re.Pattern[str]) -> str:
    """Cut before the first boundary at or beyond `characters`, or not at all."""
    if len(text) <= characters:
        return text
    end = boundary.search(text, characters)
    return text[: end.start()] if end else text


def _suffix(text: str, characters: int, boundary: re.Pattern[str]) -> str:
    """Cut before the last boundary that leaves at least `characters`, or not at all."""
    end = len(text) - characters + 1
    if end <= 1:
        return text
    reach = _SUFFIX_REACH
    while True:
        start = max(end - reach, 0)
        found = boundary.search(text[start:end][::-1])
        if found:
            return text[end - found.end() :]
        if start == 0:
            return text
        reach *= 8


def _boundaries(definition: dict[str, Any]) -> str:
    """Return the characters before which a text can be cut without changing its tokens.

    For BERT's tokenizers these are white space and punctuation: their normalizer works character by character
    (canonical ordering never crosses these, which are starters), and words never span them. Characters of added tokens
    are left out. Other tokenizers have none.
    """
    normalizer = (definition.get("normalizer") or {}).get("type")
    splitter = (definition.get("pre_tokenizer") or {}).get("type")
    if (normalizer, splitter) != ("BertNormalizer", "BertPreTokenizer"):
        return ""
    added = "".join(token["content"] for token in definition.get("added_tokens", []))
    return "".join(character for character in _SEPARATORS if character not in added)
