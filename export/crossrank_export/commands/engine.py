"""`crossrank engine`: build a TensorRT plan from a bundle's fp16 graph."""

from __future__ import annotations

import time
from pathlib import Path

import click

from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.runtimes import RUNTIMES
from crossrank.engines.tensorrt.spec import DEFAULT_MAX_BATCH, DEFAULT_WORKSPACE_MIB
from crossrank_export.commands.buckets import DEFAULT, parse_lengths


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--gpu",
    "gpus",
    required=True,
    multiple=True,
    type=click.Choice(list(GPUS)),
    help="A GPU that the plan will run on. Several make one plan for all of them, with TensorRT for RTX.",
)
@click.option(
    "--runtime",
    type=click.Choice(list(RUNTIMES)),
    help="tensorrt-rtx builds on any x86-64 CPU; tensorrt on the GPU itself, for Triton too.  [default: tensorrt-rtx "
    "where it serves every --gpu, else tensorrt]",
)
@click.option(
    "--max-batch",
    type=int,
    default=DEFAULT_MAX_BATCH,
    show_default=True,
    help="Pairs of the largest batch. More cost GPU memory, not speed: kernels are tuned for full batches of "
    "8192 tokens in any case.",
)
@click.option(
    "--buckets",
    callback=parse_lengths,
    help=f"Lengths in tokens that pairs are padded to, one profile each.  {DEFAULT}",
)
@click.option(
    "--workspace-mib",
    type=int,
    default=DEFAULT_WORKSPACE_MIB,
    show_default=True,
    help="Memory a kernel may use beside weights and activations. Less rules out some fast kernels.",
)
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keeps kernel timings between builds, so that the next takes seconds.  [default: a file in the bundle]",
)
@click.option(
    "--dry-run", is_flag=True, help="Parse the graph, print the runtime and why, every profile and flag; build nothing."
)
def engine(
    bundle: Path,
    gpus: tuple[str, ...],
    runtime: str | None,
    max_batch: int,
    buckets: list[int] | None,
    workspace_mib: int,
    timing_cache: Path | None,
    dry_run: bool,
) -> None:
    """Build a TensorRT plan from the fp16 graph of BUNDLE and record it there.

    TensorRT for RTX (pip install 'crossrank[tensorrt]') builds plans for most GPUs in seconds, on a CPU. For the
    others, and for Triton, TensorRT itself builds on the GPU that will serve, and compares the plan with ONNX Runtime.
    A plan is named by what alone can load it: model.sm75-sm89.rtx1.7.1.116.fp16.plan is for a T4 and an L4 with
    TensorRT for RTX 1.7.1.116, model.sm70.trt10.4.0.fp16.plan for a V100 with TensorRT 10.4.0.

    \b
    Examples:
      crossrank export cross-encoder/ms-marco-TinyBERT-L2-v2 --out tiny --precision fp32,fp16
      crossrank engine tiny --gpu l4 --gpu a100 --gpu t4      one plan for all three, built here
      crossrank engine tiny --gpu v100 --dry-run              what would be built; works on any machine
      crossrank engine tiny --gpu v100                        on the V100 itself
      crossrank engine tiny --gpu t4 --runtime tensorrt       for Triton, on the T4 itself
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.bundles.bundle import load_bundle
    from crossrank.engines.tensorrt.device import find_device
    from crossrank.engines.tensorrt.runtimes import RTX, RTX_RELEASE, choose_runtime, load_runtime
    from crossrank.engines.tensorrt.spec import make_spec
    from crossrank_export.trt.build import build_engine
    from crossrank_export.trt.describe import describe
    from crossrank_export.trt.machine import container_command, require_machine, require_wheel
    from crossrank_export.trt.operators import check_graph

    targets = [GPUS[name] for name in dict.fromkeys(gpus)]
    chosen, why = choose_runtime(targets, runtime)
    loaded = load_bundle(bundle)
    trt = load_runtime(chosen)
    usual = RTX_RELEASE if chosen is RTX else targets[0].container.tensorrt
    spec = make_spec(
        loaded.manifest,
        bundle,
        targets,
        chosen,
        usual if trt is None else str(trt.__version__),
        buckets=buckets,
        max_batch=max_batch,
        workspace_mib=workspace_mib,
        timing_cache=timing_cache,
    )
    if dry_run:
        click.echo(describe(spec, bundle, why))
        usable = trt if chosen is RTX or find_device() is not None else None
        click.echo(f"\n{check_graph(usable, loaded.file(spec.graph.file), spec)}")
        return
    device = None
    if chosen is RTX:
        require_wheel(trt)
    else:
        given = [f"--max-batch={max_batch}", f"--workspace-mib={workspace_mib}"]
        if buckets is not None:
            given.append(f"--buckets={','.join(map(str, buckets))}")
        command = container_command(bundle, targets[0], given, timing_cache)
        device = require_machine(trt, find_device(), targets[0], why, command)
    click.echo(describe(spec, bundle, why))
    started = time.monotonic()
    entry = build_engine(trt, device, loaded, spec)
    size = (bundle / spec.plan_name).stat().st_size
    built = f"\nbuilt {bundle / spec.plan_name}: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s"
    if "parity" not in entry:
        click.echo(f"{built}; its scores are not compared yet: that takes one of these GPUs")
        return
    parity = entry["parity"]
    click.echo(
        f"{built}; max |delta logit| {parity['max_abs_delta']:.2g}, mean {parity['mean_abs_delta']:.2g}, Kendall tau "
        f"{parity['kendall_tau']:.4f} against {parity['reference']} on {parity['pairs']} pairs"
    )
