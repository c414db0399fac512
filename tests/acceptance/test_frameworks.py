"""LangChain, LlamaIndex, Haystack and PyTerrier, as their packages are, rank with crossrank in their own process.

Every score and order is compared with the model's graph run one pair at a time (tests/acceptance/scores.py).
"""

from __future__ import annotations

import pytest

from tests.acceptance.examples import AUTO, EXAMPLES, OF_FRAMEWORKS, constants, scored_lines
from tests.acceptance.scores import ndcg, reciprocal_rank
from tests.clients.environment import Refused
from tests.clients.ways import DOCUMENTS, QUERY

# Haystack's store and PyTerrier's frames hold each document once.
_TEXTS = list(dict.fromkeys(DOCUMENTS))


def assert_ranked(hits, ranked):
    """Compare [index, score] of each kept text with the expected ranking's first."""
    assert [index for index, _ in hits] == [index for index, _ in ranked]
    assert [score for _, score in hits] == pytest.approx([score for _, score in ranked], abs=1e-4)


@pytest.mark.parametrize("example", OF_FRAMEWORKS)
def test_example_prints_the_best_texts(example, frameworks, expected):
    given = constants(example)
    printed = frameworks.ask("run_example", path=str(EXAMPLES / f"{example}.py"))
    best = expected.rank(given["query"], given["texts"])[: OF_FRAMEWORKS[example]]
    if example == "langchain_rerank":  # its reranker keeps no scores
        assert printed.splitlines() == [given["texts"][index] for index, _ in best]
        return
    scores, texts = scored_lines(printed)
    assert texts == [given["texts"][index] for index, _ in best]
    assert scores == pytest.approx([score for _, score in best], abs=AUTO)


@pytest.mark.parametrize("call", ["langchain", "langchain_async"])
@pytest.mark.parametrize("top_n", [3, 100])
def test_langchain_keeps_the_best_documents(call, top_n, frameworks, expected):
    ranked = frameworks.ask(call, query=QUERY, texts=DOCUMENTS, top_n=top_n)
    assert ranked == [index for index, _ in expected.rank(QUERY, DOCUMENTS)][:top_n]


def test_langchain_gets_a_plain_float_for_each_pair(frameworks, expected):
    scores = frameworks.ask("langchain_scores", pairs=[[QUERY, text] for text in DOCUMENTS])
    assert scores == pytest.approx([expected.score(QUERY, text) for text in DOCUMENTS], abs=1e-4)
    assert frameworks.ask("langchain_scores", pairs=[]) == []


def test_langchain_may_find_nothing(frameworks):
    assert frameworks.ask("langchain", query=QUERY, texts=[], top_n=3) == []


@pytest.mark.parametrize("call", ["llama_index", "llama_index_async"])
@pytest.mark.parametrize("top_n", [3, 100])
def test_llama_index_keeps_the_best_nodes_with_their_scores(call, top_n, frameworks, expected):
    hits = frameworks.ask(call, query=QUERY, texts=DOCUMENTS, top_n=top_n)
    assert_ranked(hits, expected.rank(QUERY, DOCUMENTS)[:top_n])


@pytest.mark.parametrize("call", ["llama_index", "llama_index_async"])
def test_llama_index_may_find_nothing(call, frameworks):
    assert frameworks.ask(call, query=QUERY, texts=[], top_n=3) == []


def test_llama_index_has_a_nodes_metadata_scored_with_its_text(frameworks, expected):
    score, text = frameworks.ask("llama_index_with_title", query=QUERY, title="Inhabitants", text=DOCUMENTS[2])
    assert "Inhabitants" in text
    assert score == pytest.approx(expected.score(QUERY, text), abs=1e-4)
    assert score != pytest.approx(expected.score(QUERY, DOCUMENTS[2]), abs=1e-4)


def test_llama_index_is_told_when_reranking_begins_and_ends(frameworks):
    events = frameworks.ask("llama_index_events", query=QUERY, texts=DOCUMENTS)
    assert [name for name in events if "ReRank" in name] == ["ReRankStartEvent", "ReRankEndEvent"]


def test_llama_index_without_a_query_is_refused(frameworks):
    with pytest.raises(Refused, match="no query to rank the nodes by; pass query_bundle or query_str"):
        frameworks.ask("llama_index_without_query", texts=DOCUMENTS)


@pytest.mark.parametrize("call", ["haystack", "haystack_async", "haystack_saved_and_loaded"])
@pytest.mark.parametrize("top_k", [2, 100])
def test_haystack_keeps_the_best_documents_with_their_scores(call, top_k, frameworks, expected):
    hits = frameworks.ask(call, query=QUERY, texts=_TEXTS, top_k=top_k)
    assert_ranked(hits, expected.rank(QUERY, _TEXTS)[:top_k])


def test_haystack_leaves_the_documents_given_as_they_were(frameworks, expected):
    hits, untouched = frameworks.ask("haystack_run", query=QUERY, texts=_TEXTS, top_k=1)
    assert_ranked(hits, expected.rank(QUERY, _TEXTS)[:1])
    assert untouched


def test_haystack_may_find_nothing(frameworks):
    assert frameworks.ask("haystack_run", query=QUERY, texts=[]) == [[], True]


def test_haystack_scores_a_document_without_text_as_an_empty_one(frameworks, expected):
    hits, _ = frameworks.ask("haystack_run", query=QUERY, texts=[None, _TEXTS[1]])
    assert_ranked(hits, expected.rank(QUERY, ["", _TEXTS[1]]))


def test_haystack_refuses_to_keep_no_document(frameworks):
    with pytest.raises(Refused, match="top_k is 0; it must be 1 or more"):
        frameworks.ask("haystack_run", query=QUERY, texts=_TEXTS, top_k=0)


def test_pyterrier_ranks_each_topic_and_measures_the_ranking(frameworks, expected):
    topics = {"people": QUERY, "museum": "museums in berlin", "road": "the longest motorway"}
    relevant = {"people": ["2", "4"], "museum": ["0"], "road": ["2"]}  # the last judgement is wrong on purpose
    answer = frameworks.ask("pyterrier", topics=topics, texts=_TEXTS, qrels=relevant)
    gains, firsts = [], []
    for qid, query in topics.items():
        ranked = expected.rank(query, _TEXTS)
        assert_ranked(answer["ranked"][qid], ranked)
        is_relevant = [str(index) in relevant[qid] for index, _ in ranked]
        gains.append(ndcg(is_relevant, 10))
        firsts.append(reciprocal_rank(is_relevant, 10))
    assert 0 < min(firsts) < 1  # else any ranking would do
    assert answer["measured"] == pytest.approx([sum(gains) / 3, sum(firsts) / 3], abs=1e-6)
    assert answer["rows of nothing"] == 0
