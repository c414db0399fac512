"""What a request may hold, and what is said of each thing it may not."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from crossrank.errors import InvalidRequest
from crossrank.request import RerankRequest, ScoreRequest, Truncation
from crossrank_server.http.json_body import parse_object
from crossrank_server.http.routes.ranking import RankingBody
from crossrank_server.http.routes.tei import TextsBody
from crossrank_server.http.schema.bodies import Options, RerankBody
from crossrank_server.http.schema.pairs import ScoreBody


def parse_request(body: bytes) -> RerankBody:
    return RerankBody.read(parse_object(body))


def limits(**options: Any) -> Truncation:
    return RerankBody.read({"query": "q", "documents": ["a"], **options}).limits()


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
    "null query": (b'{"query":null,"documents":["a"]}', "query", r"query is null; send a string or"),
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
    "top_n a word": (b'{"query":"q","documents":["a"],"top_n":"all"}', "top_n", r'top_n is the string "all"; send a'),
    "top_n an endless string": (
        orjson.dumps({"query": "q", "documents": ["a"], "top_n": "9" * 5000}),
        "top_n",
        r"send a whole number",
    ),
    "top_n a superscript": ('{"query":"q","documents":["a"],"top_n":"²"}'.encode(), "top_n", r"send a whole number"),
    "negative top_k": (b'{"query":"q","documents":["a"],"top_k":-2}', "top_k", r"top_k is -2; send 0 or more"),
    "negative max_tokens_per_doc": (
        b'{"query":"q","documents":["a"],"max_tokens_per_doc":-5}',
        "max_tokens_per_doc",
        r"max_tokens_per_doc is -5; send 0 or more",
    ),
    "fractional max_chunks_per_doc": (
        b'{"query":"q","documents":["a"],"max_chunks_per_doc":2.5}',
        "max_chunks_per_doc",
        r"is 2.5; send a whole number",
    ),
    "truncate_prompt_tokens below -1": (
        b'{"query":"q","documents":["a"],"truncate_prompt_tokens":-2}',
        "truncate_prompt_tokens",
        r"is -2; send -1 for the model's whole window",
    ),
    "truncate a word": (
        b'{"query":"q","documents":["a"],"truncate":"MIDDLE"}',
        "truncate",
        r'truncate is the string "MIDDLE"; send true, false, NONE, START or END',
    ),
    "truncation a list": (b'{"query":"q","documents":["a"],"truncation":[]}', "truncation", r"send true or false"),
    "truncation_direction a word": (
        b'{"query":"q","documents":["a"],"truncation_direction":"up"}',
        "truncation_direction",
        r'is the string "up"; send left or right',
    ),
    "truncation_side a number": (
        b'{"query":"q","documents":["a"],"truncation_side":1}',
        "truncation_side",
        r"truncation_side is 1; send left or right",
    ),
    "use_activation a word": (
        b'{"query":"q","documents":["a"],"use_activation":"maybe"}',
        "use_activation",
        r'use_activation is the string "maybe"; send true or false',
    ),
    "rank_fields a number": (
        b'{"query":"q","documents":["a"],"rank_fields":3}',
        "rank_fields",
        r"rank_fields is 3; send a list of field names",
    ),
    "rank_fields of numbers": (
        b'{"query":"q","documents":["a"],"rank_fields":[3]}',
        "rank_fields",
        r"rank_fields is a list; send a list of field names",
    ),
    "a document without any of the rank_fields": (
        b'{"query":"q","documents":["a",{"body":"b"}],"rank_fields":["title","text"]}',
        "documents[1]",
        r"documents\[1\] has none of the rank_fields title, text",
    ),
    "a document nested 300 deep": (
        b'{"query":"q","documents":[{"text":"a","more":' + b"[" * 300 + b"]" * 300 + b"}]}",
        "documents[0]",
        r"documents\[0\] is nested too deeply; send at most 200 levels",
    ),
    "query an object without text": (b'{"query":{"t":"q"},"documents":["a"]}', "query", r"query is an object; send"),
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
    "lone surrogate in a document": (
        b'{"query":"q","documents":["a",{"text":"\\ud83d"}]}',
        "documents[1].text",
        r"documents\[1\]\.text holds the lone surrogate \\ud83d at character 0; send valid Unicode",
    ),
    "lone surrogate in the name of a field": (
        b'{"query":"q","documents":["a"],"\\ud83d":1}',
        None,
        r"the body holds the lone surrogate \\ud83d at character 0",
    ),
    "lone surrogate in a field that is ignored": (
        b'{"query":"q","documents":["a"],"user":"\\udfff"}',
        "user",
        r"user holds the lone surrogate \\udfff",
    ),
}


@pytest.mark.parametrize(("body", "param", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_naming_field_value_and_remedy(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        parse_request(body)
    assert refused.value.param == param
    assert refused.value.http_status == 400


BAD_ELSEWHERE: dict[str, tuple[type[Options], dict[str, Any], str, str]] = {
    "TEI: no query": (TextsBody, {"texts": ["a"]}, "query", r"query is missing"),
    "TEI: no texts": (TextsBody, {"query": "q", "texts": []}, "texts", r"texts is an empty list"),
    "TEI: a null text": (TextsBody, {"query": "q", "texts": ["a", None]}, "texts[1]", r"texts\[1\] is null"),
    "NIM: query without text": (
        RankingBody,
        {"query": {}, "passages": [{"text": "a"}]},
        "query",
        r"query is an object",
    ),
    "NIM: blank query": (RankingBody, {"query": {"text": " "}, "passages": [{"text": "a"}]}, "query", r"is empty"),
    "NIM: no passages": (RankingBody, {"query": {"text": "q"}}, "passages", r"passages is missing"),
    "NIM: an image": (
        RankingBody,
        {"query": {"text": "q"}, "passages": [{"image": "data:image/png;base64,AA=="}]},
        "passages[0]",
        r"passages\[0\] has no text",
    ),
    "score: nothing": (ScoreBody, {}, "text_1", r"pairs are missing; send text_1 and text_2, or queries and documents"),
    "score: one side": (ScoreBody, {"text_1": "q"}, "text_2", r"pairs are missing"),
    "score: a blank query": (ScoreBody, {"text_1": ["q", " "], "text_2": ["a", "b"]}, "text_1[1]", r"is empty"),
    "score: lists that do not match": (
        ScoreBody,
        {"text_1": ["q", "r"], "text_2": ["a", "b", "c"]},
        "text_2",
        r"text_1 has 2 texts and text_2 3; send one text_1 for all, or as many of each",
    ),
    "score: many queries, one text": (
        ScoreBody,
        {"text_1": ["q", "r"], "text_2": "a"},
        "text_2",
        r"2 texts and text_2 1",
    ),
    "score: an empty list": (ScoreBody, {"queries": "q", "documents": []}, "documents", r"documents is an empty list"),
    "score: a number": (ScoreBody, {"text_1": 3, "text_2": "a"}, "text_1", r"text_1 is 3; send a string"),
}


@pytest.mark.parametrize(("body", "data", "param", "message"), BAD_ELSEWHERE.values(), ids=BAD_ELSEWHERE.keys())
def test_other_dialects_name_their_own_fields(
    body: type[Options], data: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        requested(body.read(data))
    assert refused.value.param == param


def requested(body: Options) -> Any:
    return body.request() if isinstance(body, ScoreBody) else body


def test_a_message_never_repeats_a_long_value_whole() -> None:
    body = orjson.dumps({"query": "q", "documents": "x" * 100_000})
    with pytest.raises(InvalidRequest) as refused:
        parse_request(body)
    assert len(refused.value.message) < 200


def test_strings_and_objects_are_both_documents_and_unknown_fields_are_ignored() -> None:
    body = parse_request(
        b'{"query":"q","documents":["a",{"text":"b","title":"t"},""],"user":"me","priority":0,"instruction":null}'
    )
    assert body.documents == ["a", "b", ""]


def test_null_is_as_good_as_left_out_for_every_optional_field() -> None:
    names = set(RerankBody.model_fields) - {"query", "documents"}
    read = RerankBody.read({"query": "q", "documents": ["a"]} | dict.fromkeys(names))
    assert read == RerankBody.read({"query": "q", "documents": ["a"]})
    assert read.request() == RerankRequest("q", ["a"])


@pytest.mark.parametrize("value", [3, "3", " 3 ", 3.0])
def test_numbers_are_also_read_from_strings(value: Any) -> None:
    assert RerankBody.read({"query": "q", "documents": ["a"], "top_n": value}).returned == 3


@pytest.mark.parametrize(
    ("options", "returned"),
    [({}, None), ({"top_n": 0}, None), ({"top_n": 2}, 2), ({"top_k": 4}, 4), ({"top_n": 2, "top_k": 4}, 2)],
)
def test_top_k_is_another_name_for_top_n(options: dict[str, Any], returned: int | None) -> None:
    assert RerankBody.read({"query": "q", "documents": ["a"], **options}).request().top_n == returned


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("true", True), ("True", True), ("1", True), (1, True), ("false", False), (0, False)],
)
def test_booleans_are_also_read_from_strings(value: Any, expected: bool) -> None:
    body = RerankBody.read({"query": "q", "documents": ["a"], "return_documents": value, "raw_scores": value})
    assert body.with_documents(default=not expected) is expected
    assert body.raw is expected


@pytest.mark.parametrize(
    ("options", "raw"),
    [({}, False), ({"raw_scores": True}, True), ({"use_activation": False}, True), ({"use_activation": "false"}, True)],
)
def test_logits_are_asked_for_by_any_of_their_names(options: dict[str, Any], raw: bool) -> None:
    assert RerankBody.read({"query": "q", "documents": ["a"], **options}).raw is raw


@pytest.mark.parametrize("name", ["", "default/not-specified", None])
def test_the_names_that_clients_send_for_no_model_mean_the_default(name: str | None) -> None:
    assert RerankBody.read({"query": "q", "documents": ["a"], "model": name}).request().model is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"truncate": True}, Truncation()),
        ({"truncate": "END"}, Truncation(direction="right")),
        ({"truncate": "NONE"}, Truncation(allowed=False)),
        ({"truncate": "none"}, Truncation(allowed=False)),
        ({"truncate": False}, Truncation(allowed=False)),
        ({"truncate": "false"}, Truncation(allowed=False)),
        ({"truncation": False}, Truncation(allowed=False)),
        ({"truncate": "START"}, Truncation(direction="left")),
        ({"truncation_direction": "Right"}, Truncation(direction="right")),
        ({"truncation_direction": "Left"}, Truncation(direction="left")),
        ({"truncation_side": "left"}, Truncation(direction="left")),
        ({"truncate_prompt_tokens": -1}, Truncation()),
        ({"truncate_prompt_tokens": 64}, Truncation(max_tokens=64)),
        ({"max_tokens_per_query": 9}, Truncation(max_tokens_per_query=9)),
        ({"max_tokens_per_doc": 128}, Truncation(max_tokens_per_doc=128)),
        ({"max_tokens_per_doc": 0, "max_chunks_per_doc": 0}, Truncation()),
        ({"max_chunks_per_doc": "10"}, Truncation(max_chunks_per_doc=10)),
    ],
)
def test_truncation_is_asked_for_by_the_names_of_every_server(options: dict[str, Any], expected: Truncation) -> None:
    assert limits(**options) == expected


@pytest.mark.parametrize(
    ("rank_fields", "text"),
    [
        (None, "the text"),
        (["text"], "the text"),
        (["title"], "The title"),
        (["title", "text"], "title: The title\ntext: the text"),
        (["text", "missing", "empty", "title"], "text: the text\ntitle: The title"),
        (["title", "year", "tags"], 'title: The title\nyear: 1999\ntags: ["a","b"]'),
        ("title", "The title"),
    ],
)
def test_rank_fields_say_what_of_a_document_is_scored(rank_fields: Any, text: str) -> None:
    document = {"title": "The title", "text": "the text", "year": 1999, "tags": ["a", "b"], "empty": None}
    body = RerankBody.read({"query": "q", "documents": [document, "plain"], "rank_fields": rank_fields})
    assert body.documents == [text, "plain"]


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        ({"text_1": "q", "text_2": "a"}, [("q", "a")]),
        ({"text_1": "q", "text_2": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"text_1": ["q"], "text_2": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"text_1": ["q", "r"], "text_2": ["a", "b"]}, [("q", "a"), ("r", "b")]),
        ({"queries": "q", "documents": ["a", {"text": "b"}]}, [("q", "a"), ("q", "b")]),
        ({"queries": "q", "items": ["a"]}, [("q", "a")]),
        ({"data_1": "q", "data_2": "a"}, [("q", "a")]),
    ],
)
def test_pairs_are_made_as_vllm_makes_them(data: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    request = ScoreBody.read(data).request()
    assert request == ScoreRequest(pairs, field=list(data)[1])


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", " ", "", "a\u0300", "\U0001f469\u200d\U0001f467", "\ufffe"])
def test_odd_but_legal_text_is_accepted(text: str) -> None:
    assert parse_request(orjson.dumps({"query": "q", "documents": [text]})).documents == [text]


def test_a_byte_order_mark_before_the_json_is_no_part_of_it():
    assert parse_object(b'\xef\xbb\xbf{"query": "q"}') == {"query": "q"}
