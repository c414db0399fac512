"""A real HTTP server on loopback that answers as a test scripts it, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """What to answer: after a delay, or by hanging up halfway through the body."""

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang_up: bool = False


@dataclass(frozen=True)
class Request:
    """What was asked, when (seconds since the epoch), and over which connection (the client's port)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float
    client_port: int


def answer(documents: int = 1, **fields: object) -> Reply:
    """Return a valid answer that ranks the documents in the order they came."""
    body = {
        "id": "rr-1",
        "model": "m",
        "results": [{"index": i, "relevance_score": 1 / (i + 1)} for i in range(documents)],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        **fields,
    }
    return Reply(200, json.dumps(body).encode())


ANSWER = answer()


class ScriptedServer:
    """Gives its replies in turn, the last one over and over; `requests` lists what came.

    Args:
        replies: What to answer, or functions that say what to answer a request.
        listener: A bound socket to use instead of a new one.
        listening: Whether to accept connections at once, or only after start().
    """

    def __init__(
        self,
        replies: list[Reply | Callable[[Request], Reply]],
        listener: socket.socket | None = None,
        listening: bool = True,
    ) -> None:
        self.requests: list[Request] = []
        self._replies = list(replies)
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self), bind_and_activate=listener is None)
        if listener is not None:
            self._server.socket.close()
            self._server.socket = listener
        self.base_url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        if listening:
            self.start()

    def start(self) -> None:
        """Accept connections."""
        self._server.socket.listen(128)
        self._thread.start()

    def release(self) -> None:
        """End all delays."""
        self._released.set()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def respond(self, request: Request) -> Reply:
        """Note the request and return its reply, after its delay."""
        with self._lock:
            self.requests.append(request)
            scripted = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        reply = scripted if isinstance(scripted, Reply) else scripted(request)
        self._released.wait(reply.delay_s)
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: clients that give up waiting are part of the tests."""


def _handler(script: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            port = self.client_address[1]
            reply = script.respond(Request(self.command, self.path, headers, body, time.time(), port))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body) + reply.hang_up))
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = reply.hang_up

        do_GET = do_POST  # noqa: N815 - the name http.server calls

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output clean."""

    return Handler
