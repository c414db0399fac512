"""gRPC attacked frame by frame: messages without end, answers not taken, floods, names and numbers that are odd."""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import h2.settings
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto import tei_v1_pb2 as tei
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from tests.faults.outside import MB, others, watched
from tests.raw_grpc import HEALTH, LIST_MODELS, RERANK, STREAM, WATCH, RawGrpc, connections, framed
from tests.server_process import RunningServer, running_server

SMALL = pb.RerankRequest(query="capital of france", documents=["Paris is the capital of France."])
UNAUTHENTICATED, RESOURCE_EXHAUSTED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, UNIMPLEMENTED, OK = (
    b"16",
    b"8",
    b"3",
    b"4",
    b"12",
    b"0",
)
REFLECTION = b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--model", "builtin", "--grpc-port", "0") as running:
        yield running


def port_of(server: RunningServer) -> int:
    return int(server.grpc_target.rpartition(":")[2])


def send_to_all(opened: list[RawGrpc], path: bytes, data: bytes) -> list[tuple[RawGrpc, int]]:
    """Begin an RPC on each connection and send the same on each, at the same time."""
    streams = [(connection, connection.open(path)) for connection in opened]
    threads = [threading.Thread(target=connection.send, args=(stream, data)) for connection, stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams


def read_what_came(connection: RawGrpc) -> None:
    while connection.alive and connection.receive(0.02):
        pass


def test_a_message_without_a_key_is_refused_before_it_is_read(tmp_path) -> None:
    unfinished = framed(bytes(19_000_000), size=20_000_000)
    args = ("--model", "builtin", "--grpc-port", "0", "--store", f"sqlite:///{tmp_path}/keys.db")
    with running_server(*args) as server, watched(server) as watch, connections(port_of(server), 50) as opened:
        streams = send_to_all(opened, RERANK, unfinished)
        ends = [connection.end_of(stream) for connection, stream in streams]
    assert {end["grpc-status"] for end in ends} == {UNAUTHENTICATED}
    assert watch.grown_mb < 60


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(RERANK, id="Rerank"),
        pytest.param(STREAM, id="RerankStream", marks=pytest.mark.slow),
        pytest.param(HEALTH, id="Health", marks=pytest.mark.slow),
    ],
)
def test_messages_that_never_end_are_given_up_and_others_do_not_notice(server: RunningServer, path: bytes) -> None:
    unfinished = framed(bytes(19_000_000), size=20_000_000)
    with grpc.insecure_channel(server.grpc_target) as channel:
        questions = _Questions()
        quiet = RerankerStub(channel).RerankStream(iter(questions), timeout=60)
        questions.ask("before")
        assert next(quiet).id == "before"
        with others(server) as seen, watched(server) as watch, connections(port_of(server), 50) as opened:
            streams = send_to_all(opened, path, unfinished)
            for connection in opened:
                read_what_came(connection)
            ended = [connection.trailers[stream] for connection, stream in streams if stream in connection.trailers]
            began = time.monotonic()
            assert RerankerStub(channel).Rerank(SMALL, timeout=20).results
            assert time.monotonic() - began < 1
        questions.ask("after")
        assert next(quiet).id == "after", "a stream that holds nothing is left alone"
        questions.end()
    assert len(ended) >= 30
    assert {end["grpc-status"] for end in ended} == {RESOURCE_EXHAUSTED}
    assert b"bytes, the limit is 40000000; try again" in ended[0]["grpc-message"]
    assert watch.grown_mb < 200
    assert seen.refusals == []
    assert seen.slowest_s < 1


class _Questions:
    """Messages of a stream, sent when the test says so."""

    def __init__(self) -> None:
        self._asked: list[str] = []
        self._changed = threading.Condition()
        self._ended = False

    def ask(self, name: str) -> None:
        with self._changed:
            self._asked.append(name)
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[pb.RerankStreamRequest]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._ended)
                if not self._asked:
                    return
                name = self._asked.pop(0)
            yield pb.RerankStreamRequest(id=name, request=SMALL)


