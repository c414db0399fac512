"""`crossrank repository`: write a Triton model repository for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank.engines.names import EMBEDDED_ENGINES, PRECISIONS
from crossrank.engines.tensorrt.gpus import GPUS
from crossrank_export.commands.buckets import DEFAULT, parse_lengths
from crossrank_export.triton.spec import TARGETS, Queue, RepositorySpec, Target, make_spec

_CURRENT_TAG = GPUS["h100"].container.tag


@click.command()
@click.argument("bundle")
@click.option("--target", required=True, type=click.Choice(TARGETS), help="What computes the scores.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The repository; other models in it stay.",
)
@click.option("--name", help="The engine model's name.  [default: the model id without its owner]")
@click.option(
    "--version",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Version directory to write. Triton serves the highest, and changes over without losing a request.",
)
@click.option(
    "--buckets",
    callback=parse_lengths,
    help="Lengths in tokens that pairs are padded to: more waste less padding, fewer merge more requests. For "
    f"tensorrt they are the plan's.  {DEFAULT}",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    help="Rows of a batch at most. For tensorrt it is the plan's.  [default: 128]",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Requests that may wait; one more is refused at once (UNAVAILABLE) instead of waiting long.",
)
@click.option(
    "--queue-timeout-ms",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="A request that waited this long is refused; clients may ask for less.",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How long a batch waits for company. Under load batches fill without it.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Engine instances: on each GPU, or single-threaded processes for cpu (one more than cores is best).",
)
@click.option(
    "--text-instances",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Instances of the text model, each working on one request at a time; 0 leaves the text model out.",
)
@click.option(
    "--engine",
    type=click.Choice(EMBEDDED_ENGINES),
    default="auto",
    show_default=True,
    help="Target cpu: what computes inside Triton.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Target cpu: arithmetic. auto takes bf16 where the CPU multiplies it natively.",
)
@click.option("--gpu", type=click.Choice(list(GPUS)), help="Target tensorrt: whose plan, where the bundle has several.")
@click.option(
    "--tensorrt",
    metavar="VERSION",
    help="Target tensorrt: version in the serving container, checked against the plan.  [default with --gpu: that of "
    "the GPU's usual container]",
)
def repository(
    bundle: str,
    target: str,
    out: Path,
    version: int,
    max_queue: int,
    queue_timeout_ms: int,
    queue_delay_us: int,
    **options: Any,
) -> None:
    """Write a Triton model repository for BUNDLE: a bundle, a model directory, a hub id or `builtin`.

    It holds two models. <model> takes token ids (INT32) and gives logits (FP32), with the same inputs and outputs
    for every target, so that a gateway needs no settings for it. <model>_rerank takes a query and documents as
    text and gives scores.

    \b
    Examples:
      crossrank repository builtin --target cpu                    as committed in model_repository/
      crossrank repository bundle --target tensorrt --gpu v100     a plan built by crossrank engine
      crossrank repository bundle --target onnxruntime-gpu --max-batch 256
      crossrank repository bundle --target cpu --version 2         a new version beside the running one
    """  # noqa: D301
    from typing import cast

    from crossrank.resolve import resolve_model
    from crossrank_export.triton.write import write_repository

    loaded = resolve_model(bundle)
    queue = Queue(max_queue, queue_timeout_ms * 1000, queue_delay_us)
    spec = make_spec(loaded.manifest, cast(Target, target), queue=queue, **options)
    for model in write_repository(loaded, spec, out, version):
        click.echo(str(model))
    click.echo(f"\nserve it with:\n  {serve_command(spec, out)}", err=True)


def serve_command(spec: RepositorySpec, out: Path) -> str:
    """Return the command that serves the repository on a machine of its target."""
    if spec.target == "cpu":
        return f"crossrank triton --repository {out}"
    tag = _CURRENT_TAG
    if spec.plan is not None:
        tag = next((gpu.container.tag for gpu in GPUS.values() if gpu.name in spec.plan["gpus"]), tag)
    from crossrank_export.triton.config import ACCELERATOR_CACHE

    cache = f" -v crossrank-engines:{ACCELERATOR_CACHE}" if spec.target == "onnxruntime-gpu" else ""
    start = "tritonserver --model-repository=/models"
    if spec.text_instances:
        start = f'bash -c "pip install -q crossrank && {start}"'
    return (
        f"docker run --rm --gpus all --shm-size 1g -p 8001:8001 -p 8002:8002 -v {out.resolve()}:/models{cache} "
        f"nvcr.io/nvidia/tritonserver:{tag} {start}"
    )
