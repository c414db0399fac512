"""Validate the fields of requests; the error for a bad value states the value and the remedy.

Validators are plain functions on whole lists: nothing of pydantic runs for each document.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import orjson
from pydantic import PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from crossrank_server.serving.service import too_many_documents

# What a signed integer of 64 bits holds: beyond it numbers do not fit what computes with them.
MAX_WHOLE = 2**63 - 1
MAX_NAMES = 100
# Of the name of a field or a model. Nothing else that is a string is longer, but for texts and what is ignored.
MAX_NAME_CHARACTERS = 1000
# Values that infinity's client sends for no model.
_NO_MODEL = ("", "default/not-specified")


class Problem(PydanticCustomError):
    """Refuses a value; the text is the whole message, remedy included."""

    def __new__(cls, text: str, place: str = "", code: str | None = None) -> Problem:
        """Carry text, the place below the field (`[3]`) and the error's code through pydantic's machinery."""
        return super().__new__(cls, "problem", "{text}", {"text": text, "place": place, "code": code})


def shown(value: Any) -> str:
    """Describe a JSON value briefly, for an error message."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return "the string " + json.dumps(value if len(value) <= 40 else value[:40] + "...")
    return "a list" if isinstance(value, list) else "an object"


def _query(value: Any, info: ValidationInfo) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise Problem(f'{info.field_name} is {shown(value)}; send a string or {{"text": "..."}}')
    if not text.strip():
        raise Problem(f"{info.field_name} is empty; send the text to rank the documents for")
    return text


def _documents(value: Any, info: ValidationInfo) -> list[str]:
    """Return the texts of documents.

    Nested documents are replaced in the list by their JSON with a text, the form in which they may be given back.
    """
    name = info.field_name
    if not isinstance(value, list):
        raise Problem(f"{name} is {shown(value)}; send a list of strings or of objects with a text")
    if not value:
        raise Problem(f"{name} is an empty list; send at least 1 document")
    if info.context is not None and len(value) > info.context:
        # Refused before any is looked at.
        error = too_many_documents(str(name), len(value), info.context)
        raise Problem(error.message, "", error.code)
    if set(map(type, value)) == {str}:
        return value
    rank_fields = info.data.get("rank_fields")
    texts = []
    for i, document in enumerate(value):
        where, place = f"{name}[{i}]", f"[{i}]"
        nested = isinstance(document, dict) and any(isinstance(value, (dict, list)) for value in document.values())
        if nested:
            # Lists and objects take 25 times as much memory as their JSON.
            value[i] = _packed(document, where, place)
        text = _text(document, where, place, rank_fields)
        if nested and not isinstance(document.get("text"), str):
            value[i] = _packed({**document, "text": text}, where, place)
        texts.append(text)
    return texts


def _packed(document: dict[str, Any], where: str, place: str) -> orjson.Fragment:
    """Return the JSON of a document."""
    try:
        return orjson.Fragment(orjson.dumps(document))
    except orjson.JSONEncodeError:
        raise Problem(f"{where} is nested too deeply; send at most 200 levels", place) from None


def _text(document: Any, where: str, place: str, rank_fields: list[str] | None = None) -> str:
    """Return the text of a document that is scored."""
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        raise Problem(f'{where} is {shown(document)}; send a string or {{"text": "..."}}', place)
    if rank_fields:
        return _joined(document, where, place, rank_fields)
    text = document.get("text")
    if not isinstance(text, str):
        found = f"has the text {shown(text)}" if "text" in document else "has no text"
        raise Problem(f'{where} {found}; send a string or {{"text": "..."}}, or name its fields in rank_fields', place)
    return text


def _joined(document: dict[str, Any], where: str, place: str, rank_fields: list[str]) -> str:
    """Join the fields to rank on: the value of a single one, else lines of `field: value`, as in YAML.

    Source: https://docs.cohere.com/docs/rerank-overview (semi-structured data)
    """
    values = {name: document[name] for name in rank_fields if document.get(name) is not None}
    if not values:
        named = ", ".join(name[:200] for name in rank_fields)[:200]
        raise Problem(f"{where} has none of the rank_fields {named}; send at least one", place)
    texts = {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in values.items()}
    return texts[rank_fields[0]] if len(rank_fields) == 1 else "\n".join(f"{name}: {texts[name]}" for name in texts)


def _texts(value: Any, info: ValidationInfo) -> list[str] | str:
    """Return one text or a list of them, for the two sides of pairs."""
    if isinstance(value, list):
        return _documents(value, info)
    return _text(value, str(info.field_name), "")


def _names(value: Any, info: ValidationInfo) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and len(names) > MAX_NAMES:
        raise Problem(f"{info.field_name} has {len(names)} names, the limit is {MAX_NAMES}; send fewer")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Problem(f"{info.field_name} is {shown(value)}; send a list of field names")
    for i, name in enumerate(names):
        _check_name(name, f"{info.field_name}[{i}]", f"[{i}]")
    return names


