"""Run a benchmark of the laboratory: `python -m lab NAME`, which `make bench-NAME` calls."""

from __future__ import annotations

import sys

import click

from crossrank.errors import CrossrankError
from crossrank_perf.base.processes import end_children_on_sigterm
from crossrank_server.commands.groups import DescribedGroup
from lab.graphs.command import graphs
from lab.guard.command import guard
from lab.install.command import install
from lab.peers.command import peers
from lab.plans.command import plans
from lab.scaling.command import scaling
from lab.soak.command import soak
from lab.tiers.command import tiers
from lab.tokenizer.command import tokenizer


@click.group(cls=DescribedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def lab() -> None:
    """Measure this project in its own checkout.

    \b
    Examples:
      make bench-guard                                     whether this tree is slower than its last commit
      make bench-peers BENCH_ARGS="--checkpoint DIR"       against sentence-transformers and others, same weights
      make bench-scaling                                   by cores, documents, tokens, concurrency and model
      make bench-tiers                                     realtime latency beside a flood of batch requests
      make bench-graphs BENCH_ARGS=DIR                     what the graph passes bring in ONNX Runtime
      make bench-plans                                     TensorRT plans of every architecture, built on this CPU
      make bench-tokenizer                                 texts to token ids, beside the tokenizers library
      make bench-soak                                      an hour of mixed load: memory, latency, right answers
      make bench-install                                   packages, megabytes and import times of an installation
    """  # noqa: D301 - click reads the backspace itself
    end_children_on_sigterm()


for command in (peers, scaling, graphs, plans, tiers, tokenizer, guard, install, soak):
    lab.add_command(command)


def main() -> None:
    """Run the command line; errors meant for the user are one line on stderr and exit code 1."""
    try:
        lab(prog_name="python -m lab")
    except CrossrankError as error:
        click.secho(f"error: {error.message}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
