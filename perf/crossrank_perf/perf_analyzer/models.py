"""Sweep the two models of a Triton repository: the engine model, bucket by bucket, and the text model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Bundle
from crossrank.engines.cpu import available_cores
from crossrank.engines.names import EMBEDDED_ENGINES, PRECISIONS
from crossrank.engines.select import make_engine
from crossrank.errors import SetupError
from crossrank.packed import PairBatch
from crossrank.text.encoding import PairEncoder
from crossrank_perf.base.workload import Workload
from crossrank_perf.engines.bare import BareEngine
from crossrank_perf.engines.batches import encode_workload, pairs_by_bucket
from crossrank_perf.perf_analyzer.input import write_texts, write_token_rows
from crossrank_perf.perf_analyzer.run import Inference
from crossrank_perf.perf_analyzer.sweep import Sweep
from crossrank_perf.perf_analyzer.triton import TritonFacts

# Tokens of the request with which `crossrank repository` warms each bucket up.
_REQUEST_TOKENS = 4096


def measure_models(
    sweep: Sweep,
    bundle: Bundle,
    workload: Workload,
    *,
    only: str | None,
    buckets: Sequence[int],
    rows: int | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a series for each bucket of the engine model, and one for the text model.

    Args:
        sweep: Sweep of the Triton that serves both models.
        bundle: Bundle that both models were written from.
        workload: Requests; the text model gets them as they are.
        only: `engine` or `text` measures that model alone.
        buckets: Buckets to measure, in tokens; if empty, those with at least a twentieth of the pairs.
        rows: Pairs in each request to the engine model; defaults to as many as make 4,096 tokens.
        seed: Seed of the order of pairs.

    Raises:
        SetupError: An option does not fit the models, or a run failed.
    """
    triton = sweep.triton
    if only != "text" and (rows or 0) > triton.max_rows:
        raise SetupError(f"--rows {rows} is over the {triton.max_rows} rows of Triton's model {triton.model}")
    if only != "engine" and not triton.has_text_model:
        raise SetupError(
            f"Triton at {triton.address} has no model {triton.text_model} that is ready: add --only engine, "
            "or write the repository with it"
        )
    series: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="crossrank-perf-analyzer-") as folder:
        if only != "text":
            pairs = encode_workload(PairEncoder(bundle), workload)
            chosen = pairs_by_bucket(pairs, triton.contract.buckets, buckets, seed)
            series += _engine_series(sweep, bundle, chosen, rows, Path(folder))
        if only != "engine":
            series.append(_text_series(sweep, workload, Path(folder)))
    return series


def _engine_series(
    sweep: Sweep, bundle: Bundle, chosen: dict[int, PairBatch], rows: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    triton = sweep.triton
    names = triton.contract.inputs
    with ExitStack() as stack:
        bare: BareEngine | None = None
        # Elsewhere another engine computes, or on other cores.
        if sweep.plan.rounds and triton.on_cpu and triton.pid is not None:
            bare = stack.enter_context(bare_engine(bundle, triton))
        for length, pairs in chosen.items():
            label, path = f"{triton.model}, bucket {length}", folder / f"bucket-{length}.json"
            write_token_rows(path, pairs, length, bundle.manifest.pad_token_id, names)
            size = rows or min(max(_REQUEST_TOKENS // length, 1), triton.max_rows)
            inference = Inference(triton.model, path, dict.fromkeys(names, length), size, size)
            measured = sweep.measure(label, inference)
            if bare is not None:
                compared = sweep.compare(label, inference, measured["best_concurrency"], bare, pairs)
                measured["bare_engine"] = {
                    "engine": bare.engine.name,
                    "precision": bare.engine.precision,
                    "threads": bare.engine.concurrency,
                    **compared,
                }
            yield {"model": triton.model, "bucket": length, "distinct_pairs": len(pairs), **measured}


def _text_series(sweep: Sweep, workload: Workload, folder: Path) -> dict[str, Any]:
    triton = sweep.triton
    path = folder / "text.json"
    write_texts(path, workload)
    inference = Inference(triton.text_model, path, {"DOCUMENTS": workload.documents}, 1, workload.documents)
    return {"model": triton.text_model, "bucket": None, **sweep.measure(triton.text_model, inference)}


@contextmanager
def bare_engine(bundle: Bundle, triton: TritonFacts) -> Iterator[BareEngine]:
    """Load the engine that computes in Triton, with a thread for each of its instances, at most one for each core.

    Raises:
        SetupError: This version does not know the engine or the precision of the model in Triton.
    """
    name = triton.parameters.get("crossrank_engine", "auto")
    precision = triton.parameters.get("crossrank_precision", "auto")
    if name not in EMBEDDED_ENGINES or precision not in PRECISIONS:
        raise SetupError(
            f"Triton's model {triton.model} computes with {name} in {precision}, which this version of crossrank does "
            "not know: write the repository again"
        )
    threads = min(triton.instances, available_cores())
    engine = make_engine(bundle, name, precision, threads=threads)
    bare = BareEngine(engine)
    try:
        yield bare
    finally:
        bare.close()
