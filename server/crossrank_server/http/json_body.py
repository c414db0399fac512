"""Parse the JSON object of a body, or say what is wrong with it; neither costs much more than the body weighs."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Iterator
from typing import Any

import orjson

from crossrank.errors import InvalidRequest
from crossrank_server.http.schema.fields import shown

# JSON values of a body for each document that a request may hold: its text, and fields that are only given back.
_VALUES_PER_DOCUMENT = 100
_LEAST_VALUES = 10_000
# Bytes that are counted until other requests get their turn: 10 ms at most.
_SLICE_BYTES = 1_000_000
# Up to this size the place of a lone surrogate is named; finding it takes the standard library's parser.
_SEARCHED_BYTES = 500_000


def most_values(max_documents: int) -> int:
    """Return how many JSON values a body may hold where a request may hold `max_documents` documents."""
    return max(_VALUES_PER_DOCUMENT * max_documents, _LEAST_VALUES)


async def check_values(body: bytearray, most: int) -> None:
    """Count the values of a body before they are parsed: an empty list has 3 bytes there and 72 in memory.

    Args:
        body: UTF-8; what is no JSON is counted like JSON.
        most: Lists, objects, strings, numbers and literals that it may hold, names of fields left out.

    Raises:
        InvalidRequest: It holds more.
    """
    # No value has less than two bytes, and texts seldom have as many commas and brackets as there may be values.
    if len(body) <= 2 * most or _separators(body) < most:
        return
    for counted in _values_so_far(body):
        if counted > most:
            raise InvalidRequest(
                f"the body holds over {most} JSON values, the limit is {most} ({_VALUES_PER_DOCUMENT} for each of "
                "--max-documents); send fewer documents, or their texts without other fields",
                code="too_many_values",
            )
        await asyncio.sleep(0)


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        InvalidRequest: It is not UTF-8, not JSON, or no object.
    """
    try:
        # A byte order mark, which some Windows clients send, may be ignored (RFC 8259, 8.1).
        data = orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        reason, at = str(error), error.pos
    else:
        if isinstance(data, dict):
            return data
        raise InvalidRequest(
            f"the body is {shown(data)}; send a JSON object with query and documents", code="invalid_json"
        )
    # Raised out here, it does not keep orjson's error alive, which holds the whole body as a string.
    raise _refusal(body, reason, at)


def _separators(body: bytes | bytearray) -> int:
    """Return the number of commas and opening brackets: every value but the first comes after one of its own."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _values_so_far(body: bytearray) -> Iterator[int]:
    """Yield an upper bound of the values in the first slice, in the first two, and so on."""
    counted, escaped, in_string = 1, False, False
    for start in range(0, len(body), _SLICE_BYTES):
        part = bytes(body[start + escaped : start + _SLICE_BYTES]).replace(rb"\\", b"")
        escaped = part.endswith(b"\\")
        between = part.replace(rb"\"", b"").split(b'"')
        counted += _separators(b"".join(between[in_string::2]))
        in_string ^= len(between) % 2 == 0
        yield counted


def _refusal(body: bytes | bytearray, reason: str, at: int) -> InvalidRequest:
    """Return the error for a body that is not JSON.

    Args:
        body: The body.
        reason: orjson's message.
        at: Index of the character at which orjson stopped.
    """
    if "UTF-8" in reason:
        try:
            body.decode()
        except UnicodeDecodeError as fault:
            start = fault.start
            return InvalidRequest(
                f"the body is not UTF-8: byte 0x{body[start]:02x} at offset {start}; encode the JSON as UTF-8",
                code="invalid_json",
            )
    if "surrogate" in reason:
        return _surrogate_refusal(body, at)
    if "depth limit" in reason:
        return InvalidRequest(
            "the body is nested deeper than the limit of 1024 levels; a request needs no more than 3",
            code="invalid_json",
        )
    return InvalidRequest(
        f"the body is not JSON: {reason}; send a JSON object with query and documents", code="invalid_json"
    )


def _surrogate_refusal(body: bytes | bytearray, at: int) -> InvalidRequest:
    remedy = "send valid Unicode (a surrogate is only half of a character)"
    if len(body) <= _SEARCHED_BYTES:
        try:
            place, string, index = next(_lone_surrogates(json.loads(body)))
        except (ValueError, RecursionError, StopIteration):
            pass
        else:
            param = _path(place)
            return InvalidRequest(
                f"{param[:200] or 'the body'} holds the lone surrogate \\u{ord(string[index]):04x} at character "
                f"{index}; {remedy}",
                param=param[:200] or None,
            )
    return InvalidRequest(f"the body holds a lone surrogate before its character {at}; {remedy}", code="invalid_json")


# Where a value is: the place of what holds it, and its name or index there. None is the body.
_Place = tuple["_Place | None", "str | int"]


def _lone_surrogates(data: Any) -> Iterator[tuple[_Place | None, str, int]]:
    """Yield the place of each string that is not Unicode, the string, and the index of the surrogate."""
    levels: list[Iterator[tuple[_Place | None, Any]]] = [iter([(None, data)])]
    while levels:
        place, value = next(levels[-1], (None, levels))
        if value is levels:
            levels.pop()
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as fault:
                yield place, value, fault.start
        elif isinstance(value, list):
            levels.append(_items(place, value))
        elif isinstance(value, dict):
            levels.append(_members(place, value))


def _items(place: _Place | None, value: list[Any]) -> Iterator[tuple[_Place | None, Any]]:
    for i, item in enumerate(value):
        yield (place, i), item


def _members(place: _Place | None, value: dict[str, Any]) -> Iterator[tuple[_Place | None, Any]]:
    for name, item in value.items():
        # A wrong name is at fault in the object itself.
        yield place, name
        yield (place, name), item


def _path(place: _Place | None) -> str:
    """Return a place as clients write it: documents[1].text."""
    parts: list[str] = []
    while place is not None:
        place, name = place
        parts.append(f"[{name}]" if isinstance(name, int) else f".{name[:100]}")
    return "".join(reversed(parts)).removeprefix(".")
