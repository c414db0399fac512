"""Parse the JSON object of a body, or say what is wrong with it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

import orjson

from crossrank.errors import InvalidRequest
from crossrank_server.http.schema.fields import shown


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        InvalidRequest: It is not UTF-8, not JSON, or no object.
    """
    try:
        # A byte order mark, which some Windows clients send, may be ignored (RFC 8259, 8.1).
        data = orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise _refusal(body, error) from None
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"the body is {shown(data)}; send a JSON object with query and documents", code="invalid_json"
        )
    return data


def _refusal(body: bytes, error: orjson.JSONDecodeError) -> InvalidRequest:
    """Return the error for a body that is not JSON."""
    try:
        text = body.decode()
    except UnicodeDecodeError as fault:
        return InvalidRequest(
            f"the body is not UTF-8: byte 0x{body[fault.start]:02x} at offset {fault.start}; encode the JSON as UTF-8",
            code="invalid_json",
        )
    if "surrogate" in str(error):
        try:
            place, string, at = next(_lone_surrogates(json.loads(text)))
        except (ValueError, RecursionError, StopIteration):
            pass
        else:
            return InvalidRequest(
                f"{place or 'the body'} holds the lone surrogate \\u{ord(string[at]):04x} at character {at}; "
                "send valid Unicode (a surrogate is only half of a character)",
                param=place or None,
            )
    if "depth limit" in str(error):
        return InvalidRequest(
            "the body is nested deeper than the limit of 1024 levels; a request needs no more than 3",
            code="invalid_json",
        )
    return InvalidRequest(
        f"the body is not JSON: {error}; send a JSON object with query and documents", code="invalid_json"
    )


def _lone_surrogates(data: Any) -> Iterator[tuple[str, str, int]]:
    """Yield the place of each string that is not Unicode, the string, and the index of the surrogate."""
    waiting = [("", data)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as fault:
                yield place, value, fault.start
        elif isinstance(value, list):
            waiting += [(f"{place}[{i}]", item) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            waiting += [(place, name) for name in value]
            waiting += [(f"{place}.{name}".removeprefix("."), item) for name, item in value.items()]
