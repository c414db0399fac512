"""Answer one question about TensorRT on this machine's GPU: `python -m lab.gpu.questions NAME WORK OUT [ENGINE ...]`.

    bundles    write the models: the built-in one (TinyBERT-L2's shape) and one of MiniLM-L6's shape, fp32 and fp16
    load       does a plan for compute capability 8.0 load and run on this GPU, which may be another one
    parity     logits and NDCG@10 of DL 2019 in fp32 on the CPU beside each engine's
    rates      pairs/s of each engine, in turn, by length
    gateway    documents/s over HTTP of each engine, in turn

Each runs in a process of its own (lab.gpu.tensorrt starts it), writes its answer to OUT as JSON, and ends with NOT_RUN
where it cannot be asked here, after saying why.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from crossrank.errors import CrossrankError, SetupError

Keep = Callable[[dict[str, Any]], None]

# Exit code of a question that cannot be asked here, as of a skipped test in GNU Automake.
NOT_RUN = 77
MODELS = {"tinybert-l2": "builtin", "minilm-l6": "ms-marco-MiniLM-L6-v2"}
_REFERENCE = "onnxruntime"
_PLAN_SM = 80
_LOADERS = 4


class NotRunError(Exception):
    """The question cannot be asked on this machine."""


def bundles(work: Path, engines: Sequence[str], keep: Keep) -> dict[str, Any]:
    """Write the models."""
    from crossrank.bundles.bundle import load_bundle
    from crossrank.bundles.catalog import catalog_model
    from lab.random_models import write_checkpoint

    found: dict[str, Any] = {}
    for name, source in MODELS.items():
        if source != "builtin":
            model = catalog_model(source)
            assert model is not None
            source = str(work / f"{name}-checkpoint")
            try:
                write_checkpoint(model, Path(source))
            except SetupError as error:
                found[name] = {"left_out": error.message}
                continue
        _run(["-m", "tests.engine_bundle", str(work / name), source])
        manifest = load_bundle(work / name).manifest
        found[name] = {"source": manifest.source.name, "graphs": [graph.file for graph in manifest.graphs]}
    return found


def load(work: Path, engines: Sequence[str], keep: Keep) -> dict[str, Any]:
    """Build a plan for capability 8.0, ask TensorRT whether it fits this GPU, load it, and run some batches."""
    import numpy as np

    from crossrank.bundles.bundle import load_bundle
    from crossrank.engines.agreement import check_logits, expect_logits
    from crossrank.engines.shaped import GATE
    from crossrank.engines.tensorrt.build import build_plan
    from crossrank.engines.tensorrt.choose import plan_spec
    from crossrank.engines.tensorrt.device import device_fault, find_device
    from crossrank.engines.tensorrt.engine import TensorRtEngine
    from crossrank.engines.tensorrt.logger import new_logger
    from crossrank.engines.tensorrt.plan import LoadedPlan
    from crossrank.engines.tensorrt.runtimes import RTX, load_runtime

    trt = load_runtime(RTX)
    if trt is None:
        raise NotRunError("TensorRT for RTX is not installed")
    bundle = load_bundle(work / "tinybert-l2")
    device = find_device()
    spec = plan_spec(bundle, device or _no_device(), _PLAN_SM, str(trt.__version__))
    plan = build_plan(trt, bundle.file(spec.graph.file), spec)
    answer: dict[str, Any] = {"plan": spec.plan_name, "bytes": len(plan), "release": spec.release}
    keep(answer)
    if device is None:
        raise NotRunError(f"no GPU: {device_fault()} (the plan for 8.0 was built, {len(plan) / 1e6:.1f} MB)")
    answer |= {"gpu": device.name, "sm": device.sm, "loads": False, "runs": False}
    logger = new_logger(trt)
    runtime = trt.Runtime(logger)
    validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    answer |= {"validity": validity.name, "diagnostics": int(bits)}  # bits of EngineInvalidityDiagnostics
    # Whatever the header says: that may be overcautious.
    answer["deserializes"] = runtime.deserialize_cuda_engine(plan) is not None
    if not answer["deserializes"]:
        answer["reason"] = logger.reason()
    keep(answer)
    try:
        loaded = LoadedPlan(trt, RTX, plan, spec.plan_name, GATE)
        answer |= {"loads": True, "profiles": len(loaded.profiles), "workspace_bytes": loaded.workspace_bytes}
        keep(answer)
        engine = TensorRtEngine(bundle, loaded, 1, rows=(1, 8))
        expected = expect_logits(bundle)
        assert expected is not None
        delta = np.abs(engine.infer(expected.batch) - expected.logits).max()
        answer |= {"runs": True, "max_delta_logit": float(delta)}
        check_logits(engine, expected)
        asyncio.run(engine.close())
    except CrossrankError as error:
        answer["refused"] = error.message
    return answer


def parity(work: Path, engines: Sequence[str], keep: Keep) -> dict[str, Any]:
    """Rank DL 2019 with each engine, beside fp32 on the CPU."""
    from crossrank_perf.base.workload import shared_folder

    data = shared_folder() / "data"
    candidates, qrels = data / "dl19-bm25-top100.jsonl.gz", data / "dl19-qrels.txt"
    if not (candidates.is_file() and qrels.is_file()):
        raise NotRunError(f"no DL 2019 files at {data} (CROSSRANK_SHARED names another place)")
    answer: dict[str, Any] = {}
    for model in _models(work, engines):
        common = ["eval", "--candidates", str(candidates), "--qrels", str(qrels), "--model", str(work / model)]
        common += ["--plot", "none"]
        reference = work / f"reference-{model}"
        _crossrank([*common, "--engine", _REFERENCE, "--precision", "fp32", "--out", str(reference)])
        run = next(reference.glob("*fp32*.run"))
        answer[model] = {}
        for engine in engines:
            out = work / f"eval-{model}-{engine}"
            # In fp32 and fp16 where the engine has both, so that the difference from fp32 stands in its report.
            precision = "fp32,fp16" if engine == "cuda" else _precision([engine])
            _crossrank(
                [*common, "--engine", engine, "--precision", precision, "--out", str(out), "--compare", str(run)]
            )
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            answer[model][engine] = {
                "precision": precision,
                "means": {name: quality["means"] for name, quality in report["rankings"].items()},
                "max_delta_logit": _run_delta(run, next(out.glob(f"*{precision.split(',')[-1]}*.run"))),
            }
            keep(answer)
    return answer


def rates(work: Path, engines: Sequence[str], keep: Keep) -> dict[str, Any]:
    """Measure all engines in turn in one process, one request at a time and in full batches by length."""
    answer = {}
    for model in _models(work, engines):
        out = work / f"rates-{model}.json"
        options = f"--precision {_precision(engines)} --threads 2 --requests 4 --rounds 3 --bucket-s 1.5".split()
        names = [f"--engine={engine}" for engine in engines]
        _crossrank(["bench", "engines", "--model", str(work / model), *names, *options, "--json", str(out)])
        answer[model] = json.loads(out.read_text(encoding="utf-8"))
        keep(answer)
    return answer


def gateway(work: Path, engines: Sequence[str], keep: Keep) -> dict[str, Any]:
    """Start the gateway with each engine in turn, twice, and load it over HTTP."""
    from crossrank.engines.cpu import available_cores
    from crossrank_perf.base.server import started_server

    workers = max(1, available_cores() // 4)
    answer: dict[str, Any] = {engine: [] for engine in engines}
    for number in range(2):
        for engine in engines if number == 0 else reversed(engines):
            options = ["--model", str(work / "tinybert-l2"), "--engine", engine, "--precision", _precision([engine])]
            options += ["--workers", str(workers), "--log-level", "warning"]
            with started_server(options) as server:
                loads = _load(server.url, work / f"load-{engine}-{number}", 16 if _on_gpu(engines) else 1)
            answer[engine].append({"start_to_ready_s": round(server.start_to_ready_s, 1), "loads": loads})
            keep(answer)
    return answer


def _load(url: str, prefix: Path, concurrency: int) -> list[dict[str, Any]]:
    """Return the figures of several load generators at once, which one alone could not make."""
    files = [prefix.with_name(f"{prefix.name}-{number}.json") for number in range(_LOADERS)]
    command = [
        sys.executable,
        "-m",
        "crossrank_server",
        "bench",
        "load",
        "--url",
        url,
        "--concurrency",
        str(concurrency),
    ]
    running = [
        subprocess.Popen([*command, "--duration", "6", "--seed", str(number), "--json", str(file)])
        for number, file in enumerate(files)
    ]
    if codes := [code for process in running if (code := process.wait())]:
        raise SetupError(f"crossrank bench load ended with exit code {codes[0]}")
    return [json.loads(file.read_text(encoding="utf-8"))["load"] for file in files]


def _models(work: Path, engines: Sequence[str]) -> list[str]:
    """Return the models that were written; only the first, which is small, where engines of the CPU stand in."""
    found = [name for name in MODELS if (work / name).is_dir()]
    return found if _on_gpu(engines) else found[:1]


def _precision(engines: Sequence[str]) -> str:
    """Return the precision to ask engines for: that of the GPU, unless engines of the CPU stand in."""
    return "fp16" if _on_gpu(engines) else "fp32"


def _on_gpu(engines: Sequence[str]) -> bool:
    from crossrank.engines.names import GPU_ENGINES

    return set(engines) <= set(GPU_ENGINES)


def _run_delta(left: Path, right: Path) -> float:
    """Return the largest difference of a score between two TREC runs of the same documents."""
    from crossrank_perf.eval.trec import read_run

    ours, theirs = read_run(left), read_run(right)
    return max(
        abs(score - theirs[topic][document]) for topic, ranked in ours.items() for document, score in ranked.items()
    )


def _no_device() -> Any:
    from crossrank.engines.tensorrt.device import Device

    return Device("no GPU", _PLAN_SM)


def _crossrank(arguments: Sequence[str]) -> None:
    _run(["-m", "crossrank_server", *arguments])


def _run(arguments: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], check=False)
    if done.returncode:
        raise SetupError(f"{' '.join(arguments[:4])} ended with exit code {done.returncode}")


QUESTIONS: dict[str, Callable[[Path, Sequence[str], Keep], dict[str, Any]]] = {
    "bundles": bundles,
    "load": load,
    "parity": parity,
    "rates": rates,
    "gateway": gateway,
}


def main(name: str, work: Path, out: Path, engines: Sequence[str]) -> int:
    """Ask one question; return the exit code."""

    def keep(answer: dict[str, Any]) -> None:
        # Also of what is known until now, in case the time ends.
        out.write_text(json.dumps(answer, indent=1), encoding="utf-8")

    try:
        keep(QUESTIONS[name](work, engines, keep))
    except NotRunError as error:
        click.echo(f"not run: {error}", err=True)
        return NOT_RUN
    except CrossrankError as error:
        click.echo(f"error: {error.message}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
