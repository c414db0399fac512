"""Read request bodies within limits, and refuse the others so that the client sees why."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from crossrank.errors import Overloaded, RequestTooLarge
from crossrank_server.http.codings import BodyDecoder

# Bodies of the largest size that may be in memory at a time; small ones are counted by their bytes.
_LARGEST_BODIES_BUFFERED = 8
# Seconds and bytes for which a refused body is still read (and thrown away), so that the client sees the refusal.
_LINGER_S = 2.0
_LINGER_BYTES = 64_000_000
# Seconds of decompressing until other requests get their turn.
_TURN_S = 0.002


class BodyReader:
    """Read request bodies into memory, within a limit for each and one for all.

    Args:
        max_bytes: Limit for one body, as it is sent and decompressed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_buffered_bytes = _LARGEST_BODIES_BUFFERED * max_bytes
        self._buffered_bytes = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes of all bodies in memory now."""
        return self._buffered_bytes

    @contextlib.asynccontextmanager
    async def read(self, request: Request, *, yields: bool = False) -> AsyncIterator[bytes]:
        """Enter with the decompressed body of a request, which counts as in memory until the block ends.

        Args:
            request: The request; its stream is read.
            yields: It is of the tier `batch`, whose long waits must leave half of the memory to other requests.

        Raises:
            RequestTooLarge: The body is over the limit, by its declared length or once that much has come.
            Overloaded: The bodies of all requests under way are over their common limit.
            UnsupportedEncoding: The body is in a coding that is not supported.
            InvalidRequest: The body is not in the coding that its header names.
        """
        body = bytearray()
        most_buffered_bytes = self._max_buffered_bytes // 2 if yields else self._max_buffered_bytes
        # An answer to a body that was not read whole must be sent as LingeringResponse.
        request.state.body_unread = True
        decoder = BodyDecoder(request.headers.getlist("content-encoding"))
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large(f"{declared} bytes")
        try:
            async for chunk in request.stream():
                turn_ends = time.perf_counter() + _TURN_S
                for piece in decoder.pieces(chunk):
                    body += piece
                    self._buffered_bytes += len(piece)
                    self._check(decoder.size, most_buffered_bytes)
                    if time.perf_counter() > turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = time.perf_counter() + _TURN_S
            request.state.body_unread = False
            decoder.finish()
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)

    def _check(self, size: int, most_buffered_bytes: int) -> None:
        if size > self._max_bytes:
            raise self._too_large(f"over {size - 1} bytes")
        if self._buffered_bytes > most_buffered_bytes:
            raise Overloaded(
                f"requests under way hold {self._buffered_bytes} bytes, the limit is {most_buffered_bytes}; "
                "try again in a second, or send smaller requests",
                retry_after_s=1.0,
            )

    def _too_large(self, size: str) -> RequestTooLarge:
        return RequestTooLarge(
            f"the body has {size}, the limit is {self._max_bytes}; split the request, or raise --max-body-bytes",
            param="body",
        )


class JsonResponse(Response):
    """Write an answer as JSON with orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Serialize the content; non-string keys and NaN do not occur."""
        return orjson.dumps(content)


class LingeringResponse(JsonResponse):
    """Answer before the body is read, then drain it for a moment.

    Closing a socket with unread data resets the connection, and the client would lose the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer, and end the response when the client has had time to read it."""
        self.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drain(receive), _LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    drained = 0
    while drained < _LINGER_BYTES:
        message = await receive()
        drained += len(message.get("body", b""))
        if not message.get("more_body"):
            return
