"""Read request bodies within limits, and refuse the others so that the client sees why."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from crossrank.errors import RequestTooLarge
from crossrank_server.held import HeldBytes, Holding
from crossrank_server.http.codings import BodyDecoder

# Bodies and answers may be in memory at a time as if they were so many bodies of the largest size: 7 of one caller.
_LARGEST_BODIES_HELD = 16
# Seconds and bytes for which a refused body is still read (and thrown away), so that the client sees the refusal.
_LINGER_S = 2.0
_LINGER_BYTES = 64_000_000
# An answer is handed to the connection in pieces of this size, the next one when the client has read most of the last.
_PIECE_BYTES = 262_144
# Seconds of decompressing until other requests get their turn.
_TURN_S = 0.002


class BodyReader:
    """Read request bodies into memory, within a limit for each and one for all.

    Args:
        max_bytes: Limit for one body, as it is sent and decompressed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held = HeldBytes(_LARGEST_BODIES_HELD * max_bytes)

    async def read(self, request: Request, holding: Holding) -> bytearray:
        """Return the decompressed body of a request.

        Args:
            request: The request; its stream is read.
            holding: Counts the body as in memory until it is closed.

        Raises:
            RequestTooLarge: The body is over the limit, by its declared length or once that much has come.
            Overloaded: See `Holding.add`.
            UnsupportedEncoding: The body is in a coding that is not supported.
            InvalidRequest: The body is not in the coding that its header names.
        """
        body = bytearray()
        # An answer to a body that was not read whole must be sent as LingeringResponse.
        request.state.body_unread = True
        decoder = BodyDecoder(request.headers.getlist("content-encoding"))
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large(f"{declared} bytes")
        async for chunk in request.stream():
            turn_ends = time.perf_counter() + _TURN_S
            for piece in decoder.pieces(chunk):
                body += piece
                holding.add(len(piece))
                if decoder.size > self._max_bytes:
                    raise self._too_large(f"over {decoder.size - 1} bytes")
                if time.perf_counter() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = time.perf_counter() + _TURN_S
        request.state.body_unread = False
        decoder.finish()
        return body

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


class HeldResponse(JsonResponse):
    """Hold the bytes of an answer until the client has read them.

    Args:
        content: Of the answer.
        holding: Of its request; closed when the answer is sent.
        headers: Of the answer.
    """

    def __init__(self, content: Any, holding: Holding, headers: Mapping[str, str]) -> None:
        super().__init__(content, headers=headers)
        self._holding = holding
        holding.become(len(self.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; a large one as fast as the client reads."""
        try:
            if len(self.body) <= _PIECE_BYTES:
                await super().__call__(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), _PIECE_BYTES):
                piece = self.body[start : start + _PIECE_BYTES]
                more = start + _PIECE_BYTES < len(self.body)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        finally:
            self._holding.close()


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