def test_answers_that_nobody_takes_are_dropped_and_others_do_not_notice(server: RunningServer) -> None:
    long = pb.RerankRequest(query="q", documents=["x" * 20_000] * 100, return_documents=True)
    with grpc.insecure_channel(server.grpc_target, [("grpc.max_receive_message_length", -1)]) as channel:
        for _ in range(4):  # What the engine needs for such a request is not counted.
            assert RerankerStub(channel).Rerank(long, timeout=60).results
    with others(server) as seen, watched(server) as watch, connections(port_of(server), 60, window=0) as opened:
        for connection in opened:
            for _ in range(2):
                connection.send(connection.open(RERANK), framed(long.SerializeToString()), patience_s=0.5)
        give_up_at = time.monotonic() + 20
        while all(connection.alive for connection in opened) and time.monotonic() < give_up_at:
            for connection in opened:
                connection.receive(0.01)
        assert not all(connection.alive for connection in opened)
    assert watch.grown_mb < 350  # 80 MB of requests, each as bytes, texts and an answer, and what malloc keeps of them.
    assert seen.refusals == []
    assert seen.slowest_s < 1


def test_a_stream_that_keeps_its_messages_leaves_room_for_others(server: RunningServer) -> None:
    """TEI's stream is answered when it ends: until then the server keeps its messages, here eight of the largest size."""
    text = "x" * (10_000_000 - 8)
    ended = threading.Event()

    def messages() -> Iterator[tei.RerankStreamRequest]:
        for _ in range(8):
            yield tei.RerankStreamRequest(query="q", text=text)
        ended.wait(20)

    def send() -> str:
        with grpc.insecure_channel(server.grpc_target, [("grpc.use_local_subchannel_pool", 1)]) as greedy:
            stream = greedy.stream_unary(
                "/tei.v1.Rerank/RerankStream", tei.RerankStreamRequest.SerializeToString, tei.RerankResponse.FromString
            )
            with pytest.raises(grpc.RpcError) as raised:
                stream(messages(), timeout=30)
            return str(raised.value.code())

    assert tei.RerankStreamRequest(query="q", text=text).ByteSize() == 10_000_000
    medium = pb.RerankRequest(query="q", documents=["some words of a text " * 50] * 60)
    with (
        ThreadPoolExecutor(1) as threads,
        watched(server) as watch,
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        refused = threads.submit(send)
        try:
            time.sleep(2)
            for _ in range(10):
                assert RerankerStub(channel).Rerank(medium, timeout=5).results
        finally:
            ended.set()
        assert refused.result() == "StatusCode.RESOURCE_EXHAUSTED"
    assert watch.grown_mb < 250


@pytest.mark.slow
@pytest.mark.parametrize(("path", "start"), [(STREAM, b""), (WATCH, framed(b""))], ids=["RerankStream", "Watch"])
def test_rpcs_that_only_wait_make_room_for_those_that_work(server: RunningServer, path: bytes, start: bytes) -> None:
    with others(server) as seen, watched(server) as watch, connections(port_of(server), 25) as opened:
        for connection in opened:
            for _ in range(100):
                stream = connection.open(path)
                connection.send(stream, start)
                if start:
                    connection.h2.end_stream(stream)
        with grpc.insecure_channel(server.grpc_target) as channel:
            began = time.monotonic()
            assert RerankerStub(channel).Rerank(SMALL, timeout=20).results
            assert time.monotonic() - began < 1
        refused: list[dict[str, bytes]] = []
        give_up_at = time.monotonic() + 20
        while not refused and time.monotonic() < give_up_at:
            for connection in opened:
                read_what_came(connection)
            ends = [end for connection in opened for end in connection.trailers.values()]
            refused = [end for end in ends if b"RPCs are under way, the limit is 2048" in end["grpc-message"]]
    assert refused
    assert watch.grown_mb < 200
    assert seen.slowest_s < 2  # 2,500 RPCs at once are work, beside a client that makes them on the same cores


def test_a_connection_has_a_limit_of_streams(server: RunningServer) -> None:
    with connections(port_of(server), 1) as (connection,):
        connection.call(LIST_MODELS, b"")
        assert connection.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] == 1000


