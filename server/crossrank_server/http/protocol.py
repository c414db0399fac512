"""Speak HTTP/1.1 as uvicorn and httptools do, except where they would lose a request or an answer, or have no limit.

- An Upgrade header is ignored; uvicorn would drop the body that follows it.
- Bytes that are not HTTP are refused with the one error body, after the answers to the requests before them.
- Fields of trailers do not become headers.
- Heads, trailers, the number of chunks and that of pipelined requests have limits.
- The work for pipelined requests, too, is dropped when the client disconnects.

Sources:
    https://www.rfc-editor.org/rfc/rfc9110#section-7.8 (Upgrade)
    https://www.rfc-editor.org/rfc/rfc9112#section-3.2 (forms of the request target)
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from crossrank.errors import CrossrankError, InvalidRequest

# Limits of a request's head, or of a body's trailers.
_MAX_HEAD_BYTES = 65_536
_MAX_FIELDS = 100
_HEAD_OVER_LIMIT = f"the request's headers have over {_MAX_HEAD_BYTES} bytes, which is the limit; send fewer or shorter"
# Requests that may wait on a connection for the answer to one before them.
_MAX_PIPELINED = 32
# Each chunk of a body costs about a microsecond, however small it is, in which nobody else is served.
_MAX_CHUNKS = 16_384
# Seconds and bytes for which a connection whose request was refused is still read, and the data thrown away: closing a
# connection with unread data resets it, and the client would lose the answer.
_LINGER_S = 2.0
_LINGER_BYTES = 4_000_000


class OverLimit(Exception):
    """Say what is answered to a request over a limit."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class LenientProtocol(HttpToolsProtocol):
    """Serve one connection. The parameters are those of uvicorn's protocol."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The answer to bytes that are not HTTP, once such have come; nothing is read after them.
        self._refusal: bytes | None = None
        self._running: RequestResponseCycle | None = None
        # Bytes since the newest head began, where its end has not come; of the segment that is parsed; of those that
        # came after the refusal.
        self._head_bytes = 0
        self._segment_bytes = 0
        self._dropped_bytes = 0
        self._chunks = 0
        self._advanced = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request under way; uvicorn itself cancels the last one received."""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a segment."""
        size = self._segment_bytes = len(data)
        if self._refusal is not None:
            self._dropped_bytes += size
            if self._dropped_bytes > _LINGER_BYTES:
                self.flow.pause_reading()
            return
        self._advanced = False
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse_malformed(error)
            return
        self._head_bytes = 0 if self._advanced else self._head_bytes + size
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _HEAD_OVER_LIMIT)

    def _parse(self, data: bytes) -> None:
        """Feed the parser. It stops after a head with an Upgrade header; a new parser continues."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as stop:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(
                        HTTPStatus.NOT_IMPLEMENTED,
                        "CONNECT asks for a proxy, which this server is not; send it the requests themselves",
                    )
                    return
                rest = rest[stop.args[0] :]
                head = self._head_without_offer()
                # The old one would read nothing more if the head also says `close`.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)

    def _head_without_offer(self) -> bytes:
        """Return the head that was just parsed, without its Upgrade header."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Begin a head, unless too many requests wait."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise OverLimit(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"over {_MAX_PIPELINED} requests wait on this connection for the answer to one before them, which is "
                "the limit: wait for answers, or use more connections",
            )
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        if len(self.url) + len(url) > _MAX_HEAD_BYTES:
            raise OverLimit(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"the request's target has over {_MAX_HEAD_BYTES} bytes, which is the limit; send a body instead",
            )
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a field of a trailer."""
        if len(self.headers) >= _MAX_FIELDS:
            raise OverLimit(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request has over {_MAX_FIELDS} headers, which is the limit; send fewer",
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request, unless its head will be parsed once more without its Upgrade header."""
        self._advanced = True
        if self._head_bytes + self._segment_bytes > _MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > _MAX_HEAD_BYTES:
                raise OverLimit(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _HEAD_OVER_LIMIT)
        if self.parser.should_upgrade():
            return
        if self.parser.get_http_version() == "1.0":
            # A client of HTTP/1.0 does not know the answer 100.
            self.expect_100_continue = False
        if not self.url.startswith(b"/"):
            self.url = _origin_form(self.url)
        super().on_headers_complete()
        if not self.pipeline:
            # It was started at once.
            self._running = self.cycle
        # The request keeps its list; trailers go into this one.
        self.headers = []
        self._chunks = 0

    def on_chunk_header(self) -> None:
        """Begin a chunk of a body, unless there were too many."""
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS:
            raise OverLimit(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body comes in over {_MAX_CHUNKS} chunks, which is the limit; send larger ones, or its length",
            )

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request's body."""
        self._advanced = True
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or refuse what came after the last.

        The time until a next one comes is not measured with a timer here, as uvicorn does for each answer.
        """
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self._begin_next()

    def _begin_next(self) -> None:
        self.flow.resume_reading()
        if self.pipeline:
            self._running, app = self.pipeline.pop()
            self._start_asgi_task(self._running, app)
        elif self._refusal is not None:
            self._send_refusal(self._refusal)

    def _refuse_malformed(self, error: httptools.HttpParserError) -> None:
        self.logger.warning("Invalid HTTP request received.")
        if isinstance(error.__context__, OverLimit):
            self._refuse(error.__context__.status, error.__context__.message)
            return
        if self.parser.get_method() == b"PRI":
            self._refuse(
                HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
                "this port does not speak HTTP/2; send HTTP/1.1, or put a proxy that speaks HTTP/2 in front",
            )
            return
        reason = str(error)
        if isinstance(error, httptools.HttpParserCallbackError):
            reason = (
                f"its target {self.url[:100].decode('ascii', 'backslashreplace')} is neither a path nor a URL in ASCII"
            )
        self._refuse(HTTPStatus.BAD_REQUEST, f"the request cannot be read as HTTP/1.1: {reason}")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error of the caller once the requests before are answered, and then close the connection."""
        code = status.phrase.lower().replace(" ", "_")
        self._refuse_with(InvalidRequest(message, code=code), status)

    def _refuse_with(self, error: CrossrankError, status: HTTPStatus | None = None) -> None:
        """Answer with any error in the same way, under its own status unless another is given."""
        self._refusal = self._rendered(status or error.http_status, error)
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            # The error is within the body of this request, which therefore gets this answer and no other.
            cycle.scope["state"]["refusal"] = error
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
                return
        elif self.pipeline or (cycle is not None and not cycle.response_complete):
            return
        self._send_refusal(b"" if cycle is not None and cycle.more_body and cycle.response_started else self._refusal)

    def _rendered(self, status: int, error: CrossrankError) -> bytes:
        body = orjson.dumps(error.as_body())
        retry_after = [] if error.retry_after_s is None else [(b"retry-after", b"%d" % max(1, error.retry_after_s))]
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *retry_after,
        ]
        return b"".join([STATUS_LINE[status], *(b"%s: %s\r\n" % field for field in headers), b"\r\n", body])

    def _send_refusal(self, answer: bytes) -> None:
        if self.transport.is_closing():
            return
        # Their memory: nothing is parsed any more.
        self.parser, self.headers, self.url = None, [], b""  # type: ignore[assignment]
        self.flow.resume_reading()
        self.transport.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)


def _origin_form(target: bytes) -> bytes:
    """Return a request target without scheme and host: what follows them, at least `/`; `*` stays.

    Raises:
        httptools.HttpParserInvalidURLError: It is none of the forms.
    """
    url = httptools.parse_url(target)
    query = b"" if url.query is None else b"?" + url.query
    return (url.path or b"/") + query
