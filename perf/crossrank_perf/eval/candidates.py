"""Read first-stage candidates from a TREC run with its texts, or from a suite of ir_datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.base.lines import read_lines
from crossrank_perf.base.topics import Topic
from crossrank_perf.eval.trec import Qrels, read_run

# Names of --suite, and the data set of ir_datasets whose official candidates each re-ranks: the organisers' BM25
# top-1000, in no order and without scores.
# Source: https://ir-datasets.com/msmarco-passage.html
SUITES = {
    "trec-dl-2019": "msmarco-passage/trec-dl-2019/judged",
    "trec-dl-2020": "msmarco-passage/trec-dl-2020/judged",
}


def read_run_candidates(run: Path, collection: Path, queries: Path) -> list[Topic]:
    """Read topics from a TREC run and the texts of its ids.

    Only the texts that the run names are kept in memory.

    Args:
        run: TREC run of the first stage.
        collection: Lines `DOCID<tab>TEXT`.
        queries: Lines `QID<tab>QUERY`.

    Raises:
        SetupError: A file cannot be read, or a query or document of the run is not in its file.
    """
    ranked = read_run(run)
    texts = _read_tsv(queries, "queries file", set(ranked))
    _check_all_found(ranked, texts, f"query ids of {run} are not in {queries}")
    wanted = {docid for documents in ranked.values() for docid in documents}
    passages = _read_tsv(collection, "collection", wanted)
    _check_all_found(sorted(wanted), passages, f"document ids of {run} are not in {collection}")
    return [
        Topic(qid, texts[qid], tuple(documents), tuple(passages[docid] for docid in documents))
        for qid, documents in ranked.items()
    ]


def load_suite(name: str) -> tuple[list[Topic], Qrels]:
    """Fetch a suite's official candidates and judgments through ir_datasets, which caches them.

    The candidates are in no order of rank; see `SUITES`.

    Raises:
        SetupError: ir_datasets is not installed, or the data cannot be fetched.
    """
    try:
        import ir_datasets
    except ImportError:
        raise SetupError(
            f"--suite {name} needs ir_datasets, which is not installed: pip install 'crossrank[suites]', "
            "or give the same data with --candidates and --qrels"
        ) from None
    try:
        dataset = ir_datasets.load(SUITES[name])
        return suite_topics(dataset), _suite_qrels(dataset)
    except Exception as error:  # ir_datasets raises whatever its downloads, parsers and disk raise
        lines = str(error).strip().splitlines() or [""]
        raise SetupError(
            f"--suite {name}: ir_datasets could not provide {SUITES[name]} ({type(error).__name__}: {lines[0][:200]}); "
            "it needs the network and several GB of disk the first time; --candidates FILE needs neither"
        ) from error


def suite_topics(dataset: Any) -> list[Topic]:
    """Return the topics of a data set of ir_datasets that has queries, docs and scoreddocs."""
    listed: dict[str, list[str]] = {}
    for row in dataset.scoreddocs_iter():
        listed.setdefault(row.query_id, []).append(row.doc_id)
    store = dataset.docs_store()
    topics = []
    for query in dataset.queries_iter():
        if docids := listed.get(query.query_id):
            found = store.get_many(docids)
            texts = tuple(str(found[docid].text) for docid in docids)
            topics.append(Topic(query.query_id, query.text, tuple(docids), texts))
    return topics


def _suite_qrels(dataset: Any) -> Qrels:
    qrels: dict[str, dict[str, int]] = {}
    for row in dataset.qrels_iter():
        qrels.setdefault(row.query_id, {})[row.doc_id] = row.relevance
    return qrels


def _read_tsv(path: Path, what: str, wanted: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for line in read_lines(path, what):
        name, tab, text = line.text.partition("\t")
        if not tab:
            raise line.fail(f"{line.shown()} has no tab; expected ID<tab>TEXT")
        if name in wanted:
            texts[name] = text
    return texts


def _check_all_found(wanted: Iterable[str], found: Mapping[str, str], problem: str) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SetupError(f"{len(missing)} {problem} ({shown}): give the files that the run was made from")
