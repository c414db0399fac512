"""The routes beside scoring, as their clients ask for them, on the real server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server_process import RunningServer, running_server

GETS = [
    "/v1/models",
    "/v1/models/crossrank-mini",
    "/models",
    "/info",
    "/health",
    "/ping",
    "/health/live",
    "/health/ready",
    "/v1/health/live",
    "/v1/health/ready",
    "/openapi.json",
    "/v1/openapi.json",
]
POSTS = [
    "/v1/rerank",
    "/v2/rerank",
    "/v3/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/v1/ranking",
    "/v1/retrieval/a/b/reranking",
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as process:
        yield process


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body_and_options_names_the_methods(server: RunningServer, path: str) -> None:
    got = httpx.get(server.base_url + path)
    assert got.status_code == 200
    head = httpx.head(server.base_url + path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    options = httpx.options(server.base_url + path)
    assert options.status_code == 204
    assert options.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", POSTS)
def test_other_methods_of_a_scoring_route_are_refused_naming_the_allowed_ones(server: RunningServer, path: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        response = httpx.request(method, server.base_url + path)
        assert response.status_code == 405
        assert response.headers["allow"] == "OPTIONS, POST"
    assert httpx.options(server.base_url + path).headers["allow"] == "OPTIONS, POST"
    assert httpx.options(server.base_url + "/nowhere").status_code == 404


@pytest.mark.parametrize("path", [*GETS, "/", "/docs", "/metrics", "/account", "/page/page.js"])
def test_a_slash_too_many_is_as_if_it_were_not_there(server: RunningServer, path: str) -> None:
    plain = httpx.get(server.base_url + path)
    assert plain.status_code == 200
    for variant in (path + "/", path + "//", "/" + path):
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = httpx.request(method, server.base_url + variant)
            assert answer.status_code == (204 if method == "OPTIONS" else 200)
        assert httpx.get(server.base_url + variant).headers["content-type"] == plain.headers["content-type"]


@pytest.mark.parametrize("path", POSTS)
def test_a_post_with_a_slash_too_many_gets_the_answer_itself_and_no_redirect(server: RunningServer, path: str) -> None:
    plain = httpx.post(server.base_url + path, content=b"{}")
    assert plain.status_code == 400
    for variant in (path + "/", "/" + path):
        answer = httpx.post(server.base_url + variant, content=b"{}")
        assert (answer.status_code, answer.json()) == (400, plain.json())


def test_models_are_listed_as_openai_lists_them_and_found_by_id(server: RunningServer) -> None:
    listed = httpx.get(f"{server.base_url}/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model["id"] == "crossrank-mini"
    assert model["object"] == "model"
    assert model["owned_by"] == "crossrank"
    assert isinstance(model["created"], int)
    assert httpx.get(f"{server.base_url}/v1/models/{model['id']}").json() == model


def test_a_model_whose_id_has_slashes_is_a_404_that_names_it(server: RunningServer) -> None:
    response = httpx.get(f"{server.base_url}/v1/models/cross-encoder/ms-marco-TinyBERT-L2-v2")
    assert response.status_code == 404
    assert "'cross-encoder/ms-marco-TinyBERT-L2-v2' is not served here" in response.json()["message"]


def test_infinity_lists_models_under_its_own_name_with_stats(server: RunningServer) -> None:
    (model,) = httpx.get(f"{server.base_url}/models").json()["data"]
    assert model["owned_by"] == "infinity"
    assert model["stats"] == {}


def test_info_describes_the_model_as_tei_does(server: RunningServer) -> None:
    info = httpx.get(f"{server.base_url}/info").json()
    assert info["model_id"] == "crossrank-mini"
    assert set(info["model_type"]) == {"reranker"}
    assert info["max_input_length"] == 512
    assert info["max_client_batch_size"] == 1000


def test_health_has_the_message_that_nim_gives(server: RunningServer) -> None:
    ready = httpx.get(f"{server.base_url}/v1/health/ready").json()
    assert (ready["object"], ready["message"]) == ("health.response", "Service is ready.")
    live = httpx.get(f"{server.base_url}/v1/health/live").json()
    assert (live["object"], live["message"]) == ("health.response", "Service is live.")


def test_both_places_of_the_specification_have_the_same(server: RunningServer) -> None:
    document = httpx.get(f"{server.base_url}/openapi.json").json()
    assert httpx.get(f"{server.base_url}/v1/openapi.json").json() == document
    assert document["info"]["title"] == "crossrank"


def test_fixed_model_names_are_answered_where_names_are_not_strict() -> None:
    with running_server("--no-strict-model-names") as server:
        body = {"query": "q", "documents": ["a"], "model": "jina-reranker-v2-base-multilingual"}
        response = httpx.post(f"{server.base_url}/v1/rerank", json=body)
        assert response.status_code == 200
        assert response.json()["model"] == "crossrank-mini"
