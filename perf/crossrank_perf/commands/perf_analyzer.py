"""`crossrank perf-analyzer`: run NVIDIA's perf_analyzer on the models of a Triton repository."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import parse_numbers

if TYPE_CHECKING:
    from crossrank_perf.base.workload import Workload
    from crossrank_perf.perf_analyzer.sweep import SweepPlan
    from crossrank_perf.perf_analyzer.triton import TritonFacts

_NEEDED = ("matplotlib", "psutil")


@click.command("perf-analyzer")
@click.option("--url", help="gRPC address of a running Triton, host:8001. Without it one is started for the run.")
@click.option(
    "--model",
    "-m",
    default="builtin",
    show_default=True,
    help="What Triton serves: a bundle, a model directory, a hub id or `builtin`. Its tokenizer makes the ids.",
)
@click.option(
    "--triton-model",
    default="",
    help="Name of the engine model in Triton.  [default: the model id without its owner, as crossrank repository "
    "names it]",
)
@click.option("--only", type=click.Choice(["engine", "text"]), help="Leave the other of the two models out.")
@click.option(
    "--concurrency",
    "-c",
    "concurrencies",
    default="1,2,4,8,16,32",
    show_default=True,
    callback=parse_numbers,
    help="Requests under way at a time, swept from the fewest to the most.",
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    type=click.IntRange(min=1),
    help="Length in tokens that the engine model is sent; repeat it.  [default: every one of the model's buckets that "
    "a twentieth of the workload's pairs fall into]",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    help="Pairs in each request to the engine model.  [default: as many as make 4,096 tokens, which is what the model "
    "is warmed up with]",
)
@click.option(
    "--documents",
    "-d",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="In each request to the text model.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Length of a window; each point is measured over three. The longest request must be well below it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Bare engine and perf_analyzer in turn, at each bucket's best concurrency; 0 leaves the comparison out.",
)
@click.option(
    "--candidates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Queries with their candidates, JSONL or .jsonl.gz. Default: the DL 2019 file under ../shared or "
    "CROSSRANK_SHARED, else synthetic text with the same lengths.",
)
@click.option("--synthetic", is_flag=True, help="Take synthetic text even where the DL 2019 file is present.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of text and order.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("perf/results"),
    show_default=True,
    help="Directory that gets perf-analyzer.json, .csv and .svg.",
)
def perf_analyzer(url: str | None, model: str, triton_model: str, out: Path, **options: Any) -> None:
    r"""Sweep concurrency with NVIDIA's perf_analyzer, over gRPC and without the gateway.

    The engine model gets token ids of real pairs, one bucket of lengths at a time; the text model gets queries and
    documents. Where Triton computes on this machine's CPU, the engine is also called directly, in turn with
    perf_analyzer, and the result says how much of its rate is left behind Triton.

    perf_analyzer is the binary of NVIDIA's tritonclient wheel, from the directory that CROSSRANK_PERF_ANALYZER_HOME
    names or .perf-analyzer. Nothing is installed here: make perf-analyzer-setup does it.

    \b
    Examples:
      make perf-analyzer-setup
      crossrank perf-analyzer                                  starts Triton, measures the built-in model, ends it
      crossrank perf-analyzer --url gpu-node:8001 --model cross-encoder/ms-marco-MiniLM-L6-v2 -c 1,8,64
      crossrank perf-analyzer --only engine --bucket 128 --rows 16
    """
    from crossrank.resolve import resolve_model
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.workload import load_workload
    from crossrank_perf.perf_analyzer.home import find_perf_analyzer
    from crossrank_perf.perf_analyzer.models import measure_models
    from crossrank_perf.perf_analyzer.report import check_directory, print_report, say, summarize, write_results
    from crossrank_perf.perf_analyzer.sweep import Sweep, SweepPlan
    from crossrank_perf.perf_analyzer.triton import ask_triton, started_triton

    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"crossrank perf-analyzer needs {' and '.join(missing)}: pip install 'crossrank[perf]'")
    analyzer = find_perf_analyzer()
    check_directory(out)
    bundle = resolve_model(model)
    workload = load_workload(
        options["candidates"], options["documents"], synthetic=options["synthetic"], seed=options["seed"]
    )
    report: dict[str, Any] = {"kind": "perf-analyzer", **describe_run()}
    report["versions"]["perf_analyzer"] = analyzer.version
    with ExitStack() as stack:
        if url is None:
            say(f"starting Triton with {model}")
            url = stack.enter_context(started_triton(model))
        triton = ask_triton(url, triton_model or bundle.manifest.model_id.rpartition("/")[2], bundle.manifest)
        plan = SweepPlan(options["concurrencies"], options["seconds"], options["rounds"])
        report["versions"]["tritonserver"] = triton.version
        report |= _facts(triton, workload, plan, options["seed"])
        report["series"] = measure_models(
            Sweep(analyzer, triton, plan, say),
            bundle,
            workload,
            only=options["only"],
            buckets=options["buckets"],
            rows=options["rows"],
            seed=options["seed"],
        )
    report["bare_engine"] = summarize(report["series"])
    print_report(report)
    for path in write_results(out, report):
        click.echo(str(path))


def _facts(triton: TritonFacts, workload: Workload, plan: SweepPlan, seed: int) -> dict[str, Any]:
    from crossrank_perf.perf_analyzer.run import WINDOWS

    return {
        "triton": {
            "model": triton.model,
            "instances": triton.instances,
            "parameters": triton.parameters,
            "max_batch_size": triton.max_rows,
        },
        "workload": {"source": workload.source, "distinct_requests": len(workload.requests), "seed": seed},
        "window_s": plan.window_s,
        "windows": WINDOWS,
    }
