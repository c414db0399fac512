"""Every field of every request schema has a limit: found by walking the schemas, so that no new field is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from crossrank.errors import InvalidRequest
from crossrank_server.http.routes.ranking import RankingBody
from crossrank_server.http.routes.tei import TextsBody
from crossrank_server.http.schema.bodies import Options, RerankBody, body_components
from crossrank_server.http.schema.fields import MAX_WHOLE
from crossrank_server.http.schema.pairs import ScoreBody
from tests.http_app import client_of, make_app

MAX_DOCUMENTS = 50
# A valid request of each body, and a path that takes it.
REQUESTS: dict[type[Options], tuple[str, dict[str, Any]]] = {
    RerankBody: ("/v1/rerank", {"query": "q", "documents": [{"text": "a"}, {"text": "b"}]}),
    TextsBody: ("/rerank", {"query": "q", "texts": ["a", "b"]}),
    RankingBody: ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}]}),
    ScoreBody: ("/v1/score", {"text_1": "q", "text_2": ["a", "b"]}),
}
# Texts that are scored: their limit is that of the body, and the tokenizer reads no more of them than the window.
TEXTS = {"query", "text_1", "text_2", "queries", "documents", "data_1", "data_2", "items"}
EXTREMES = [
    *("0", "-1", "1", "2147483647", "2147483648", "9007199254740993", str(MAX_WHOLE), str(2**63), str(2**64)),
    *("1e19", "1e308", "1e999", "-1e308", "1e-308", "-0.0", "0.5", "NaN", "Infinity", "-Infinity", "9" * 400),
    *("true", '"1"', '"-1"', '"9223372036854775808"', f'"{"9" * 400}"', '"1e308"', '""', '"\\u0661"', "[]", "{}"),
]


def fields(allowed: str) -> Iterator[tuple[type[Options], str, dict[str, Any]]]:
    """Yield body, field and alternative of every field that may be of a JSON type."""
    components = body_components()
    for body in Options.__subclasses__():
        for name, schema in components[body.__name__]["properties"].items():
            for alternative in schema.get("anyOf", [schema]):
                if alternative.get("type") == allowed and "enum" not in alternative:
                    yield body, name, alternative


def each(allowed: str) -> pytest.MarkDecorator:
    found = list(fields(allowed))
    return pytest.mark.parametrize(
        ("body", "name", "schema"), found, ids=[f"{body.__name__}.{name}" for body, name, _ in found]
    )


def refusal(body: type[Options], name: str, value: Any) -> InvalidRequest | None:
    try:
        body.read({**REQUESTS[body][1], name: value}, MAX_DOCUMENTS)
    except InvalidRequest as error:
        return error
    return None


def test_every_body_is_walked() -> None:
    assert set(Options.__subclasses__()) == set(REQUESTS)
    assert len(list(fields("array"))) > 8
    assert len(list(fields("integer"))) > 20


@each("array")
@pytest.mark.parametrize("item", ["a", {"text": "a"}, [], None, 1], ids=["string", "object", "list", "null", "number"])
def test_a_list_has_a_limit_that_comes_before_its_items(body, name, schema, item) -> None:
    limit = schema.get("maxItems", MAX_DOCUMENTS)
    error = refusal(body, name, [item] * (limit + 1))
    assert error is not None
    assert error.param == name
    assert f"{limit + 1} " in error.message
    assert f"the limit is {limit}" in error.message


@each("string")
def test_a_string_has_a_limit_unless_it_is_scored(body, name, schema) -> None:
    if name in TEXTS:
        assert refusal(body, name, "x" * 100_000) is None
        return
    error = refusal(body, name, "x" * (schema["maxLength"] + 1))
    assert error is not None
    assert error.param == name
    assert f"the limit is {schema['maxLength']}" in error.message
    assert refusal(body, name, "x" * schema["maxLength"]) is None


@pytest.mark.parametrize("body", REQUESTS, ids=lambda body: body.__name__)
def test_no_value_of_a_field_makes_a_long_message(body) -> None:
    schema = body_components()[body.__name__]["properties"]
    for name in schema:
        for value in ("x" * 100_000, "9" * 100_000, ["x" * 100_000] * 2, {"x" * 100_000: 1}, [[[]] * 1000], 10**300):
            error = refusal(body, name, value)
            assert error is None or len(error.message) < 1000, name


@pytest.fixture(scope="module")
def app(builtin):
    return make_app(builtin)


@each("integer")
async def test_a_number_is_taken_or_refused_by_name_whatever_it_is(app, body, name, schema) -> None:
    assert schema["maximum"] == MAX_WHOLE
    path, request = REQUESTS[body]
    plain = json.dumps(request)[:-1]
    async with client_of(app) as client:
        for extreme in EXTREMES:
            answer = await client.post(path, content=f'{plain}, "{name}": {extreme}}}')
            assert answer.status_code in (200, 400), extreme
            if answer.status_code == 400:
                error = answer.json()["error"]
                assert (error["param"], error["code"]) in ((name, "invalid_value"), (None, "invalid_json")), extreme
                assert len(error["message"]) < 700
            elif extreme.lstrip("-").isdecimal():
                assert schema["minimum"] <= int(extreme) <= MAX_WHOLE
        for beyond in (2**63, 2**64 - 1, "1e19"):
            answer = await client.post(path, content=f'{plain}, "{name}": {beyond}}}')
            assert answer.status_code == 400
            assert f"{name} is" in answer.json()["message"]
            assert f"the limit is {MAX_WHOLE}" in answer.json()["message"]
