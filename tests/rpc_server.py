"""A gRPC server in the test's own event loop, around engines and accounts that a test controls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, MutableMapping

import grpc
import numpy as np
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.packed import PairBatch
from crossrank_server.accounts.base import Account, Charge, OpenAccounts
from crossrank_server.rpc.server import RpcServer
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService


class GatedEngine:
    """Scores a pair by the number of its tokens, once the gate is open."""

    name = "gated"
    precision = "fp32"
    concurrency = 1
    batch_tokens = 4096
    call_tokens = 0
    row_step = 4
    pads = True

    def __init__(self, *, is_open: bool = True) -> None:
        self.gate = asyncio.Event()
        self.batches: list[int] = []
        self.is_ready = True
        if is_open:
            self.gate.set()

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        self.batches.append(len(batch))
        await self.gate.wait()
        return batch.lengths.astype(np.float32)

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def ready(self) -> bool:
        return self.is_ready

    async def close(self) -> None: ...


class RefusingAccounts(OpenAccounts):
    """Refuses with an error, before (`identify`) or after (`admit`) the message is read; counts who is admitted."""

    def __init__(self, *, identify: Exception | None = None, admit: Exception | None = None) -> None:
        self._identify, self._admit = identify, admit
        self.tokens: list[str | None] = []
        self.tiers: list[str] = []
        self.admitted = 0
        self.most_admitted = 0

    async def identify(self, token: str | None) -> Account | None:
        self.tokens.append(token)
        if self._identify:
            raise self._identify
        return None

    @contextlib.asynccontextmanager
    async def admit(
        self, account: Account | None, *, model: str, tier: str, documents: int, headers: MutableMapping[str, str]
    ) -> AsyncIterator[Charge]:
        headers["x-ratelimit-limit-requests"] = "60"
        if self._admit:
            raise self._admit
        self.tiers.append(tier)
        self.admitted += 1
        self.most_admitted = max(self.admitted, self.most_admitted)
        try:
            yield Charge(documents)
        finally:
            self.admitted -= 1


def service_of(builtin: Bundle, engine: GatedEngine, accounts: OpenAccounts | None = None) -> RerankService:
    pool = ModelPool([ServedModel(builtin, engine, 10_000)])
    return RerankService(pool, max_documents=50, timeout_s=30, accounts=accounts)


@contextlib.asynccontextmanager
async def rpc_channel(service: RerankService, *, max_message_bytes: int = 20_000) -> AsyncIterator[grpc.aio.Channel]:
    """Serve until the block ends; give a channel to the server."""
    server = RpcServer(service, max_message_bytes=max_message_bytes, host="127.0.0.1", port=0)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


def details_of(status: Status) -> tuple[Mapping[str, str], dict[str, object]]:
    """Return the facts of an error's ErrorInfo, and all details by their kind."""
    found: dict[str, object] = {}
    for detail in status.details:
        for kind in (ErrorInfo, RequestInfo, BadRequest, RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    info = found["ErrorInfo"]
    assert isinstance(info, ErrorInfo)
    assert info.domain == "crossrank"
    return info.metadata, found
