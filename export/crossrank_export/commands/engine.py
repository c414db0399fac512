"""`crossrank engine`: build a TensorRT plan from a bundle's fp16 graph."""

from __future__ import annotations

from pathlib import Path

import click

from crossrank_export.trt.gpus import GPUS
from crossrank_export.trt.spec import DEFAULT_MAX_BATCH, DEFAULT_WORKSPACE_MIB


def _lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(word) for word in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of lengths such as 32,64,128", ctx, param) from None


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--gpu", required=True, type=click.Choice(list(GPUS)), help="The GPU the plan will run on.")
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
    callback=_lengths,
    help="Lengths in tokens that pairs are padded to, one profile each.  [default: 32,64,128,256,512 up to the "
    "bundle's max_length]",
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
@click.option("--dry-run", is_flag=True, help="Print every profile, flag and the trtexec command; build nothing.")
def engine(
    bundle: Path,
    gpu: str,
    max_batch: int,
    buckets: list[int] | None,
    workspace_mib: int,
    timing_cache: Path | None,
    dry_run: bool,
) -> None:
    """Build a TensorRT plan from the fp16 graph of BUNDLE and record it there.

    The plan is named by what can load it: model.sm70.trt10.4.0.fp16.plan runs on a V100 (SM 7.0) with TensorRT
    10.4.0 and nowhere else. Build it on the GPU that will serve, with the TensorRT that will serve. It is compared
    with ONNX Runtime before it is kept.

    \b
    Examples:
      crossrank export cross-encoder/ms-marco-TinyBERT-L2-v2 --out tiny --precision fp32,fp16
      crossrank engine tiny --gpu v100 --dry-run              what would be built; works on any machine
      crossrank engine tiny --gpu v100                        on the V100 itself
      crossrank engine tiny --gpu t4 --max-batch 64 --buckets 64,128,512
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.bundles.bundle import load_bundle
    from crossrank_export.trt.bindings import load_tensorrt
    from crossrank_export.trt.build import build_engine, container_command, require_machine
    from crossrank_export.trt.device import find_device
    from crossrank_export.trt.spec import describe, make_spec

    target = GPUS[gpu]
    loaded = load_bundle(bundle)
    trt = load_tensorrt()
    spec = make_spec(
        loaded.manifest,
        bundle,
        target,
        target.container.tensorrt if trt is None else str(trt.__version__),
        buckets=buckets,
        max_batch=max_batch,
        workspace_mib=workspace_mib,
        timing_cache=timing_cache,
    )
    if dry_run:
        click.echo(describe(spec, bundle))
        return
    given = [f"--max-batch={max_batch}", f"--workspace-mib={workspace_mib}"]
    if buckets is not None:
        given.append(f"--buckets={','.join(map(str, buckets))}")
    command = container_command(bundle, target, given, timing_cache)
    device = require_machine(trt, find_device(), target, command)
    click.echo(describe(spec, bundle))
    entry = build_engine(trt, device, loaded, spec)
    parity = entry["parity"]
    click.echo(
        f"\nbuilt {bundle / spec.plan_name}: max |delta logit| {parity['max_abs_delta']:.2g}, mean "
        f"{parity['mean_abs_delta']:.2g}, Kendall tau {parity['kendall_tau']:.4f} against {parity['reference']} on "
        f"{parity['pairs']} pairs"
    )
