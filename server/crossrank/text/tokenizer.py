"""Tokenize texts without special tokens, exactly as the model's own fast tokenizer does."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossrank.errors import BundleError, EngineFailure
from crossrank.native.library import NativeError
from crossrank.native.wordpiece import WordPiece
from crossrank.packed import Tokens, offsets_of
from crossrank.text.cuts import MOST_UNCUT, Cuts

_log = logging.getLogger(__name__)

# A text is first cut to this many characters for each usable token. English has about 4.5 characters a token, so nearly
# every document that must be truncated is tokenized once, and a 1 MB document costs no more than two pages.
_CHARACTERS_PER_TOKEN = 6
# That of a model with a million tokens has about 60 MB.
_MAX_FILE_BYTES = 256_000_000
# Characters tokenized in one call. The Rust tokenizer needs up to 700 bytes of memory for each; native code 9.
_CALL_CHARACTERS, _NATIVE_CALL_CHARACTERS = 1 << 16, 1 << 20
# Characters by which the parts differ that are compared there: a prime, so that what repeats is not cut alike.
_LONGER = 1021
# Up to so many characters, the Rust tokenizer is called without giving up the GIL, which is quicker.
_AT_ONCE = 2_000


def go_on() -> None:
    """Let the work go on."""


class TextTokenizer:
    """Tokenize single texts; the caller assembles pairs.

    No call of native code or of the Rust tokenizer gets more than a bounded number of characters, or holds the GIL for
    more than some milliseconds.

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
        # No bound method: a cycle of references would keep a sleeping model in memory until the garbage collector runs.
        self._ids = partial(_ids_of, self._tokenizer)
        self._cuts = Cuts(self._tokenizer, definition, self._ids)
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
        """Return the token ids of each text, see `read`."""
        return self.read(texts, limit, from_end=from_end)[0]

    def read(
        self, texts: list[str], limit: int, *, from_end: bool = False, proceed: Callable[[], None] = go_on
    ) -> tuple[Tokens, list[int]]:
        """Return the token ids of each text: all of them, or at least the first `limit + 1`.

        One id beyond the limit shows the caller that the text is longer.

        Args:
            texts: Texts of any length.
            limit: Number of ids that the caller can use.
            from_end: Return the last ids in place of the first.
            proceed: Called before each step of bounded work; what it raises ends the work.

        Returns:
            The ids, and the indices of texts of which only a part was read, though the ids may be no more than `limit`:
            over 131,072 characters in which no place is known to be between two tokens. BERT's tokenizers have none.
        """
        characters = (limit + 1) * _CHARACTERS_PER_TOKEN
        if max(map(len, texts), default=0) <= min(characters, _CALL_CHARACTERS):
            return self._whole(texts, proceed), []
        tokens, cut = Tokens.of([[]] * len(texts)), []
        read = list(range(len(texts)))
        while read:
            parts = [self._part(texts[i], characters, from_end=from_end) for i in read]
            found = self._whole([part.text for part in parts], proceed)
            tokens = tokens.replaced(read, found)
            enough = found.lengths > limit
            tried = [k for k, part in enumerate(parts) if part.longer and enough[k]]
            if tried:
                longer = self._whole([parts[k].longer for k in tried], proceed)
                for k, i in enumerate(tried):
                    enough[i] = _agree(found.text(i), longer.text(k), limit + 1, from_end=from_end)
            cut += [i for k, i in enumerate(read) if parts[k].last and not parts[k].whole and not enough[k]]
            read = [i for k, i in enumerate(read) if not parts[k].last and not enough[k]]
            characters *= 4
        return tokens, cut

    def _part(self, text: str, characters: int, *, from_end: bool) -> _Part:
        """Cut a text to at least `characters`, or to fewer where no cut is known."""
        cuts = self._cuts
        if len(text) > characters:
            most = None if cuts.proven else characters + MOST_UNCUT
            at = (
                cuts.before(text, len(text) - characters, 0 if most is None else max(len(text) - most, 0))
                if from_end
                else cuts.after(text, characters, most)
            )
            if at is not None:
                return self._readable(text[at:] if from_end else text[:at], last=False, from_end=from_end)
            if not cuts.proven and len(text) > MOST_UNCUT:
                longer = min(MOST_UNCUT + _LONGER, len(text))
                part, other = (text[-MOST_UNCUT:], text[-longer:]) if from_end else (text[:MOST_UNCUT], text[:longer])
                return _Part(part, last=True, whole=False, longer=other)
        return self._readable(text, last=True, from_end=from_end)

    def _readable(self, text: str, *, last: bool, from_end: bool) -> _Part:
        part = self._cuts.readable(text, from_end=from_end)
        whole = len(part) == len(text)
        return _Part(part, last=last or not whole, whole=whole)

    def _whole(self, texts: list[str], proceed: Callable[[], None]) -> Tokens:
        """Return all ids of each text."""
        if self._native is None:
            return self._with_rust(texts, proceed)
        groups = list(_groups(texts, _NATIVE_CALL_CHARACTERS))
        found = []
        for group in groups:
            proceed()
            tokens, left = self._native.tokenize(group)
            found.append(tokens.replaced(left, self._with_rust([group[i] for i in left], proceed)) if left else tokens)
        return found[0] if len(found) == 1 else Tokens.joined(found)

    def _with_rust(self, texts: list[str], proceed: Callable[[], None]) -> Tokens:
        pieces, counts = texts, None
        if max(map(len, texts), default=0) > _CALL_CHARACTERS:
            split = [list(self._cuts.pieces(text, _CALL_CHARACTERS)) for text in texts]
            pieces, counts = [piece for own in split for piece in own], list(map(len, split))
        found = []
        for group in _groups(pieces, _CALL_CHARACTERS):
            proceed()
            found.append(Tokens.of(self._ids(group)))
        tokens = Tokens.joined(found)
        return tokens if counts is None else Tokens(tokens.ids, tokens.offsets[offsets_of(counts)])


def _ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts.

    Raises:
        EngineFailure: The Rust library panicked, as when a text takes one of the tokenizer's patterns too many steps.
    """
    try:
        if len(texts) == 1 and len(texts[0]) <= _AT_ONCE:
            return [tokenizer.encode(texts[0], add_special_tokens=False).ids]
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as panic:
        raise EngineFailure(f"the model's tokenizer failed on a text: {str(panic)[:200]}") from panic


class _Part(NamedTuple):
    """A part of a text that is to be tokenized.

    Attributes:
        text: The part.
        last: Whether no longer one may be read.
        whole: Whether it ends at a cut or with the text.
        longer: Where that is not so, a longer part that has to have the same ids.
    """

    text: str
    last: bool
    whole: bool
    longer: str = ""


def _agree(one: NDArray[np.int32], other: NDArray[np.int32], count: int, *, from_end: bool) -> bool:
    own = slice(-count, None) if from_end else slice(count)
    return np.array_equal(one[own], other[own])


def _groups(texts: list[str], characters: int) -> Iterator[list[str]]:
    """Yield the texts in groups of at most so many characters, or of one text."""
    if sum(map(len, texts)) <= characters:
        yield texts
        return
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > characters:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    yield group


def _native(tokenizer: Tokenizer, definition: dict[str, Any]) -> WordPiece | None:
    """Return the native tokenizer, or None if it cannot replace the Rust one."""
    if not WordPiece.serves(definition):
        return None
    try:
        return WordPiece(tokenizer, definition)
    except NativeError as error:
        _log.warning("the native tokenizer does not take this vocabulary (%s): texts are tokenized more slowly", error)
        return None
