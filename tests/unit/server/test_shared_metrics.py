"""Gauges of several workers, in the files of one directory: a write that failed is not the last one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own: prometheus_client reads the variable when it is imported.
PROGRAM = """
import asyncio, logging, os, shutil, sys, time

directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from crossrank_server.telemetry.shared_metrics import SharedMetrics

logging.basicConfig()


class State(Collector):
    def collect(self):
        yield GaugeMetricFamily("crossrank_ready", "1 while requests can be scored.", value=1)


async def main():
    metrics = SharedMetrics(write_s=0.01)
    metrics.watch(State())
    shutil.rmtree(directory)
    metrics.begin()
    await asyncio.sleep(0.1)
    os.mkdir(directory)
    give_up_at = time.monotonic() + 20
    while b"crossrank_ready 1.0" not in metrics.exposition("")[0] and time.monotonic() < give_up_at:
        await asyncio.sleep(0.01)
    print(metrics.exposition("")[0].decode())


asyncio.run(main())
"""


def test_gauges_are_written_again_after_a_write_that_failed(tmp_path: Path) -> None:
    directory = tmp_path / "counts"
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "crossrank_ready 1.0" in done.stdout
    # Several writes failed; the log has it once.
    assert done.stderr.count("the gauges of this worker cannot be written") == 1
    assert "FileNotFoundError" in done.stderr
