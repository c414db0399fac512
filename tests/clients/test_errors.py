"""A refusal reaches the caller as the client's own exception, with the server's sentence in it."""

from __future__ import annotations

import httpx
import pytest

from tests.clients.environment import Refused
from tests.clients.ways import DOCUMENTS, MODEL, QUERY, WAYS

# What each client raises for 400 and 404: its own classes where it has some.
_COHERE = ("cohere.errors.bad_request_error.BadRequestError", "cohere.errors.not_found_error.NotFoundError")
_LITELLM = ("litellm.exceptions.BadRequestError", "litellm.exceptions.NotFoundError")
_RUNTIME = ("builtins.RuntimeError", "builtins.RuntimeError")
_PLAIN = ("builtins.Exception", "builtins.Exception")
_VALUE = ("builtins.ValueError", "builtins.ValueError")
_RAISED = {
    ("cohere_sdk", ""): _COHERE,
    ("litellm_sdk", ""): _LITELLM,
    ("langchain_cohere_compressor", ""): _COHERE,
    ("langchain_nvidia_compressor", ""): _PLAIN,
    ("llama_index_postprocessors", "cohere"): _COHERE,
    ("llama_index_postprocessors", "jina"): _RUNTIME,
    # It looks the model up in /v1/models first.
    ("llama_index_postprocessors", "nvidia"): ("httpx.HTTPStatusError", "builtins.ValueError"),
    ("llama_index_postprocessors", "siliconflow"): _RUNTIME,
    ("llama_index_postprocessors", "xinference"): _PLAIN,
    ("haystack_rankers", "cohere"): _COHERE,
    ("haystack_rankers", "jina"): _RUNTIME,
    ("haystack_rankers", "nvidia"): _VALUE,
    ("voyage_sdk", ""): ("voyageai.error.InvalidRequestError", "voyageai.error.APIError"),
    ("infinity_sdk", ""): ("infinity_client.errors.UnexpectedStatus", "infinity_client.errors.UnexpectedStatus"),
    ("openai_sdk", ""): ("openai.BadRequestError", "openai.NotFoundError"),
}
# This client looks at no status and fails on the form of the answer: see its own test.
_TELLING = [way for way in WAYS if way.name != "llama-index tei"]
# This one tells the status only.
_SILENT = "llama-index nvidia"


def raised_by(way) -> tuple[str, str]:
    return _RAISED.get((way.program, way.call)) or _RAISED[way.program, ""]


def refusal(program, server, way, **arguments) -> Refused:
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **way.options, **arguments}
    with pytest.raises(Refused) as raised:
        program(way.environment, way.program).ask(way.call, base_url=server.base_url + way.base, key="any", **asked)
    return raised.value


def sentence(server, status: int, **fields) -> str:
    """The server's own message for a request."""
    answer = httpx.post(
        f"{server.base_url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **fields}
    )
    assert answer.status_code == status
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("way", _TELLING, ids=lambda way: way.name.replace(" ", "-"))
def test_a_bad_request_raises_the_clients_own_exception_with_the_servers_sentence(way, program, server):
    refused = refusal(program, server, way, query=" ")
    assert refused.classes[0] == raised_by(way)[0]
    expected = "400 Bad Request" if way.name == _SILENT else sentence(server, 400, query=" ")
    assert expected in refused.message


@pytest.mark.parametrize(
    "way", [way for way in _TELLING if way.names_model], ids=lambda way: way.name.replace(" ", "-")
)
def test_an_unknown_model_raises_the_clients_own_exception_with_the_servers_sentence(way, program, server):
    refused = refusal(program, server, way, model="nowhere")
    assert refused.classes[0] == raised_by(way)[1]
    expected = "No locally hosted nowhere was found." if way.name == _SILENT else sentence(server, 404, model="nowhere")
    assert expected in refused.message


def test_llama_indexs_tei_client_does_not_take_a_refusal_for_an_answer(program, server):
    (way,) = (way for way in WAYS if way.name == "llama-index tei")
    assert refusal(program, server, way, query=" ").classes[0] == "builtins.AssertionError"


def test_openai_gives_every_field_of_the_error(program, server):
    asked = {"query": QUERY, "documents": ["text", 7], "model": MODEL}
    fault = program("clients", "openai_sdk").ask("fault", base_url=server.base_url, key="any", **asked)
    body = httpx.post(f"{server.base_url}/v1/rerank", json=asked).json()["error"]
    request_id = fault.pop("request_id")
    assert request_id
    assert fault == {"status": 400, "type": body["type"], "param": "documents[1]", "code": body["code"]}


def test_voyages_truncation_false_refuses_a_long_document_by_its_name(program, server):
    (way,) = (way for way in WAYS if way.name == "voyageai")
    refused = refusal(program, server, way, truncation=False)
    assert refused.classes[0] == "voyageai.error.InvalidRequestError"
    assert "documents[5]" in refused.message


def test_nvidias_truncate_none_refuses_a_long_passage_by_its_name(program, server):
    (way,) = (way for way in WAYS if way.name == "langchain-nvidia compress")
    assert "passages[5]" in refusal(program, server, way, truncate="NONE").message
