"""A server whose engine never returns, run by test_shutdown: `python -m tests.hanging_server MARKER`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import load_bundle
from crossrank.packed import PairBatch
from crossrank_server.accounts.base import OpenAccounts
from crossrank_server.http.app import create_app
from crossrank_server.http.server import GracefulServer
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from crossrank_server.settings import ServeSettings
from tests.conftest import ROOT

MARKER = Path(sys.argv[1])


class HangingEngine:
    """Waits in a thread, as a runtime that is stuck does."""

    name = "hanging"
    precision = "fp32"
    concurrency = 1
    batch_tokens = 64
    call_tokens = 0
    row_step = 4
    pads = True

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        await asyncio.get_running_loop().run_in_executor(self._pool, threading.Event().wait)
        return np.zeros(len(batch), np.float32)

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def ready(self) -> bool:
        return True

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)


class MarkingAccounts(OpenAccounts):
    """Writes a file where others write what was used."""

    async def close(self) -> None:
        MARKER.write_text("usage written")  # noqa: ASYNC240 - nothing else runs any more


def main() -> None:
    bundle = load_bundle(ROOT / "server" / "crossrank" / "bundles" / "builtin")
    pool = ModelPool([ServedModel(bundle, HangingEngine(), 100)])
    service = RerankService(pool, max_documents=10, timeout_s=600, accounts=MarkingAccounts())
    settings = ServeSettings(shutdown_grace_s=1)
    app = create_app(service, max_body_bytes=10_000)
    listener = socket.create_server(("127.0.0.1", 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as `crossrank serve` does
    print(listener.getsockname()[1], flush=True)
    GracefulServer(app, service, settings, last_resort_s=7).run([listener])


if __name__ == "__main__":
    main()
