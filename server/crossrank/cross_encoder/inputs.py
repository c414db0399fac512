"""Check the pairs and documents of callers, and group them by query, so that each query is tokenized once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NoReturn

import numpy as np

from crossrank.errors import InvalidInput

# (query, its documents)
Group = tuple[str, list[str]]
# Characters of a text that an error shows.
_SHOWN_CHARACTERS = 40


def as_pairs(inputs: Any) -> tuple[list[Any], bool]:
    """Return the pairs of an argument, not checked yet, and whether it was a single pair.

    Args:
        inputs: One pair of texts, or an iterable of pairs: a list, a tuple, an array, a column of a data set, an
            iterator.

    Raises:
        InvalidInput: The argument is not an iterable of pairs, or is a single text.
    """
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
    elif not isinstance(inputs, list):
        inputs = _listed(inputs, "inputs", "a pair (query, document) or a list of pairs")
    if inputs and isinstance(inputs[0], str):
        return [inputs], True
    return inputs, False


def as_documents(documents: Any, where: str = "documents") -> list[Any]:
    """Return documents as a list, not checked yet.

    Raises:
        TypeError: The argument is None.
        InvalidInput: The argument is not an iterable, or is a single text.
    """
    if isinstance(documents, list):
        return documents
    if documents is None:
        raise TypeError(f"{where} is None: give a list of texts")
    return _listed(documents, where, "a list of texts")


def group_pairs(pairs: Sequence[Any], prompt: str = "") -> list[Group]:
    """Check pairs, and group consecutive pairs of the same query.

    Args:
        pairs: (query, document) each.
        prompt: Text to put before every query.

    Raises:
        InvalidInput: One is not a pair of texts; the message names it.
    """
    groups: list[Group] = []
    last = None
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            _refuse_pair(i, pair)
        query, document = pair
        if last is None or query != last:
            check_text(query, f"the query of inputs[{i}]")
            last = query
            groups.append((prompt + query, []))
        check_text(document, f"the document of inputs[{i}]")
        groups[-1][1].append(document)
    return groups


def group_documents(query: Any, documents: Sequence[Any], prompt: str = "", where: str = "documents") -> Group:
    """Check one query and its documents, and return them as a group.

    Raises:
        InvalidInput: One of them is not a text; the message names it.
    """
    check_text(query, "query" if where == "documents" else f"the query of {where}")
    for i, document in enumerate(documents):
        check_text(document, f"{where}[{i}]")
    return prompt + query, list(documents)


def check_text(text: Any, where: str) -> None:
    """Refuse a value that is not a text.

    Raises:
        InvalidInput: The value is not a str, or holds a lone surrogate, which is not a character.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"{where} is {_described(text)}, not a text: give a str", param=where)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{where} holds the lone surrogate \\u{ord(text[error.start]):04x} at character {error.start}, which "
                "is no character: decode the text as UTF-8, for example with errors='replace'",
                param=where,
            ) from None


def _listed(values: Any, where: str, wanted: str) -> list[Any]:
    # A set has no order that scores could follow, and iterating a mapping gives its keys.
    unfit = (str, bytes, bytearray, Mapping, Set)
    if isinstance(values, unfit) or not isinstance(values, Iterable):
        raise InvalidInput(f"{where} is {_described(values)}: give {wanted}", param=where)
    return list(values)


def _refuse_pair(index: int, pair: Any) -> NoReturn:
    described = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else _described(pair)
    raise InvalidInput(f"inputs[{index}] is {described}, not a pair: give (query, document)", param=f"inputs[{index}]")


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        cut = value[:_SHOWN_CHARACTERS]
        return f"the text {cut!r}" + ("..." if len(value) > len(cut) else "")
    return f"of type {type(value).__name__}"
