"""HTTP/1.1 byte by byte, for tests of what well-behaved client libraries do not send."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """One answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawConnection:
    """A connection to 127.0.0.1 that sends what it is told to and reads answers."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S, (source, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def send(self, *segments: bytes) -> None:
        """Send each segment on its own."""
        for segment in segments:
            self._socket.sendall(segment)

    def answer(self) -> Answer:
        """Read the next answer, one with status 100 too; 204 and 100 have no body."""
        version, status, *_ = self._file.readline().decode().split()
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in http.client.parse_headers(self._file).items()}
        length = 0 if status in ("100", "204") else int(headers["content-length"])
        return Answer(int(status), headers, self._file.read(length))

    def end(self) -> None:
        """Close the side for sending."""
        self._socket.shutdown(socket.SHUT_WR)

    def closed(self) -> bool:
        """Wait until the server has closed the connection, and tell whether nothing came before that."""
        return self._file.read() == b""

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def connected(port: int, source: str = "127.0.0.1") -> Iterator[RawConnection]:
    """Give a connection from an address of this machine until the block ends."""
    connection = RawConnection(port, source)
    try:
        yield connection
    finally:
        connection.close()


def request(
    target: str, body: bytes | None = None, *headers: str, method: str = "", version: str = "1.1", chunked: bool = False
) -> tuple[bytes, bytes]:
    """Return head and body of a request: POST where it has a body, unless a method is given.

    Args:
        target: Of the request line.
        body: JSON; None has none.
        headers: Lines.
        method: In place of POST or GET.
        version: Of HTTP.
        chunked: Send the body in chunks, in place of its length.
    """
    lines = [f"{method or ('GET' if body is None else 'POST')} {target} HTTP/{version}", "Host: localhost", *headers]
    if body is not None:
        lines += ["Content-Type: application/json"]
        lines += ["Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"]
    head = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
    if body is not None and chunked:
        half = len(body) // 2
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"
    return head, body or b""
