"""`crossrank eval`: re-rank candidates and say how good the ranking is."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.engines.names import PRECISIONS
from crossrank.errors import SetupError
from crossrank_server.commands.options import options_from_settings, settings_from_options
from crossrank_server.settings import ServeSettings

if TYPE_CHECKING:
    from crossrank_perf.eval.evaluation import Evaluation, Inputs
    from crossrank_perf.eval.scoring import Advance, Reranked, Scorer

_FORWARDED = {"engine", "label", "threads", "offline", "cache_dir"}
_SUITES = ("trec-dl-2019", "trec-dl-2020")
_FILE = click.Path(path_type=Path)


@click.command("eval")
@click.option("--candidates", type=_FILE, help="JSONL (or .jsonl.gz), a query a line; see below.")
@click.option("--run", type=_FILE, help="TREC run of the first stage; needs --collection and --queries.")
@click.option("--collection", type=_FILE, help="Lines DOCID<tab>TEXT (or .gz), for --run.")
@click.option("--queries", type=_FILE, help="Lines QID<tab>QUERY (or .gz), for --run.")
@click.option("--suite", type=click.Choice(_SUITES), help="Official candidates and judgments, through ir_datasets.")
@click.option("--qrels", type=_FILE, help="TREC judgments. Without them the run is written and nothing measured.")
@click.option("--depth", type=click.IntRange(min=1), help="Re-rank only the first N candidates of each query.")
@click.option("--model", "-m", help="As for crossrank serve; with --url the name the server knows.  [default: builtin]")
@click.option("--url", help="Let the server at this address score, instead of this process.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help=f"One of {', '.join(PRECISIONS)}, or several with commas: they are set beside each other.",
)
@click.option("--compare", type=_FILE, help="TREC run to compare with, query by query.")
@click.option("--relevant-grade", type=click.IntRange(min=1), help="Least grade that MRR, MAP and recall count.")
@click.option("--out", type=_FILE, default=Path("crossrank-eval"), show_default=True, help="Where the files go.")
@click.option("--plot", type=click.Choice(["png", "svg", "none"]), default="png", show_default=True, help="Its format.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
@options_from_settings(ServeSettings, only=_FORWARDED)
def evaluate(
    candidates: Path | None,
    run: Path | None,
    collection: Path | None,
    queries: Path | None,
    suite: str | None,
    qrels: Path | None,
    depth: int | None,
    model: str | None,
    url: str | None,
    precision: str,
    compare: Path | None,
    relevant_grade: int | None,
    out: Path,
    plot: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Re-rank candidates with a model and measure the ranking.

    \b
    Examples:
      crossrank eval --candidates dl19.jsonl.gz --qrels dl19-qrels.txt
      crossrank eval --candidates dl19.jsonl.gz --qrels dl19-qrels.txt --model ./bundle --precision fp32,fp16,int8
      crossrank eval --candidates dl19.jsonl.gz --qrels dl19-qrels.txt --url http://127.0.0.1:8000 --compare old.run
      crossrank eval --run bm25.run --collection collection.tsv --queries queries.tsv --qrels qrels.txt --depth 100
      crossrank eval --suite trec-dl-2019 --model cross-encoder/ms-marco-MiniLM-L6-v2

    \b
    A line of --candidates, best candidate first (or with "rank" or "bm25_rank" in each):
      {"qid": "1", "query": "what is bm25", "candidates": [{"docid": "D7", "text": "a ranking function"}, ...]}

    NDCG@10 is trec_eval's ndcg_cut_10. MRR@10, MAP and R@100 count grades of at least 2 as relevant where the grades
    go beyond 1 (as TREC DL does), else 1; unjudged documents count as not relevant, judged queries without candidates
    are left out. The tests are a paired t-test and a paired randomisation test over the queries. Published figures come
    from the model's card, whose candidates are others: do not compare across protocols.

    --out gets a TREC run for each system, report.json, and the plot of the differences by query. Equal scores keep
    the first stage's order; the run's scores are lowered by the least float32 step where they would be equal, so that
    no tool's own way of breaking ties can reorder it.
    """  # noqa: D301 - click needs the control character itself
    _check_installed()
    from crossrank_perf.eval.evaluation import check_inputs, evaluate_rankings

    settings = settings_from_options(ServeSettings, options)
    scorer_arguments = _scorer_arguments(model, url, precision, options)
    inputs = _load_inputs(candidates, run, collection, queries, suite, qrels, depth)
    inputs = replace(inputs, relevant_grade=relevant_grade)
    if compare is not None:
        from crossrank_perf.eval.trec import read_run

        inputs = replace(inputs, other_name=compare.name, other=read_run(compare))
    check_inputs(inputs)
    _make_directory(out)
    systems = asyncio.run(_rerank_all(scorer_arguments, settings, inputs))
    evaluation = evaluate_rankings(inputs, systems)
    written = _write_files(evaluation, systems, out, plot)
    _print(evaluation, written, as_json)


