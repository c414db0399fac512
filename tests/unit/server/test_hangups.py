"""Work for callers that are gone is not begun, and ends soon where it was: before, in and after the tokenizer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.errors import BackendTimeout
from crossrank.native.wordpiece import WordPiece
from crossrank.request import RerankRequest, Truncation
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from crossrank_server.calls import Call
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from tests.http_app import make_app
from tests.rpc_server import GatedEngine, rpc_channel

# Seconds of work for the Rust tokenizer, each.
LONG = RerankRequest("q", ["the flea " * 700_000], truncation=Truncation(max_chunks_per_doc=1 << 20))


@pytest.mark.parametrize("gone", [False, True])
async def test_a_request_whose_client_is_gone_already_is_not_begun(builtin: Bundle, gone: bool) -> None:
    engine = GatedEngine()
    app = make_app(builtin, engine)
    body = json.dumps({"query": "q", "documents": ["a", "b"]}).encode()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"host", b"test")]
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": "/v1/rerank", "raw_path": b"/v1/rerank", "query_string": b"", "root_path": "", "headers": headers},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)},
    }
    await app(scope, receive, send)
    assert engine.batches == ([] if gone else [2])


@pytest.fixture
def service(builtin: Bundle, monkeypatch: pytest.MonkeyPatch) -> RerankService:
    """Scores with a closed gate, and tokenizes with the Rust tokenizer."""
    monkeypatch.setattr(WordPiece, "serves", staticmethod(lambda definition: False))
    pool = ModelPool([ServedModel(builtin, GatedEngine(), 10_000)])
    return RerankService(pool, max_documents=1000, timeout_s=1.0)


async def test_the_deadline_is_on_time_while_texts_are_tokenized(service: RerankService) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(BackendTimeout, match="longer than 1 s"):
        await service.rerank(LONG, Call())
    # The bound of this test is that of the tokenizer's thread, which is free again.
    with pytest.raises(BackendTimeout):
        await asyncio.wait_for(service.rerank(LONG, Call()), 10)
    assert loop.time() - began < 10


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
async def test_tokenizing_ends_when_its_callers_are_gone(service: RerankService, protocol: str) -> None:
    engine = service.pool.slots[0].served
    assert engine is not None
    async with rpc_channel(service, max_message_bytes=10_000_000) as channel:
        stub = RerankerStub(channel)
        request = pb.RerankRequest(query="q", documents=LONG.documents)
        request.max_chunks_per_doc = 10_000
        gone = [
            stub.Rerank(request) if protocol == "gRPC" else asyncio.ensure_future(service.rerank(LONG, Call()))
            for _ in range(6)
        ]
        await asyncio.sleep(0.3)
        for call in gone:
            call.cancel()
        for call in gone:
            with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError, BackendTimeout)):
                await call
        # Of their 12 seconds and more of work nothing is left that another would wait for.
        encoded = asyncio.ensure_future(service.rerank(RerankRequest("q", ["the flea " * 20_000] * 2), Call()))
        while not engine.engine.batches:
            assert not encoded.done(), "it still waits for the tokenizer"
            await asyncio.sleep(0.01)
        encoded.cancel()
