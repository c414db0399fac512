"""Other vendors' clients, unmodified, get the answers that the server gives on /v1/rerank."""

from __future__ import annotations

import math

import pytest

from tests.clients.ways import DOCUMENTS, MODEL, QUERY, WAYS

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name.replace(" ", "-"))


@pytest.fixture
def ask(way, program, server):
    """Rerank the documents by a way."""

    def rerank(base_url=server.base_url, **arguments):
        arguments = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **way.options, **arguments}
        return program(way.environment, way.program).ask(way.call, base_url=base_url + way.base, key="any", **arguments)

    return rerank


def test_what_the_clients_are_compared_with_is_right(reference):
    # By reading: the population first, then the document that says the same at length; the motorway last.
    assert reference.order == [2, 5, 4, 0, 3, 1]
    assert reference.logits == sorted(reference.logits, reverse=True)
    assert reference.scores == pytest.approx([1 / (1 + math.exp(-logit)) for logit in reference.logits], rel=1e-9)


@every_way
def test_order_scores_and_documents_are_those_of_the_server(way, ask, reference):
    hits = ask()
    assert [index for index, _, _ in hits] == reference.order
    expected = reference.logits if way.logits else reference.scores
    assert [score for _, score, _ in hits] == pytest.approx(expected, rel=1e-6)
    texts = [DOCUMENTS[index] if way.documents else None for index in reference.order]
    assert [text for _, _, text in hits] == texts


@every_way
def test_top_n_gives_the_best_ones_only(ask, reference):
    assert [index for index, _, _ in ask(top_n=2)] == reference.order[:2]


@every_way
def test_more_than_there_are_gives_all(ask, reference):
    assert [index for index, _, _ in ask(top_n=len(DOCUMENTS) + 1)] == reference.order


@every_way
def test_the_route_is_the_documented_one(way, ask, wire, reference):
    hits = ask(base_url=wire.base_url)
    assert [index for index, _, _ in hits] == reference.order
    assert [r.path for r in wire.requests if r.method == "POST"] == [way.route]
