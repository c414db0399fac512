"""`crossrank triton`: run the real tritonserver on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from crossrank.engines.names import EMBEDDED_ENGINES, PRECISIONS


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--model", default="builtin", show_default=True, help="A bundle, a model directory, a hub id or `builtin`."
)
@click.option(
    "--repository",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve this repository, from crossrank repository --target cpu, instead of writing one for --model.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--http-port",
    type=click.IntRange(1, 65535),
    default=8003,
    show_default=True,
    help="Not Triton's usual 8000, where crossrank serve listens.",
)
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001, show_default=True, help="For --triton-url.")
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002, show_default=True, help="Prometheus.")
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Gets the model repository and what tritonserver needs beside it.  [default: in the cache, one for each "
    "gRPC port]",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    help="Processes that compute, one thread each.  [default: one more than cores]",
)
@click.option(
    "--engine",
    type=click.Choice(EMBEDDED_ENGINES),
    default="auto",
    show_default=True,
    help="What computes inside Triton.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="auto takes bf16 where the CPU multiplies it natively; fp32 gives the reference's scores.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def triton(
    model: str,
    repository: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    run_dir: Path | None,
    instances: int | None,
    engine: str,
    precision: str,
    arguments: tuple[str, ...],
) -> None:
    """Serve a model with the real tritonserver on this machine's CPU.

    The server is the one of the nvidia-pytriton wheel, from the directory that CROSSRANK_TRITON_HOME names or .triton;
    without it a message tells how to install it. This process becomes tritonserver, with its signals and its exit
    code. On a GPU node the repository of crossrank repository is served by NVIDIA's container instead.

    ARGUMENTS go to tritonserver as they are.

    \b
    Examples:
      crossrank triton
      crossrank triton --model cross-encoder/ms-marco-MiniLM-L6-v2 --grpc-port 9001
      crossrank triton --repository model_repository
      crossrank triton -- --log-verbose=1 --model-control-mode=poll --repository-poll-secs=1
    """  # noqa: D301
    from crossrank_export.triton.home import find_home
    from crossrank_export.triton.server import Ports, check_ports, make_command

    home = find_home()
    ports = Ports(host, http_port, grpc_port, metrics_port)
    check_ports(ports)
    from crossrank.bundles.cache import default_cache_dir

    run_dir = run_dir or default_cache_dir() / "triton" / str(grpc_port)
    if repository is None:
        repository = _write(model, run_dir / "model_repository", instances, engine, precision)
    command = make_command(home, repository, ports, run_dir, arguments)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"serving {repository} on grpc://{shown}:{grpc_port} and http://{shown}:{http_port}", err=True)
    click.echo(f"ready when http://{shown}:{http_port}/v2/health/ready answers 200", err=True)
    sys.stdout.flush()
    os.execve(command.arguments[0], command.arguments, command.environment)


def _write(model: str, out: Path, instances: int | None, engine: str, precision: str) -> Path:
    """Write a repository, in place of one of an earlier run."""
    import shutil

    from crossrank.engines.cpu import available_cores
    from crossrank.resolve import resolve_model
    from crossrank_export.triton.spec import make_spec
    from crossrank_export.triton.write import write_repository

    bundle = resolve_model(model)
    cores = available_cores()
    spec = make_spec(
        bundle.manifest,
        "cpu",
        # One more than cores: it computes while another returns its answers (6% more, measured on 2 cores).
        instances=instances or cores + 1,
        text_instances=2 * cores,
        engine=engine,
        precision=precision,
    )
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_repository(bundle, spec, out)
    return out
