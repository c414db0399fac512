"""The gRPC server: metadata, deadlines, cancellation, streams, health, reflection, its end."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from crossrank.bundles.bundle import Bundle
from crossrank.errors import RateLimited, SetupError, Unauthorized
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from crossrank_server.rpc.server import RpcServer
from tests.rpc_server import GatedEngine, RefusingAccounts, details_of, rpc_channel, service_of

REQUEST = pb.RerankRequest(query="q", documents=["a", "b c d", "e f"])
SERVICES = ["", "crossrank.v1.Reranker", "tei.v1.Rerank", "tei.v1.Info"]


async def until(condition) -> None:
    """Wait for what another task is to bring about; pytest's timeout ends a wait in vain."""
    while not condition():  # noqa: ASYNC110 - the conditions are counters of several kinds
        await asyncio.sleep(0.005)


async def test_metadata_is_read_as_http_reads_headers(builtin: Bundle) -> None:
    accounts = RefusingAccounts()
    async with rpc_channel(service_of(builtin, GatedEngine(), accounts)) as channel:
        stub = RerankerStub(channel)
        metadata = [("authorization", "Bearer k-1"), ("x-tier", "batch"), ("x-request-id", "me-1"), ("a-bin", b"\xff")]
        call = stub.Rerank(REQUEST, metadata=metadata)
        response = await call
        trailers = dict(await call.trailing_metadata())
        await stub.ListModels(pb.ListModelsRequest(), metadata=[("x-api-key", "k-2")])
        with pytest.raises(grpc.aio.AioRpcError, match="x-tier is 'fast'") as raised:
            await stub.Rerank(REQUEST, metadata=[("x-tier", "fast")])
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert accounts.tokens == ["k-1", "k-2"]
    assert accounts.tiers == ["batch"]
    assert response.id == "rr-me-1"
    assert trailers["x-request-id"] == "me-1"
    assert trailers["x-ratelimit-limit-requests"] == "60"


async def test_a_refusal_carries_the_headers_of_the_answer_too(builtin: Bundle) -> None:
    accounts = RefusingAccounts(admit=RateLimited("used up; wait", retry_after_s=3))
    async with rpc_channel(service_of(builtin, GatedEngine(), accounts)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await RerankerStub(channel).Rerank(REQUEST)
    assert dict(raised.value.trailing_metadata())["x-ratelimit-limit-requests"] == "60"


@pytest.mark.parametrize("ending", ["deadline", "cancel", "hang up"])
async def test_work_that_nobody_waits_for_is_dropped(builtin: Bundle, ending: str) -> None:
    engine, accounts = GatedEngine(is_open=False), RefusingAccounts()
    async with rpc_channel(service_of(builtin, engine, accounts), max_message_bytes=100_000) as channel:
        many = pb.RerankRequest(query="q", documents=["word " * 400] * 40)  # Several batches.
        call = RerankerStub(channel).Rerank(many, timeout=0.5 if ending == "deadline" else None)
        running = asyncio.ensure_future(asyncio.wait_for(call, None))
        await until(lambda: engine.batches)
        begun = len(engine.batches)
        if ending == "cancel":
            call.cancel()
        if ending == "hang up":
            await channel.close()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)) as raised:
            await running
        if ending == "deadline":
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: accounts.admitted == 0)
        engine.gate.set()
        await asyncio.sleep(0.05)
        assert len(engine.batches) == begun
        assert sum(engine.batches) < 40


async def test_a_stream_answers_each_request_as_it_is_scored_under_its_own_id(builtin: Bundle) -> None:
    engine = GatedEngine()
    async with rpc_channel(service_of(builtin, engine)) as channel:
        call = RerankerStub(channel).RerankStream(metadata=[("x-request-id", "s")])
        ids = set()
        for i in range(3):  # One at a time: the answer comes while the stream is open.
            request = pb.RerankRequest(query="q", documents=["a " * (n + 1) for n in range(i + 1)], raw_scores=True)
            await call.write(pb.RerankStreamRequest(id=f"r{i}", request=request))
            answer = await call.read()
            assert answer.id == f"r{i}"
            assert [result.index for result in answer.response.results] == list(range(i, -1, -1))
            ids.add(answer.response.id)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
    assert ids == {"rr-s.1", "rr-s.2", "rr-s.3"}


async def test_an_error_of_one_message_is_its_answer_and_the_stream_goes_on(builtin: Bundle) -> None:
    def write(id_: str, **fields) -> bytes:
        return pb.RerankStreamRequest(id=id_, request=pb.RerankRequest(**fields)).SerializeToString()

    good = {"query": "q", "documents": ["a"]}
    messages = [
        write("good", **good),
        write("blank", query=" ", documents=["a"]),
        b"\xff\xff",
        write("large", query="q", documents=["x" * 20_000]),
        write("", **good),
        write("unknown", **good, model="gpt-9"),
        write("last", **good),
    ]
    async with rpc_channel(service_of(builtin, GatedEngine())) as channel:
        method = channel.stream_stream(
            "/crossrank.v1.Reranker/RerankStream", response_deserializer=pb.RerankStreamResponse.FromString
        )
        answers = [answer async for answer in method(iter(messages))]
    outcome = sorted((a.id, details_of(a.error)[0]["code"] if a.HasField("error") else "") for a in answers)
    assert outcome == [
        ("", ""),
        ("", "invalid_message"),
        ("blank", "invalid_value"),
        ("good", ""),
        ("large", "request_too_large"),
        ("last", ""),
        ("unknown", "model_not_found"),
    ]


