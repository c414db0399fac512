"""From the bytes of a body to a JSON object, or to an error that says what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import orjson

from crossrank_server.errors import InvalidRequest
from crossrank_server.http.schema import shown


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        InvalidRequest: It is not UTF-8, not JSON, or no object.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        data = _second_look(body, error)
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"the body is {shown(data)}; send a JSON object with query and documents", code="invalid_json"
        )
    return data


def _second_look(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Return what the standard parser makes of it if the only fault is a lone surrogate, which has a field to name."""
    try:
        text = body.decode()
    except UnicodeDecodeError as fault:
        raise InvalidRequest(
            f"the body is not UTF-8: byte 0x{body[fault.start]:02x} at offset {fault.start}; encode the JSON as UTF-8",
            code="invalid_json",
        ) from None
    if "surrogate" in str(error):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    if "depth limit" in str(error):
        raise InvalidRequest(
            "the body is nested deeper than the limit of 1024 levels; a request needs no more than 3",
            code="invalid_json",
        )
    raise InvalidRequest(
        f"the body is not JSON: {error}; send a JSON object with query and documents", code="invalid_json"
    )
