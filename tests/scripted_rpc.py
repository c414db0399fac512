"""A real gRPC server on loopback that answers Rerank as a test scripts it, and remembers what it was asked."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from crossrank.errors import CrossrankError
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerServicer, add_RerankerServicer_to_server
from crossrank_server.rpc.errors import DETAILS_KEY, status_from_error


@dataclass(frozen=True)
class RpcReply:
    """What to answer: an error of the server's tree, a bare status as proxies send it, or a ranking; after a delay."""

    error: CrossrankError | None = None
    code: grpc.StatusCode | None = None
    details: str = ""
    delay_s: float = 0.0


@dataclass
class ScriptedRpcServer(RerankerServicer):
    """Gives its replies in turn, the last one over and over.

    Args:
        replies: What to answer.
        port: Where to listen; 0 takes a free one.
        credentials: For TLS.
        max_streams: RPCs that a connection may have under way; None sets no limit.
    """

    replies: list[RpcReply]
    port: int = 0
    credentials: grpc.ServerCredentials | None = None
    max_streams: int | None = None
    requests: list[pb.RerankRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    def __enter__(self) -> ScriptedRpcServer:
        self._released = threading.Event()
        options = [("grpc.so_reuseport", 0)]
        if self.max_streams is not None:
            options.append(("grpc.max_concurrent_streams", self.max_streams))
        self._server = grpc.server(ThreadPoolExecutor(16), options=options)
        add_RerankerServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if self.credentials:
            self.port = self._server.add_secure_port(address, self.credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._released.set()
        self._server.stop(0).wait()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def Rerank(  # noqa: N802 - the name in the .proto
        self, request: pb.RerankRequest, context: grpc.ServicerContext
    ) -> pb.RerankResponse:
        self.at_s.append(time.monotonic())
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.append(context.peer())
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self._released.wait(reply.delay_s)
        if reply.error is not None:
            status = status_from_error(reply.error, "r-1")
            context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()), ("x-request-id", "r-1")))
            context.abort(grpc.StatusCode[reply.error.grpc_status], reply.error.message)
        if reply.code is not None:
            context.abort(reply.code, reply.details)
        results = [pb.RerankResult(index=i, relevance_score=-i) for i in range(len(request.documents))]
        return pb.RerankResponse(id="rr-1", model="m", results=results)