@pytest.mark.slow
def test_streams_that_are_reset_at_once_cost_others_little(server: RunningServer) -> None:
    with others(server) as seen, watched(server) as watch, connections(port_of(server), 4) as opened:
        for _ in range(60):
            for connection in opened:
                for _ in range(50):
                    stream = connection.open(RERANK)
                    connection.h2.reset_stream(stream, 8)
                connection.flush()
    assert watch.grown_mb < 100
    assert seen.refusals == []
    assert seen.slowest_s < 1


def test_a_flood_of_pings_ends_its_connection(server: RunningServer) -> None:
    with others(server) as seen, watched(server) as watch, connections(port_of(server), 1) as (connection,):
        for _ in range(200):
            with contextlib.suppress(OSError):
                connection.write(
                    b"".join(b"\0\0\x08\x06\0\0\0\0\0" + number.to_bytes(8, "big") for number in range(100))
                )
        give_up_at = time.monotonic() + 10
        while connection.alive and time.monotonic() < give_up_at:
            connection.receive(0.1)
        assert not connection.alive
    assert watch.grown_mb < 50
    assert seen.slowest_s < 1


@pytest.mark.slow
def test_a_message_that_decompresses_to_far_more_is_refused(server: RunningServer) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(MB)) for _ in range(200)), packer.flush()])
    with others(server) as seen, watched(server) as watch, connections(port_of(server), 1) as (connection,):
        stream = connection.open(RERANK, (b"grpc-encoding", b"gzip"))
        connection.send(stream, b"\1" + framed(bomb)[1:])
        assert connection.end_of(stream)["grpc-status"] == RESOURCE_EXHAUSTED
    assert watch.grown_mb < 100
    assert seen.slowest_s < 1


@pytest.mark.parametrize(
    "path",
    [b"/\xff\xfe/Rerank", b"/crossrank.v1.Reranker/\xc3\x28", b"/none.such/Method", b"x"],
    ids=["bytes", "utf-8", "unknown", "slashless"],
)
def test_a_method_that_does_not_exist_is_told_so_and_the_server_lives(server: RunningServer, path: bytes) -> None:
    with connections(port_of(server), 2) as (first, second):
        assert first.call(path, b"")["grpc-status"] in (UNIMPLEMENTED, b"")
        assert second.call(RERANK, SMALL.SerializeToString())["grpc-status"] == OK


@pytest.mark.parametrize("method", [HEALTH, WATCH, REFLECTION], ids=["Check", "Watch", "Reflection"])
def test_what_is_no_message_is_refused_without_a_traceback(server: RunningServer, method: bytes) -> None:
    with connections(port_of(server), 1) as (connection,):
        trailers = connection.call(method, b"\x0a\x03\xff\xfe\xfd")
    assert trailers["grpc-status"] == INVALID_ARGUMENT
    assert "Traceback" not in server.log.read_text()


def watched_health(channel: grpc.Channel) -> Iterator[health_pb2.HealthCheckResponse]:
    return iter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20))


