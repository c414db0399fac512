"""What a request may hold, and what is said of each thing it may not."""

from __future__ import annotations

import orjson
import pytest

from crossrank_server.errors import InvalidRequest
from crossrank_server.http.json_body import parse_object
from crossrank_server.http.schema import RerankBody, parse_rerank


def parse_request(body: bytes) -> RerankBody:
    return parse_rerank(parse_object(body))


BAD = {
    "not json": (b"not json", None, r"the body is not JSON: .*; send a JSON object"),
    "empty": (b"", None, r"the body is not JSON"),
    "a list": (b"[1]", None, r"the body is a list; send a JSON object"),
    "nested 100,000 deep": (b"[" * 100_000, None, r"nested deeper than the limit of 1024 levels"),
    "nested 100,000 deep and closed": (
        b'{"query":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        None,
        r"nested deeper than the limit of 1024 levels",
    ),
    "invalid UTF-8": (b'{"query":"\xff","documents":["a"]}', None, r"not UTF-8: byte 0xff at offset 10; encode"),
    "missing query": (b'{"documents":["a"]}', "query", r"query is missing; it is required"),
    "null query": (b'{"query":null,"documents":["a"]}', "query", r"query is null; send a string"),
    "numeric query": (b'{"query":7,"documents":["a"]}', "query", r"query is 7; send a string"),
    "empty query": (b'{"query":"","documents":["a"]}', "query", r"query is empty; send the text"),
    "blank query": (b'{"query":" \\n","documents":["a"]}', "query", r"query is empty"),
    "missing documents": (b'{"query":"q"}', "documents", r"documents is missing"),
    "null documents": (b'{"query":"q","documents":null}', "documents", r"documents is null; send a list"),
    "empty documents": (b'{"query":"q","documents":[]}', "documents", r"empty list; send at least 1"),
    "documents a string": (b'{"query":"q","documents":"a"}', "documents", r'documents is the string "a"; send a list'),
    "documents an object": (b'{"query":"q","documents":{"text":"a"}}', "documents", r"documents is an object"),
    "null document": (
        b'{"query":"q","documents":["a",null]}',
        "documents[1]",
        r"documents\[1\] is null; send a string or",
    ),
    "numeric document": (b'{"query":"q","documents":[3.5]}', "documents[0]", r"documents\[0\] is 3.5"),
    "object without text": (b'{"query":"q","documents":[{"t":"a"}]}', "documents[0]", r"documents\[0\] has no text"),
    "object with null text": (b'{"query":"q","documents":[{"text":null}]}', "documents[0]", r"has the text null"),
    "nested list": (b'{"query":"q","documents":[["a"]]}', "documents[0]", r"documents\[0\] is a list"),
    "negative top_n": (b'{"query":"q","documents":["a"],"top_n":-1}', "top_n", r"top_n is -1; send 0 or more"),
    "fractional top_n": (b'{"query":"q","documents":["a"],"top_n":1.5}', "top_n", r"top_n is 1.5; send a whole number"),
    "top_n a string": (b'{"query":"q","documents":["a"],"top_n":"3"}', "top_n", r'top_n is the string "3"'),
    "top_n a boolean": (b'{"query":"q","documents":["a"],"top_n":true}', "top_n", r"top_n is true"),
    "return_documents a number": (
        b'{"query":"q","documents":["a"],"return_documents":2}',
        "return_documents",
        r"is 2; send true or",
    ),
    "raw_scores a list": (
        b'{"query":"q","documents":["a"],"raw_scores":[]}',
        "raw_scores",
        r"is a list; send true or false",
    ),
    "model a number": (b'{"query":"q","documents":["a"],"model":1}', "model", r"model is 1; send a string"),
    "lone surrogate in query": (
        b'{"query":"a\\udc00","documents":["a"]}',
        "query",
        r"lone surrogate \\udc00 at character 1",
    ),
    "lone surrogate in document": (
        b'{"query":"q","documents":["a",{"text":"\\ud83d"}]}',
        "documents[1]",
        r"documents\[1\] holds the lone surrogate \\ud83d at character 0; send valid Unicode",
    ),
}


@pytest.mark.parametrize(("body", "param", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_naming_field_value_and_remedy(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        parse_request(body)
    assert refused.value.param == param
    assert refused.value.http_status == 400


def test_a_message_never_repeats_a_long_value_whole() -> None:
    body = orjson.dumps({"query": "q", "documents": "x" * 100_000})
    with pytest.raises(InvalidRequest) as refused:
        parse_request(body)
    assert len(refused.value.message) < 200


def test_strings_and_objects_are_both_documents_and_unknown_fields_are_ignored() -> None:
    request = parse_request(
        b'{"query":"q","documents":["a",{"text":"b","title":"t"},""],"user":"me","rank_fields":null,"top_n":null,'
        b'"return_documents":null,"raw_scores":null,"model":null}'
    )
    assert request.documents == ["a", "b", ""]
    assert request.top_n is None
    assert not request.return_documents
    assert not request.raw_scores
    assert request.model is None


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", " ", "", "a\u0300", "\U0001f469\u200d\U0001f467", "\ufffe"])
def test_odd_but_legal_text_is_accepted(text: str) -> None:
    assert parse_request(orjson.dumps({"query": "q", "documents": [text]})).documents == [text]
