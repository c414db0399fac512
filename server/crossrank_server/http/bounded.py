"""Serve HTTP/1.1 connections whose clients cannot hold memory or make the server wait as they like."""

from __future__ import annotations

import socket
import time
from typing import Any

from crossrank.errors import BackendUnavailable, CrossrankError, Overloaded, RequestTimedOut
from crossrank_server.http.connections import LEAST_RATE, Connections, Patience
from crossrank_server.http.protocol import LenientProtocol

# Bytes that a connection may hold unread without being counted, so that ordinary requests are not.
_UNCOUNTED_BYTES = 4096
# The buffer of answers, at which the next request waits until the client has read.
_ANSWER_BUFFER_BYTES = 16_384
# Seconds for which a closing connection waits for the client's own farewell in TLS.
_FAREWELL_S = 2.0
# Seconds between looks at whether a client that has closed its side is gone: first, and in the end.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.001, 0.1


class BoundedProtocol(LenientProtocol):
    """Serve one connection.

    A client that has only closed its side for sending gets its answers.

    Args:
        watch: Bounds what all connections hold.
        kwargs: Those of uvicorn's protocol.

    Source: https://www.rfc-editor.org/rfc/rfc9112#section-9.6 (closing one side)
    """

    def __init__(self, watch: Connections, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._watch = watch
        self._patience = Patience()
        self._requests = 0
        # Bytes received in all, and of requests that are not yet under way.
        self._received_bytes = 0
        self._ahead_bytes = 0
        self._counted = False
        # The next request waits until the client has read the last answer.
        self._held_back = False

    @property
    def host(self) -> str:
        """Address of the client."""
        return self.client[0] if self.client else ""

    @property
    def waits_since(self) -> float | None:
        """When it began to wait for a request (`time.monotonic`); None while one is under way."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        return None if under_way or self.transport.get_write_buffer_size() else self._patience.since

    def unread_bytes(self) -> int:
        """Bytes received that no application has read."""
        cycle = self.cycle
        return self._ahead_bytes + (0 if cycle is None or cycle.response_complete else len(cycle.body))

    def unsent_bytes(self) -> int:
        """Bytes of answers that the client has not taken."""
        return int(self.transport.get_write_buffer_size())

    def drop(self) -> None:
        """Close it at once."""
        self.transport.abort()

    def check_time(self, now: float) -> None:
        """Close it if its client is overdue."""
        waits_for, moved_bytes, limit_s = self._waits_for()
        if not waits_for:
            self._patience.reset(now)
        elif self._patience.is_over(waits_for, moved_bytes, limit_s, now):
            if waits_for.startswith(("head", "body")):
                self._refuse_slow(waits_for[:4], limit_s)
            elif waits_for.startswith("request"):
                self.transport.close()
            else:
                self.drop()

    def _waits_for(self) -> tuple[str, int, float]:
        """Return what the client has to do now, bytes that it has moved in doing so, and seconds that it may not.

        The first is empty where it is the server's turn.
        """
        timeout_s, cycle = self._watch.client_timeout_s, self.cycle
        if unsent := self.transport.get_write_buffer_size():
            return "answer", -unsent, timeout_s
        if self.transport.is_closing():
            return "farewell", 0, _FAREWELL_S
        if self._refusal is not None:
            return "", 0, 0.0
        if cycle is not None and not cycle.response_complete:
            busy = cycle.waiting_for_100_continue or self.flow.read_paused or cycle.response_started
            return "" if busy or not cycle.more_body else f"body {self._requests}", self._received_bytes, timeout_s
        if self._head_bytes:
            return f"head {self._requests}", 0, timeout_s
        return f"request {self._requests}", 0, self._watch.limits.idle_timeout_s if self._requests else timeout_s

    def connection_made(self, transport: Any) -> None:
        """Begin, unless there are too many connections."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_ANSWER_BUFFER_BYTES)
        self._patience.reset(time.monotonic())
        if self._watch.admit(self):
            return
        if self._watch.crowded:
            self.drop()
            return
        self._refuse_with(
            BackendUnavailable(
                f"all {self._watch.limits.max_connections} connections are in use: try again in a second, or raise "
                "--max-connections",
                retry_after_s=1.0,
            ),
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._watch.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a segment, and count what it leaves unread."""
        self._received_bytes += len(data)
        super().data_received(data)
        self._ahead_bytes = self._ahead_bytes + len(data) if self.pipeline or not self._advanced else 0
        unread_bytes = self.unread_bytes()
        if unread_bytes > _UNCOUNTED_BYTES or self._counted:
            self._counted = unread_bytes > _UNCOUNTED_BYTES
            if not self._watch.count_unread(self, unread_bytes):
                self._refuse_greedy(unread_bytes)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._requests += 1
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request once the client has read the answer."""
        self._held_back = self.flow.write_paused
        super().on_response_complete()

    def _begin_next(self) -> None:
        if self._held_back or self.transport.is_closing():
            return
        super()._begin_next()
        if not self.pipeline:
            self._ahead_bytes = 0

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has closed its side for sending only; return whether the connection stays open.

        One that has closed both sides looks the same until something is sent to it, so it is sent an interim answer,
        which any client of HTTP/1.1 has to ignore. HTTP/1.0 has none, and proxies that speak it hang up like this.
        """
        running, last = self._running, self.cycle
        if running is None or last.response_complete or last.more_body:
            return None
        if self.scheme == "https" or running.scope["http_version"] == "1.0":
            return None
        last.keep_alive = False
        if not running.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._drop_if_gone(_FIRST_LOOK_S)
        return True

    def pause_writing(self) -> None:
        """Note that the client does not take its answer as fast as it comes."""
        super().pause_writing()
        self._watch.fill(self)

    def resume_writing(self) -> None:
        """Go on with what waited for the client to read."""
        super().resume_writing()
        self._watch.drain(self)
        self._patience.reset(time.monotonic())
        if self._held_back:
            self._held_back = False
            self._begin_next()

    def _drop_if_gone(self, look_again_s: float) -> None:
        """Drop the connection once its client has answered that it is gone; the event loop no longer looks."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.drop()
        else:
            self.loop.call_later(look_again_s, self._drop_if_gone, min(2 * look_again_s, _LAST_LOOK_S))

    def _refuse_slow(self, part: str, limit_s: float) -> None:
        error: CrossrankError
        if self._watch.draining:
            error = BackendUnavailable(
                f"the server is shutting down and the request's {part} did not come: send it again", retry_after_s=1.0
            )
        elif part == "head":
            error = RequestTimedOut(
                f"the request's headers did not come whole within {limit_s:g} s: send them at once, or raise "
                "--client-timeout-s"
            )
        else:
            error = RequestTimedOut(
                f"the request's body stopped for {limit_s:g} s, or came with less than {LEAST_RATE} bytes a second: "
                "send it faster, or raise --client-timeout-s"
            )
        self._refuse_with(error)

    def _refuse_greedy(self, unread_bytes: int) -> None:
        if self._refusal is None:
            error = Overloaded(
                f"requests of all clients that are not read yet hold the memory for such, and {unread_bytes} bytes of "
                "it this connection: try again in a second",
                retry_after_s=1.0,
            )
            self._refuse_with(error)