@pytest.mark.parametrize("attack", ["reads nothing", pytest.param("leaves", marks=pytest.mark.slow)])
def test_a_watcher_of_health_does_not_keep_others_from_the_news_nor_the_server_from_its_end(attack: str) -> None:
    with (
        running_server("--model", "builtin", "--grpc-port", "0") as server,
        connections(port_of(server), 1, window=0) as (greedy,),
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        first = watched_health(channel)
        assert next(first).status == health_pb2.HealthCheckResponse.SERVING
        greedy.send(greedy.open(WATCH), framed(b""))
        time.sleep(0.3)
        if attack == "leaves":
            greedy.close()
            time.sleep(0.3)
        second = watched_health(channel)
        assert next(second).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        assert next(first).status == next(second).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.process.wait(15) == 0


@pytest.mark.slow
def test_a_stream_that_waits_for_its_caller_does_not_hold_the_shutdown() -> None:
    with (
        running_server("--model", "builtin", "--grpc-port", "0") as server,
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        questions = _Questions()
        questions.ask("first")
        answers = RerankerStub(channel).RerankStream(iter(questions), timeout=20)
        assert next(answers).id == "first"
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        questions.end()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in raised.value.details()
        assert server.process.wait(15) == 0


def test_metadata_that_is_no_ascii_is_refused_in_one_line_and_never_logged(server: RunningServer) -> None:
    with connections(port_of(server), 1) as (connection,):
        for value in (b"\xff\xfesecret", "sécret".encode()):
            end = connection.call(RERANK, SMALL.SerializeToString(), (b"x-odd", value))
            assert end["grpc-status"] == INVALID_ARGUMENT
            assert end["grpc-message"].startswith(b"the metadata 'x-odd' is not ASCII; send it under a name that ends")
    log = server.log.read_text()
    assert len([line for line in log.splitlines() if "invalid_metadata" in line]) == 2
    assert "Traceback" not in log
    assert "cret" not in log


def _extremes(field: FieldDescriptor) -> list[object]:
    kind = FieldDescriptor
    if field.cpp_type == kind.CPPTYPE_UINT32:
        return [0, 1, 2**31, 2**32 - 1]
    if field.cpp_type in (kind.CPPTYPE_INT32, kind.CPPTYPE_ENUM):
        return [-(2**31), -1, 0, 1, 2**31 - 1]
    if field.cpp_type == kind.CPPTYPE_UINT64:
        return [0, 2**63, 2**64 - 1]
    if field.cpp_type == kind.CPPTYPE_STRING and not field.is_repeated:
        return ["", "\0", "x" * MB]
    return []


REQUESTS = [(RERANK, SMALL), (b"/tei.v1.Rerank/Rerank", tei.RerankRequest(query="q", texts=["a", "b"]))]


@pytest.mark.parametrize(("path", "request_"), REQUESTS, ids=["crossrank.v1", "tei.v1"])
def test_every_field_takes_its_extremes_or_refuses_them(
    server: RunningServer, path: bytes, request_: pb.RerankRequest
) -> None:
    tried = 0
    with connections(port_of(server), 1) as (connection,):
        for field in request_.DESCRIPTOR.fields:
            for value in _extremes(field):
                message = type(request_)()
                message.CopyFrom(request_)
                setattr(message, field.name, value)
                end = connection.call(path, message.SerializeToString())
                assert end["grpc-status"] in (OK, INVALID_ARGUMENT, b"5"), (field.name, value, end)
                tried += 1
    assert tried >= 8
    assert "Traceback" not in server.log.read_text()


def test_a_slow_message_an_untaken_answer_and_an_idle_connection_have_a_time_limit() -> None:
    args = ("--model", "builtin", "--grpc-port", "0", "--client-timeout-s", "1", "--idle-timeout-s", "1")
    large = pb.RerankRequest(query="q", documents=["x" * 200_000], return_documents=True).SerializeToString()
    with running_server(*args) as server:
        port = port_of(server)
        with connections(port, 2) as (slow, idle), connections(port, 1, window=0) as (untaken,):
            stream = slow.open(RERANK)
            slow.send(stream, framed(b"x" * 1000, size=2000))
            untaken.send(untaken.open(RERANK), framed(large))
            end = slow.end_of(stream, 5)
            assert end["grpc-status"] == DEADLINE_EXCEEDED
            assert end["grpc-message"] == b"the message was not whole after 1 s; send it faster, or in parts"
            for connection in (idle, untaken):
                give_up_at = time.monotonic() + 10
                while connection.alive and time.monotonic() < give_up_at:
                    connection.receive(0.1)
                assert not connection.alive


@pytest.mark.slow
def test_idle_connections_make_room_for_new_ones() -> None:
    with (
        running_server("--model", "builtin", "--grpc-port", "0", "--max-connections", "40") as server,
        connections(port_of(server), 70) as opened,
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        give_up_at = time.monotonic() + 10
        while sum(connection.alive for connection in opened) > 40 and time.monotonic() < give_up_at:
            for connection in opened:
                if connection.alive:
                    connection.receive(0.001)
        assert 0 < sum(connection.alive for connection in opened) <= 40
        assert RerankerStub(channel).Rerank(SMALL, timeout=20, wait_for_ready=True).results
