"""Clients find the models that are served, and what else they ask a server about."""

from __future__ import annotations

import pytest

from tests.clients.environment import Refused
from tests.clients.ways import DOCUMENTS, MODEL, QUERY


def test_openai_lists_the_models(program, server):
    (model,) = program("clients", "openai_sdk").ask("models", base_url=server.base_url, key="any")
    assert (model["id"], model["object"], model["owned_by"]) == (MODEL, "model", "crossrank")
    assert model["created"] > 1_700_000_000


def test_openai_retrieves_a_model(program, server):
    openai = program("clients", "openai_sdk")
    listed = openai.ask("models", base_url=server.base_url, key="any")
    assert openai.ask("model", base_url=server.base_url, key="any", name=MODEL) == listed[0]


def test_openai_is_told_which_models_there_are(program, server):
    with pytest.raises(Refused, match=f"served: {MODEL}") as raised:
        program("clients", "openai_sdk").ask("model", base_url=server.base_url, key="any", name="owner/nowhere")
    assert raised.value.classes[0] == "openai.NotFoundError"


def test_langchains_nvidia_client_finds_the_models(program, server):
    nvidia = program("clients", "langchain_nvidia_compressor")
    assert nvidia.ask("default_model", base_url=server.base_url, key="any") == MODEL
    assert nvidia.ask("available_models", base_url=server.base_url, key="any", model=MODEL) == [MODEL]


def test_infinitys_client_finds_the_models_and_the_server_healthy(program, server):
    infinity = program("clients-older", "infinity_sdk")
    assert infinity.ask("models", base_url=server.base_url, key="any") == [MODEL]
    assert infinity.ask("health", base_url=server.base_url, key="any") == 200


def test_infinitys_client_gets_the_default_model_where_it_names_none(program, server, reference):
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": None}
    hits = program("clients-older", "infinity_sdk").ask("rerank", base_url=server.base_url, key="any", **asked)
    assert [index for index, _, _ in hits] == reference.order


@pytest.mark.parametrize("environment", ["clients", "clients-older"])
def test_cohere_reads_the_answers_id_and_meta(program, server, environment):
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL}
    meta = program(environment, "cohere_sdk").ask("meta", base_url=server.base_url, key="any", **asked)
    assert meta["id"]
    assert meta["api_version"] == "2"
    assert meta["search_units"] == 1


@pytest.mark.parametrize("environment", ["clients", "clients-older"])
def test_cohere_ranks_the_fields_that_it_names(program, server, environment):
    documents = [{"title": "Berlin", "body": text, "url": "/museums"} for text in DOCUMENTS]
    asked = {"query": QUERY, "documents": documents, "model": MODEL, "fields": ["body"]}
    hits = program(environment, "cohere_sdk").ask("v1_fields", base_url=server.base_url, key="any", **asked)
    plain = program(environment, "cohere_sdk").ask(
        "v1", base_url=server.base_url, key="any", query=QUERY, documents=DOCUMENTS, model=MODEL
    )
    assert [hit[:2] for hit in hits] == [pytest.approx(hit[:2], rel=1e-6) for hit in plain]


def test_voyage_reads_the_tokens_used(program, server, reference):
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL}
    tokens = program("clients", "voyage_sdk").ask("total_tokens", base_url=server.base_url, key="any", **asked)
    assert tokens == reference.total_tokens
