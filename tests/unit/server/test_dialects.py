"""Each dialect with the bodies that its clients send and the shapes that they read; one set of scores for all.

The bodies are those of the clients' own code: cohere 7.3, litellm 1.110, voyageai 0.5, infinity-client 0.0.78,
langchain-nvidia-ai-endpoints 1.5, llama-index-postprocessor-jinaai-rerank 0.6, -tei-rerank 0.6, -nvidia-rerank 0.7.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.cross_encoder.activations import sigmoid
from crossrank.packed import PairBatch
from crossrank_server.accounts.base import Account, Charge
from tests.http_app import client_of, make_app

QUERY = "how many people live in berlin"
DOCUMENTS = [
    "berlin is well known for its museums",
    "the flea is a small insect",
    "berlin has a population of 3,520,031 registered inhabitants",
    "how many people live in paris",
]
MODEL = "crossrank-mini"


@pytest.fixture(scope="module")
def app(builtin: Bundle) -> FastAPI:
    return make_app(builtin)


async def post(app: FastAPI, path: str, body: dict[str, Any], status: int = 200) -> Any:
    async with client_of(app) as client:
        response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


@pytest.fixture(scope="module")
def logits(app: FastAPI) -> list[float]:
    body = {"query": QUERY, "documents": DOCUMENTS, "raw_scores": True}
    results = asyncio.run(post(app, "/v1/rerank", body))["results"]
    return [score for _, score in sorted((r["index"], r["relevance_score"]) for r in results)]


def order(logits: list[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: -logits[i])


def sigmoids(logits: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-logits[i])) for i in order(logits)]


OBJECT_DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere ClientV2": ("/v2/rerank", {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3}),
    "cohere ClientV2, every field": (
        "/v2/rerank",
        {
            "model": MODEL,
            "query": QUERY,
            "documents": DOCUMENTS,
            "top_n": 3,
            "max_tokens_per_doc": 4096,
            "priority": 0,
            "relevant_spans": None,
        },
    ),
    "cohere Client": (
        "/v1/rerank",
        {
            "model": MODEL,
            "query": QUERY,
            "documents": [{"text": text} for text in DOCUMENTS],
            "top_n": 3,
            "rank_fields": ["text"],
            "return_documents": False,
            "max_chunks_per_doc": 10,
        },
    ),
    "cohere with a base URL that ends in /v1": (
        "/v1/v2/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3},
    ),
    "litellm hosted_vllm": (
        "/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": True},
    ),
    "litellm jina_ai": (
        "/v1/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": True},
    ),
    "litellm voyage": (
        "/v1/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_k": 3, "return_documents": True},
    ),
    "llama-index jinaai": ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, "top_n": 3}),
    "voyageai": (
        "/v1/rerank",
        {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, "top_k": 3, "truncation": True},
    ),
    "infinity_client": (
        "/rerank",
        {
            "query": QUERY,
            "documents": DOCUMENTS,
            "return_documents": True,
            "raw_scores": False,
            "model": "default/not-specified",
            "top_n": 3,
        },
    ),
    "vllm": (
        "/rerank",
        {
            "query": QUERY,
            "documents": DOCUMENTS,
            "model": MODEL,
            "top_n": 3,
            "user": "me",
            "truncate_prompt_tokens": -1,
            "truncation_side": "right",
            "use_activation": True,
            "priority": 0,
            "request_id": "",
            "max_tokens_per_doc": 0,
        },
    ),
    "dify": (
        "/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": "true"},
    ),
    "ragflow": ("/v1/rerank", {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": "3"}),
    "llama.cpp": ("/v1/reranking", {"model": "", "query": QUERY, "documents": DOCUMENTS, "top_n": 3}),
}


@pytest.mark.parametrize(("path", "body"), OBJECT_DIALECTS.values(), ids=OBJECT_DIALECTS.keys())
async def test_object_dialects_rank_alike(app: FastAPI, logits: list[float], path: str, body: dict[str, Any]) -> None:
    answer = await post(app, path, body)
    assert [result["index"] for result in answer["results"]] == order(logits)[:3]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(sigmoids(logits)[:3], abs=1e-7)
    assert answer["model"] == MODEL
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["search_units"] == answer["meta"]["billed_units"]["search_units"] == 1
    assert answer["meta"]["billed_units"]["documents"] == len(DOCUMENTS)
    assert answer["meta"]["tokens"]["input_tokens"] == answer["usage"]["total_tokens"]
    assert answer["meta"]["api_version"] == {"version": "2" if "v2" in path else "1"}
    assert answer["provider"] == "crossrank"
    assert "cost" not in answer["usage"]


@pytest.mark.parametrize(
    ("path", "body", "document"),
    [
        ("/v1/rerank", {}, None),
        ("/v2/rerank", {}, None),
        ("/v1/rerank", {"return_documents": True}, {"text": "b", "title": "t"}),
        ("/v1/rerank", {"return_documents": "true"}, {"text": "b", "title": "t"}),
        ("/v1/rerank", {"return_text": True}, {"text": "b", "title": "t"}),
        # vLLM answers with the documents unasked.
        ("/rerank", {}, {"text": "b", "title": "t"}),
        ("/rerank", {"return_documents": False}, None),
        # infinity's client expects a plain string, and is known by its raw_scores.
        ("/rerank", {"return_documents": True, "raw_scores": False}, "b"),
    ],
)
async def test_documents_are_returned_in_the_form_that_the_dialect_expects(
    app: FastAPI, path: str, body: dict[str, Any], document: Any
) -> None:
    answer = await post(app, path, {"query": "q", "documents": ["a", {"text": "b", "title": "t"}], **body})
    returned = {result["index"]: result.get("document") for result in answer["results"]}
    assert returned[1] == document
    assert returned[0] == ({"text": "a"} if isinstance(document, dict) else "a" if document else None)


async def test_a_document_ranked_on_other_fields_is_returned_with_them_and_with_a_text(app: FastAPI) -> None:
    documents = [{"title": "berlin", "year": 1999}]
    body = {"query": "q", "documents": documents, "rank_fields": ["title", "year"], "return_documents": True}
    answer = await post(app, "/v1/rerank", body)
    document = answer["results"][0]["document"]
    assert document == {"title": "berlin", "year": 1999, "text": "title: berlin\nyear: 1999"}
    as_text = await post(app, "/v1/rerank", {"query": "q", "documents": [document["text"]]})
    assert answer["results"][0]["relevance_score"] == as_text["results"][0]["relevance_score"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/rerank", {"top_k": 2}, True),
        ("/v1/rerank", {"top_k": None, "truncation": True}, True),
        ("/voyage/v1/rerank", {"model": MODEL, "return_documents": True}, True),
        ("/voyage/v1/rerank/", {}, True),
        # Voyage's client with a base URL that does not end in /v1.
        ("/rerank", {"top_k": None, "truncation": True}, True),
        ("/v1/rerank", {}, False),
        ("/rerank", {}, False),
        ("/v1/rerank", {"model": MODEL, "return_documents": True}, False),
        ("/v1/rerank", {"top_k": None}, False),
        ("/v1/rerank", {"top_n": 2}, False),
        ("/v1/rerank", {"top_n": None}, False),
        ("/v1/rerank", {"max_chunks_per_doc": 10}, False),
        ("/v2/rerank", {"model": MODEL}, False),
        ("/v1/v2/rerank", {"model": MODEL}, False),
    ],
)
async def test_data_repeats_the_results_for_voyages_path_and_fields_only(
    app: FastAPI, path: str, body: dict[str, Any], expected: bool
) -> None:
    answer = await post(app, path, {"query": QUERY, "documents": DOCUMENTS, **body})
    assert answer.get("data") == (answer["results"] if expected else None)
    assert answer["object"] == ("list" if expected else "rerank")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_texts_get_the_bare_sorted_list_of_tei(app: FastAPI, logits: list[float], path: str) -> None:
    tei = await post(app, path, {"query": QUERY, "texts": DOCUMENTS})
    assert [set(rank) for rank in tei] == [{"index", "score"}] * 4
    assert [rank["index"] for rank in tei] == order(logits)
    assert [rank["score"] for rank in tei] == pytest.approx(sigmoids(logits), abs=1e-7)
    litellm = {
        "raw_scores": False,
        "truncation_direction": "Right",
        "query": QUERY,
        "texts": DOCUMENTS,
        "top_n": 2,
        "return_text": True,
    }
    ranks = await post(app, path, litellm)
    assert [rank["text"] for rank in ranks] == [DOCUMENTS[i] for i in order(logits)[:2]]
    raw = await post(app, path, {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "truncate": True})
    assert [rank["score"] for rank in raw] == [logits[i] for i in order(logits)]


async def test_tei_is_told_in_a_header_how_many_texts_were_truncated(app: FastAPI) -> None:
    async with client_of(app) as client:
        body = {"query": "q", "texts": ["a", "word " * 600, "word " * 700]}
        assert (await client.post("/rerank", json=body)).headers["x-truncated-documents"] == "2"
        whole = await client.post("/rerank", json={"query": "q", "texts": ["a"]})
        assert "x-truncated-documents" not in whole.headers


@pytest.mark.parametrize("body", [{"model": MODEL}, {"model": MODEL, "truncate": "END"}, {"truncate": "NONE"}, {}])
async def test_passages_get_the_rankings_and_logits_of_nim(
    app: FastAPI, logits: list[float], body: dict[str, Any]
) -> None:
    request = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS], **body}
    for path in ("/v1/ranking", f"/v1/retrieval/{MODEL}/reranking"):
        answer = await post(app, path, request)
        assert answer["rankings"] == [{"index": i, "logit": logits[i]} for i in order(logits)]
        assert answer["usage"]["total_tokens"] > 0


async def test_the_model_in_the_path_of_nim_counts_unless_the_body_names_one(app: FastAPI) -> None:
    request = {"query": {"text": "q"}, "passages": [{"text": "a"}]}
    await post(app, "/v1/retrieval/nvidia/nv-rerankqa/reranking", request, status=404)
    await post(app, "/v1/retrieval/nvidia/nv-rerankqa/reranking", {**request, "model": MODEL})


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_pairs_are_scored_in_their_order(
    app: FastAPI, logits: list[float], path: str, names: tuple[str, str]
) -> None:
    first, second = names
    expected = [1 / (1 + math.exp(-logit)) for logit in logits]
    for queries in (QUERY, [QUERY], [QUERY] * 4):
        answer = await post(app, path, {"model": MODEL, first: queries, second: DOCUMENTS})
        assert answer["object"] == "list"
        assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
        assert {entry["object"] for entry in answer["data"]} == {"score"}
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-7)
    raw = await post(app, path, {first: QUERY, second: DOCUMENTS, "use_activation": False})
    assert [entry["score"] for entry in raw["data"]] == logits


async def test_pairs_of_different_queries_have_the_scores_of_each_alone(app: FastAPI) -> None:
    queries = [QUERY, QUERY, "what is a flea", QUERY]
    together = await post(app, "/v1/score", {"text_1": queries, "text_2": DOCUMENTS})
    for i, (query, document) in enumerate(zip(queries, DOCUMENTS, strict=True)):
        alone = await post(app, "/v1/score", {"text_1": query, "text_2": document})
        assert together["data"][i]["score"] == pytest.approx(alone["data"][0]["score"], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    query=st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())),
    documents=st.lists(st.text(max_size=120), min_size=1, max_size=6),
)
async def test_scores_are_the_same_in_every_dialect(app: FastAPI, query: str, documents: list[str]) -> None:
    plain = {"query": query, "documents": documents}
    v1, v2, own = [(await post(app, path, plain))["results"] for path in ("/v1/rerank", "/v2/rerank", "/rerank")]
    expected = [(result["index"], result["relevance_score"]) for result in v1]
    assert [(result["index"], result["relevance_score"]) for result in v2] == expected
    assert [(result["index"], result["relevance_score"]) for result in own] == expected
    tei = await post(app, "/rerank", {"query": query, "texts": documents})
    assert [(rank["index"], rank["score"]) for rank in tei] == expected
    pairs = (await post(app, "/v1/score", {"text_1": query, "text_2": documents}))["data"]
    assert [(index, pairs[index]["score"]) for index, _ in expected] == expected
    passages = {"query": {"text": query}, "passages": [{"text": text} for text in documents]}
    rankings = (await post(app, "/v1/ranking", passages))["rankings"]
    assert [(rank["index"], sigmoid(rank["logit"])) for rank in rankings] == expected


async def test_documents_stay_in_the_order_of_their_logits_where_sigmoids_are_equal(builtin: Bundle) -> None:
    logits = [40.0, 41.0, 39.0, 41.0]
    answer = await post(make_app(builtin, FixedEngine(logits)), "/v1/rerank", {"query": "q", "documents": ["a"] * 4})
    assert [result["index"] for result in answer["results"]] == [1, 3, 0, 2]
    assert {result["relevance_score"] for result in answer["results"]} == {1.0}
    near = await post(
        make_app(builtin, FixedEngine([20.0, 21.0])), "/v1/rerank", {"query": "q", "documents": ["a"] * 2}
    )
    scores = [result["relevance_score"] for result in near["results"]]
    # In float32 both would be 1.
    assert 1 > scores[0] > scores[1]


async def test_long_documents_are_scored_by_chunks_and_billed_by_them(app: FastAPI) -> None:
    filler = "the flea is a small insect that lives on other animals . " * 45
    documents = [filler + DOCUMENTS[2], DOCUMENTS[1]]
    body = {"query": QUERY, "documents": documents}
    plain = await post(app, "/v1/rerank", body)
    assert plain["meta"]["billed_units"] == {"search_units": 1, "documents": 2}
    assert plain["meta"]["truncated_documents"] == [0]
    chunked = await post(app, "/v1/rerank", {**body, "max_chunks_per_doc": 10})
    assert chunked["meta"]["billed_units"] == {"search_units": 1, "documents": 3}
    assert chunked["meta"]["truncated_documents"] == []
    assert chunked["usage"]["total_tokens"] > plain["usage"]["total_tokens"]
    scores = [{r["index"]: r["relevance_score"] for r in answer["results"]} for answer in (plain, chunked)]
    assert scores[1][0] > 2 * scores[0][0]
    assert scores[1][1] == pytest.approx(scores[0][1], abs=1e-6)


async def test_more_than_a_hundred_billed_documents_are_two_search_units(app: FastAPI) -> None:
    answer = await post(app, "/v2/rerank", {"query": "q", "documents": ["word " * 600] * 60, "max_chunks_per_doc": 2})
    assert answer["meta"]["billed_units"] == {"search_units": 2, "documents": 120}


async def test_chunks_are_limited_over_all_documents(builtin: Bundle) -> None:
    app = make_app(builtin, max_documents=2)
    body = {"query": "q", "documents": ["word " * 508 * 15] * 2, "max_chunks_per_doc": 100}
    answer = await post(app, "/v1/rerank", body, status=400)
    assert answer["error"]["code"] == "too_many_chunks"
    assert "make 30 chunks, the limit is 20" in answer["message"]


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "TEI": ("/rerank", {"query": "q", "texts": ["a", "word " * 600], "truncate": False}, "texts[1]"),
    "NIM": (
        "/v1/ranking",
        {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "word " * 600}], "truncate": "NONE"},
        "passages[1]",
    ),
    "Voyage": ("/v1/rerank", {"query": "q", "documents": ["a", "word " * 600], "truncation": False}, "documents[1]"),
    "score": ("/v1/score", {"text_1": ["q", "r"], "text_2": ["a", "word " * 600], "truncate": False}, "text_2[1]"),
}


@pytest.mark.parametrize(("path", "body", "param"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_without_truncation_the_error_names_the_document_as_the_caller_does(
    app: FastAPI, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await post(app, path, body, status=400)
    assert answer["error"]["param"] == param
    assert answer["error"]["code"] == "too_many_tokens"
    assert answer["message"].startswith(f"{param} has 600 tokens; query and document may have 509 tokens together")


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_the_left_side_gives_way_where_asked(app: FastAPI, path: str) -> None:
    document = "the flea is a small insect . " * 90 + DOCUMENTS[2]
    for options in ({"truncation_direction": "Left"}, {"truncation_side": "left"}, {"truncate": "START"}):
        left = await post(app, path, {"query": QUERY, "documents": [document], **options})
        right = await post(app, path, {"query": QUERY, "documents": [document]})
        assert left["results"][0]["relevance_score"] > 1.5 * right["results"][0]["relevance_score"]
        assert left["meta"]["truncated_documents"] == right["meta"]["truncated_documents"] == [0]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_the_side_of_the_model_s_tokenizer_gives_way_where_no_other_is_asked(
    builtin: Bundle, app: FastAPI, path: str
) -> None:
    left = make_app(Bundle(builtin.path, builtin.manifest.model_copy(update={"truncation_side": "left"})))
    body = {"query": QUERY, "documents": ["the flea is a small insect . " * 90 + DOCUMENTS[2]]}
    kept_end = await post(app, path, {**body, "truncation_direction": "left"})
    for options in ({}, {"truncate": True}, {"truncate": None}):
        assert (await post(left, path, {**body, **options}))["results"] == kept_end["results"]
    kept_start = await post(app, path, body)
    for options in ({"truncation_direction": "right"}, {"truncation_side": "right"}, {"truncate": "END"}):
        assert (await post(left, path, {**body, **options}))["results"] == kept_start["results"]


async def test_every_error_has_the_one_body_that_all_clients_read(app: FastAPI) -> None:
    for path, field in (("/rerank", "texts"), ("/v1/rerank", "documents"), ("/v1/ranking", "passages")):
        answer = await post(app, path, {"query": "q", field: []}, status=400)
        assert set(answer) == {"error", "error_type", "message", "detail"}
        assert answer["error"]["message"] == answer["message"] == answer["detail"]
        assert answer["error_type"] == "Validation"
        assert answer["error"]["param"] == field


async def test_a_name_that_is_not_served_gets_the_default_model_where_names_are_not_strict(builtin: Bundle) -> None:
    body = {"query": "q", "documents": ["a"], "model": "jina-reranker-v1-base-en"}
    answer = await post(make_app(builtin, strict_names=False), "/v1/rerank", body)
    assert answer["model"] == MODEL
    refused = await post(make_app(builtin), "/v1/rerank", body, status=404)
    assert refused["error"]["code"] == "model_not_found"


class FixedEngine:
    """Gives each pair of the one request the logit at its place, before the batcher orders the pairs by length."""

    name = "fixed"
    precision = "fp32"
    concurrency = 1
    batch_tokens = 4096
    call_tokens = 0
    row_step = 4
    pads = True

    def __init__(self, logits: list[float]) -> None:
        self.logits = logits

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        return np.array(self.logits, np.float32)

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def ready(self) -> bool:
        return True

    async def close(self) -> None: ...


class MeteredAccounts:
    """Everybody is one account, whose documents cost 0.008 USD a thousand."""

    def __init__(self) -> None:
        self.charges: list[Charge] = []

    async def identify(self, token: str | None) -> Account | None:
        return Account("k1", "test", frozenset({"rerank"}))

    @contextlib.asynccontextmanager
    async def admit(
        self, account: Account | None, *, model: str, tier: str, documents: int, headers: MutableMapping[str, str]
    ) -> AsyncIterator[Charge]:
        charge = Charge(documents)
        yield charge
        charge.cost_usd = charge.documents * 0.008 / 1000
        self.charges.append(charge)

    async def close(self) -> None: ...


async def test_usage_has_the_cost_where_it_is_metered_and_chunks_are_charged(builtin: Bundle) -> None:
    accounts = MeteredAccounts()
    body = {"query": "q", "documents": ["a", "word " * 600], "max_chunks_per_doc": 2}
    answer = await post(make_app(builtin, accounts=accounts), "/v1/rerank", body)
    assert [charge.documents for charge in accounts.charges] == [3]
    assert answer["usage"]["cost"] == pytest.approx(3 * 0.008 / 1000)
    assert accounts.charges[0].tokens == answer["usage"]["total_tokens"]