def _check_name(name: str, where: str, place: str = "") -> None:
    if len(name) > MAX_NAME_CHARACTERS:
        raise Problem(
            f"{where} has {len(name)} characters, the limit is {MAX_NAME_CHARACTERS}; send a shorter name", place
        )


def _whole(value: Any, info: ValidationInfo) -> int:
    number = value
    if isinstance(value, str) and len(value) < 20 and value.strip().removeprefix("-").isdecimal():
        number = int(value)
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise Problem(f"{info.field_name} is {shown(value)}; send a whole number, or leave it out")
    if number > MAX_WHOLE:
        raise Problem(f"{info.field_name} is {shown(value)}, the limit is {MAX_WHOLE}; send less, or leave it out")
    return number


def _count(value: Any, info: ValidationInfo) -> int | None:
    count = _whole(value, info)
    if count < 0:
        raise Problem(f"{info.field_name} is {shown(value)}; send 0 or more (0 and null mean no limit)")
    return count or None


def _pair_tokens(value: Any, info: ValidationInfo) -> int | None:
    tokens = _whole(value, info)
    if tokens < -1:
        raise Problem(f"{info.field_name} is {shown(value)}; send -1 for the model's whole window, or 1 or more")
    return None if tokens == -1 else tokens


def _truncate(value: Any, info: ValidationInfo) -> str | None:
    """Return NONE, START or END; None where texts may be truncated on the model's own side."""
    if isinstance(value, str) and len(value) <= MAX_NAME_CHARACTERS:
        word = value.strip().upper()
        if word in ("TRUE", "1"):
            return None
        word = {"FALSE": "NONE", "0": "NONE"}.get(word, word)
        if word in ("NONE", "START", "END"):
            return word
    elif value in (True, False):
        return None if value else "NONE"
    raise Problem(f"{info.field_name} is {shown(value)}; send true, false, NONE, START or END")


def _direction(value: Any, info: ValidationInfo) -> str:
    if isinstance(value, str) and len(value) <= MAX_NAME_CHARACTERS:
        word = value.strip().lower()
        if word in ("left", "right"):
            return word
    raise Problem(f"{info.field_name} is {shown(value)}; send left or right")


def _model(value: Any, info: ValidationInfo) -> str | None:
    if not isinstance(value, str):
        raise Problem(f"{info.field_name} is {shown(value)}; send a string")
    _check_name(value, str(info.field_name))
    return None if value in _NO_MODEL else value


_TEXT = {"type": "string", "minLength": 1, "pattern": r"\S"}
_TEXT_OBJECT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_NULL = {"type": "null"}
_DOCUMENTS = {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}}
_COUNT = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_WHOLE}, _NULL]}
_PAIR_TOKENS = {"anyOf": [{"type": "integer", "minimum": -1, "maximum": MAX_WHOLE}, _NULL]}
_TRUNCATE = {"anyOf": [{"type": "boolean"}, {"enum": ["NONE", "START", "END"]}, _NULL]}
_DIRECTION = {"anyOf": [{"enum": ["left", "right"]}, _NULL]}
_NAME = {"type": "string", "maxLength": MAX_NAME_CHARACTERS}
_NAMES = {"anyOf": [{"type": "array", "maxItems": MAX_NAMES, "items": _NAME}, _NULL]}
_FLAG = {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}, _NULL]}

Query = Annotated[str, PlainValidator(_query), WithJsonSchema({"anyOf": [_TEXT, _TEXT_OBJECT]})]
Documents = Annotated[list[str], PlainValidator(_documents), WithJsonSchema(_DOCUMENTS)]
Texts = Annotated[
    list[str] | str,
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXT_OBJECT, _DOCUMENTS]}),
]
Names = Annotated[
    list[str],
    PlainValidator(_names),
    WithJsonSchema(_NAMES),
]
Count = Annotated[int | None, PlainValidator(_count), WithJsonSchema(_COUNT)]
PairTokens = Annotated[int | None, PlainValidator(_pair_tokens), WithJsonSchema(_PAIR_TOKENS)]
# pydantic's own reading of booleans: also "true" and "false", as some clients send them.
Flag = Annotated[bool, WithJsonSchema(_FLAG)]
Truncate = Annotated[Literal["NONE", "START", "END"], PlainValidator(_truncate), WithJsonSchema(_TRUNCATE)]
Direction = Annotated[
    Literal["left", "right"],
    PlainValidator(_direction),
    WithJsonSchema(_DIRECTION),
]
ModelName = Annotated[str | None, PlainValidator(_model), WithJsonSchema({"anyOf": [_NAME, _NULL]})]