def _check_installed() -> None:
    for package in ("ir_measures", "matplotlib", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise SetupError(f"crossrank eval needs {package}, which is not installed: pip install 'crossrank[perf]'")


def _scorer_arguments(
    model: str | None, url: str | None, precision: str, options: dict[str, Any]
) -> list[tuple[str | None, str | None, str]]:
    """Return (model, url, precision) of each system, or raise SetupError where the options contradict each other."""
    precisions = [word.strip() for word in precision.split(",")]
    for word in precisions:
        if word not in PRECISIONS:
            raise SetupError(f"--precision {word!r} is not one of {', '.join(PRECISIONS)}")
    if len(set(precisions)) < len(precisions):
        raise SetupError(f"--precision {precision} names one twice; give each once")
    if url is None:
        return [(model or "builtin", None, word) for word in precisions]
    given = [name for name in ("engine", "threads") if options.get(name) is not None]
    given += ["precision"] if precision != "auto" else []
    if given:
        raise SetupError(f"--{given[0]} has no meaning with --url: the server has its own; start it with --{given[0]}")
    return [(model, url, "")]


def _load_inputs(
    candidates: Path | None,
    run: Path | None,
    collection: Path | None,
    queries: Path | None,
    suite: str | None,
    qrels: Path | None,
    depth: int | None,
) -> Inputs:
    from crossrank_perf.base.topics import read_candidates
    from crossrank_perf.eval.candidates import load_suite, read_run_candidates
    from crossrank_perf.eval.evaluation import Inputs
    from crossrank_perf.eval.trec import read_qrels

    if sum(source is not None for source in (candidates, run, suite)) != 1:
        raise SetupError("give exactly one of --candidates, --run (with --collection and --queries) and --suite")
    if run is None and (collection or queries):
        raise SetupError("--collection and --queries belong to --run; --candidates holds its texts itself")
    if suite is not None:
        if qrels or depth:
            raise SetupError("--suite brings its own judgments and unordered candidates: leave out --qrels and --depth")
        topics, judged = load_suite(suite)
        return Inputs(suite, topics, is_ranked=False, qrels=judged)
    judgments = None if qrels is None else read_qrels(qrels)
    if run is not None:
        if collection is None or queries is None:
            raise SetupError("--run holds no texts: give --collection and --queries too")
        source, topics = run.name, read_run_candidates(run, collection, queries)
    elif candidates is not None:
        source, topics = candidates.name, read_candidates(candidates)
    return Inputs(source, [topic.first(depth) for topic in topics], qrels=judgments)


async def _rerank_all(
    arguments: list[tuple[str | None, str | None, str]], settings: ServeSettings, inputs: Inputs
) -> list[Reranked]:
    """Score the candidates with each system in turn, after all are loaded: a missing precision is found early."""
    from crossrank import CrossEncoder
    from crossrank_perf.eval.scoring import InProcessScorer, ServerScorer, rerank_topics

    scorers: list[Scorer] = []
    try:
        for model, url, precision in arguments:
            if url is not None:
                scorers.append(ServerScorer(url, model))
                continue
            encoder = CrossEncoder(
                model or "builtin",
                engine=settings.engine,
                precision=precision,
                threads=settings.threads or None,
                label=settings.label,
                local_files_only=settings.offline,
                cache_folder=settings.cache_dir,
            )
            scorers.append(InProcessScorer(encoder))
        names = [scorer.precision for scorer in scorers]
        if len(set(names)) < len(names):
            raise SetupError(f"--precision auto is {names[0]} here; name each precision once")
        documents = sum(len(topic.docids) for topic in inputs.topics)
        with _progress(len(scorers) * documents) as advance:
            return [await rerank_topics(scorer, inputs.topics, advance) for scorer in scorers]
    finally:
        for scorer in scorers:
            await scorer.close()


@contextmanager
def _progress(documents: int) -> Iterator[Advance]:
    """Show the number of scored pairs on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("pairs"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=documents)
        yield lambda scored: progress.advance(task, scored)


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"--out {out} cannot be made a directory: {error.strerror}; name another") from None


def _write_files(evaluation: Evaluation, systems: list[Reranked], out: Path, plot: str) -> list[Path]:
    from crossrank_perf.eval.report import evaluation_as_json, plot_deltas
    from crossrank_perf.eval.trec import write_run

    written = []
    try:
        for system in systems:
            tag = re.sub(r"[^\w.-]+", "-", system.name).strip("-")
            written.append(out / f"{tag}.run")
            write_run(written[-1], system.run, tag)
        written.append(out / "report.json")
        written[-1].write_text(json.dumps(evaluation_as_json(evaluation), indent=1, allow_nan=False) + "\n")
        if evaluation.comparisons and plot != "none":
            written.append(out / f"ndcg_deltas.{plot}")
            plot_deltas(evaluation.comparisons, written[-1])
    except OSError as error:
        raise SetupError(f"{written[-1]} cannot be written: {error.strerror}; name another place with --out") from None
    return written


def _print(evaluation: Evaluation, written: list[Path], as_json: bool) -> None:
    from rich.console import Console

    from crossrank_perf.eval.report import evaluation_as_json, print_evaluation

    if as_json:
        click.echo(json.dumps(evaluation_as_json(evaluation), indent=1, allow_nan=False))
    else:
        print_evaluation(evaluation, Console())
    click.echo("wrote " + ", ".join(str(path) for path in written), err=True)
