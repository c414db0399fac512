"""With keys on: each client sends its key where the server looks for it, and tells its caller when that is no good."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.clients.environment import Refused
from tests.clients.test_curl import HEADERS, curl
from tests.clients.ways import DOCUMENTS, MODEL, QUERY, WAYS
from tests.server_process import CROSSRANK, RunningServer, running_server

# It has no parameter for a key.
_KEYED = [way for way in WAYS if way.name != "llama-index xinference"]
# What those clients raise for 401, 402 and 429 that have classes for them.
_RAISED = {
    "cohere": (
        "cohere.errors.unauthorized_error.UnauthorizedError",
        "cohere.core.api_error.ApiError",
        "cohere.errors.too_many_requests_error.TooManyRequestsError",
    ),
    "litellm": (
        "litellm.exceptions.AuthenticationError",
        "litellm.exceptions.PaymentRequiredError",
        "litellm.exceptions.RateLimitError",
    ),
    "voyage": (
        "voyageai.error.AuthenticationError",
        "voyageai.error.APIError",
        "voyageai.error.RateLimitError",
    ),
    "openai": ("openai.AuthenticationError", "openai.APIStatusError", "openai.RateLimitError"),
}
_CALLS = {
    "cohere": ("clients", "cohere_sdk", "v2", {}),
    "litellm": ("clients", "litellm_sdk", "rerank", {"provider": "cohere"}),
    "voyage": ("clients", "voyage_sdk", "rerank", {}),
    "openai": ("clients", "openai_sdk", "post", {}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'keys.db'}"


@pytest.fixture(scope="module")
def create_key(store):
    """Make a key with `crossrank keys create`."""

    def create(*options: str) -> str:
        command = [CROSSRANK, "keys", "create", "--store", store, "--name", "test", "--json", *options]
        return str(json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["key"])

    return create


@pytest.fixture(scope="module")
def key(create_key) -> str:
    return str(create_key())


@pytest.fixture(scope="module")
def keyed_server(store, key) -> Iterator[RunningServer]:
    with running_server("--store", store, "--precision", "fp32") as server:
        yield server


def ask(program, server, name, key):
    environment, module, call, options = _CALLS[name]
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **options}
    return program(environment, module).ask(call, base_url=server.base_url, key=key, **asked)


@pytest.mark.parametrize("way", _KEYED, ids=lambda way: way.name.replace(" ", "-"))
def test_a_good_key_is_served_and_a_wrong_one_is_not(way, program, keyed_server, key, reference):
    client = program(way.environment, way.program)
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **way.options}
    hits = client.ask(way.call, base_url=keyed_server.base_url + way.base, key=key, **asked)
    assert [index for index, _, _ in hits] == reference.order
    with pytest.raises(Refused):
        client.ask(way.call, base_url=keyed_server.base_url + way.base, key=key[:-1] + "?", **asked)


@pytest.mark.parametrize("name", _CALLS)
def test_an_unknown_key_raises_the_clients_own_exception(name, program, keyed_server):
    answer = httpx.get(f"{keyed_server.base_url}/v1/models", headers={"authorization": "Bearer nobody"})
    with pytest.raises(Refused) as raised:
        ask(program, keyed_server, name, "nobody")
    assert raised.value.classes[0] == _RAISED[name][0]
    assert answer.status_code == 401
    assert answer.json()["message"] in raised.value.message


@pytest.mark.parametrize("name", _CALLS)
def test_spent_credit_raises_with_the_servers_code(name, program, keyed_server, create_key):
    key = create_key("--credit", "0")
    with pytest.raises(Refused) as raised:
        ask(program, keyed_server, name, key)
    assert raised.value.classes[0] == _RAISED[name][1]
    assert "credit" in raised.value.message


@pytest.mark.parametrize("name", _CALLS)
def test_a_key_over_its_limit_raises_the_clients_own_exception(name, program, keyed_server, create_key):
    key = create_key("--requests-per-minute", "1")
    ask(program, keyed_server, name, key)
    with pytest.raises(Refused) as raised:
        ask(program, keyed_server, name, key)
    assert raised.value.classes[0] == _RAISED[name][2]


def test_openais_models_need_a_key(program, keyed_server, key):
    openai = program("clients", "openai_sdk")
    assert [model["id"] for model in openai.ask("models", base_url=keyed_server.base_url, key=key)] == [MODEL]
    with pytest.raises(Refused) as raised:
        openai.ask("models", base_url=keyed_server.base_url, key="nobody")
    assert raised.value.classes[0] == "openai.AuthenticationError"


@pytest.mark.parametrize("authorization", HEADERS.values(), ids=HEADERS.keys())
def test_curl_without_a_good_key_is_told_so(keyed_server, authorization):
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS})
    status, headers, answer = curl(f"{keyed_server.base_url}/v1/rerank", *authorization, "-d", body)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert answer["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("header", ["Authorization: Bearer {}", "authorization: bearer {}", "X-API-Key: {}"])
def test_curl_with_a_good_key_is_served(keyed_server, key, header, reference):
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS})
    status, _, answer = curl(f"{keyed_server.base_url}/v1/rerank", "-H", header.format(key), "-d", body)
    assert status == 200
    assert [result["index"] for result in answer["results"]] == reference.order