async def test_a_stream_without_a_good_key_ends_at_once(builtin: Bundle) -> None:
    accounts = RefusingAccounts(identify=Unauthorized("no key; send one"))
    async with rpc_channel(service_of(builtin, GatedEngine(), accounts)) as channel:
        call = RerankerStub(channel).RerankStream()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert details_of(rpc_status.from_call(raised.value))[0]["code"] == "invalid_api_key"


async def test_a_client_that_sends_without_pause_is_slowed_down_and_everything_is_answered(builtin: Bundle) -> None:
    engine, accounts = GatedEngine(is_open=False), RefusingAccounts()
    async with rpc_channel(service_of(builtin, engine, accounts)) as channel:
        requests = (pb.RerankStreamRequest(id=str(i), request=REQUEST) for i in range(100))
        call = RerankerStub(channel).RerankStream(requests)
        await until(lambda: accounts.admitted >= 16)
        await asyncio.sleep(0.1)
        assert accounts.admitted == 16
        engine.gate.set()
        answers = [answer.id async for answer in call]
    assert sorted(answers, key=int) == [str(i) for i in range(100)]
    assert accounts.most_admitted == 16


async def test_a_cancelled_stream_drops_the_work_of_all_its_messages(builtin: Bundle) -> None:
    engine, accounts = GatedEngine(is_open=False), RefusingAccounts()
    async with rpc_channel(service_of(builtin, engine, accounts)) as channel:
        requests = (pb.RerankStreamRequest(id=str(i), request=REQUEST) for i in range(5))
        call = RerankerStub(channel).RerankStream(requests)
        await until(lambda: accounts.admitted == 5)
        call.cancel()
        await until(lambda: accounts.admitted == 0)


async def test_health_follows_readiness_for_those_who_ask_and_those_who_watch(builtin: Bundle) -> None:
    engine = GatedEngine()
    async with rpc_channel(service_of(builtin, engine)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check() -> set[int]:
            return {(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in SERVICES}

        watch = stub.Watch(health_pb2.HealthCheckRequest(service="crossrank.v1.Reranker"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert await check() == {health_pb2.HealthCheckResponse.SERVING}
        engine.is_ready = False
        assert await check() == {health_pb2.HealthCheckResponse.NOT_SERVING}
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        engine.is_ready = True
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
        watch.cancel()


async def test_a_client_without_the_proto_files_can_ask_by_reflection(builtin: Bundle) -> None:
    engine = GatedEngine()
    service = service_of(builtin, engine)
    server = RpcServer(service, max_message_bytes=20_000, host="127.0.0.1", port=0)
    port = await server.start()

    def explore() -> tuple[list[str], dict[str, list[str]]]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            names = sorted(database.get_services())
            pool = DescriptorPool(database)
            return names, {name: list(pool.FindServiceByName(name).methods_by_name) for name in names}

    names, methods = await asyncio.to_thread(explore)
    await server.stop(0)
    assert {"crossrank.v1.Reranker", "tei.v1.Rerank", "tei.v1.Info", "grpc.health.v1.Health"} <= set(names)
    assert methods["crossrank.v1.Reranker"] == ["Rerank", "RerankStream", "ListModels"]
    assert methods["tei.v1.Rerank"] == ["Rerank", "RerankStream"]


@pytest.mark.parametrize("in_time", [True, False])
async def test_the_end_is_announced_and_gives_what_is_under_way_its_time(builtin: Bundle, in_time: bool) -> None:
    engine = GatedEngine(is_open=False)
    server = RpcServer(service_of(builtin, engine), max_message_bytes=20_000, host="127.0.0.1", port=0)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = RerankerStub(channel).Rerank(REQUEST)
        running = asyncio.ensure_future(asyncio.wait_for(call, None))
        await until(lambda: engine.batches)
        stopping = asyncio.ensure_future(server.stop(20 if in_time else 0.1))
        announced = await asyncio.wait_for(watch.read(), 10)
        assert announced.status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        if in_time:
            engine.gate.set()
            assert len((await running).results) == 3
        else:
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await running
        await stopping
    engine.gate.set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await RerankerStub(channel).Rerank(REQUEST)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_taken_port_is_told_and_never_shared(builtin: Bundle) -> None:
    service = service_of(builtin, GatedEngine())
    first = RpcServer(service, max_message_bytes=1024, host="127.0.0.1", port=0)
    port = await first.start()
    second = RpcServer(service, max_message_bytes=1024, host="127.0.0.1", port=port)
    with pytest.raises(SetupError, match=f"cannot listen for gRPC on 127.0.0.1:{port}: .*--grpc-port"):
        await second.start()
    for server in (first, second):
        with contextlib.suppress(AttributeError):
            await server.stop(0)
