"""`crossrank bench`: the speed of a server and of its engines, and the machines that a load needs."""

from __future__ import annotations

import click

from crossrank_perf.base.processes import end_children_on_sigterm
from crossrank_perf.commands.bench_engines import engines
from crossrank_perf.commands.bench_load import load
from crossrank_perf.commands.bench_plan import plan
from crossrank_server.commands.groups import DescribedGroup


@click.group(cls=DescribedGroup)
def bench() -> None:
    """Measure speed, latency, CPU and memory, and plan machines.

    \b
    Examples:
      crossrank bench load                               start the built-in model, load it, end it
      crossrank bench load --url http://127.0.0.1:8000   load a server that runs already
      crossrank bench engines                            compare native, OpenVINO and ONNX Runtime in one process
      crossrank bench plan --measured FILE --qps 100     tell how many machines a load needs

    Quote ratios taken in one run: machines differ, and one machine differs from minute to minute.
    """  # noqa: D301 - click reads the backspace itself
    end_children_on_sigterm()


bench.add_command(load)
bench.add_command(engines)
bench.add_command(plan)
