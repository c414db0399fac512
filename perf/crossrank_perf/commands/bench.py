"""`crossrank bench`: how fast a server is, its peers on the same work, and graphs before and after the passes."""

from __future__ import annotations

import os
import signal
from types import FrameType

import click

from crossrank_perf.commands.bench_engines import engines
from crossrank_perf.commands.bench_graphs import graphs
from crossrank_perf.commands.bench_guard import guard
from crossrank_perf.commands.bench_load import load
from crossrank_perf.commands.bench_peers import peers
from crossrank_perf.commands.bench_plan import plan
from crossrank_perf.commands.bench_scaling import scaling
from crossrank_perf.commands.bench_tiers import tiers
from crossrank_perf.commands.bench_tokenizer import tokenizer
from crossrank_server.commands.groups import DescribedGroup


@click.group(cls=DescribedGroup)
def bench() -> None:
    """Measure speed, latency, CPU and memory, and compare with peers.

    \b
    Examples:
      crossrank bench load                               starts the built-in model, loads it, ends it
      crossrank bench load --url http://127.0.0.1:8000   a server that runs already
      crossrank bench peers --checkpoint DIR             against sentence-transformers, same weights
      crossrank bench scaling                            by cores, documents, tokens, concurrency and model
      crossrank bench graphs DIR                         what the graph passes bring in ONNX Runtime
      crossrank bench tiers                              realtime latency beside a flood of batch requests
      crossrank bench engines                            native, OpenVINO and ONNX Runtime in one process
      crossrank bench tokenizer                          texts to token ids, beside the Rust tokenizer
      crossrank bench plan --measured FILE --qps 100     how many machines a load needs
      crossrank bench guard                              whether this tree became slower than its last commit

    Quote ratios taken in one run: machines differ, and one machine differs from minute to minute.
    """  # noqa: D301 - click reads the backspace itself
    signal.signal(signal.SIGTERM, _end_with_children)


def _end_with_children(number: int, _: FrameType | None) -> None:
    """End the servers and peers that were started, which would outlive this process, and then this process.

    Nothing is raised: a callback of the event loop that the signal happens to interrupt might swallow it.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(128 + number)


bench.add_command(load)
bench.add_command(peers)
bench.add_command(scaling)
bench.add_command(graphs)
bench.add_command(tiers)
bench.add_command(engines)
bench.add_command(tokenizer)
bench.add_command(plan)
bench.add_command(guard)
