"""gRPC frame by frame, for tests of what no gRPC library sends: messages without end, answers that are not taken."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable, Iterator

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

RERANK = b"/crossrank.v1.Reranker/Rerank"
STREAM = b"/crossrank.v1.Reranker/RerankStream"
LIST_MODELS = b"/crossrank.v1.Reranker/ListModels"
HEALTH = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"

_TIMEOUT_S = 20.0
_FRAME = 16_384
_ENDS = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)


class RawGrpc:
    """A connection to 127.0.0.1 that keeps to flow control and to nothing else.

    Attributes:
        h2: Makes and reads the frames.
        trailers: Of the streams that have ended, by id: names and values.
        alive: The server has not closed the connection.
    """

    def __init__(self, port: int, window: int | None = None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.trailers: dict[int, dict[str, bytes]] = {}
        self.alive = True
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.flush()

    def open(self, path: bytes, *metadata: tuple[bytes, bytes]) -> int:
        """Begin an RPC and return its stream."""
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"test")]
        fixed = [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
        self.h2.send_headers(stream, [*pseudo, *fixed, *metadata])
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, patience_s: float = 2.0) -> int:
        """Send as much as the server takes, and return how much that was."""
        sent, give_up_at = 0, time.monotonic() + patience_s
        while sent < len(data) and self.alive and stream not in self.trailers and time.monotonic() < give_up_at:
            size = min(self.h2.local_flow_control_window(stream), _FRAME, len(data) - sent)
            if size > 0:
                self.h2.send_data(stream, data[sent : sent + size])
                self.flush()
                sent += size
            elif self.receive(0.1):
                give_up_at = time.monotonic() + patience_s
        return sent

    def call(self, path: bytes, message: bytes, *metadata: tuple[bytes, bytes]) -> dict[str, bytes]:
        """Return the trailers of a whole unary RPC."""
        stream = self.open(path, *metadata)
        self.send(stream, framed(message))
        if stream not in self.trailers:
            self.h2.end_stream(stream)
        self.flush()
        return self.end_of(stream)

    def end_of(self, stream: int, within_s: float = _TIMEOUT_S) -> dict[str, bytes]:
        """Wait for the end of a stream, and return its trailers."""
        give_up_at = time.monotonic() + within_s
        while stream not in self.trailers and self.alive:
            assert time.monotonic() < give_up_at, "the RPC has no end"
            self.receive(0.1)
        return self.trailers.get(stream, {})

    def receive(self, within_s: float) -> bool:
        """Read what has come, and return whether something has."""
        self._socket.settimeout(within_s)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self.alive = bool(data)
        for event in self.h2.receive_data(data) if data else ():
            stream = getattr(event, "stream_id", None) or 0
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                found = {name.decode(): value for name, value in event.headers}
                if "grpc-status" in found:
                    self.trailers[stream] = found
            if isinstance(event, _ENDS):
                self.trailers.setdefault(stream, {})
        self.flush()
        return True

    def flush(self) -> None:
        """Send the frames that were made."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.sendall(self.h2.data_to_send())

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def framed(message: bytes, size: int | None = None) -> bytes:
    """Return a message with its prefix, which may say another size."""
    return struct.pack(">BI", 0, len(message) if size is None else size) + message


@contextlib.contextmanager
def connections(port: int, count: int, window: int | None = None) -> Iterator[list[RawGrpc]]:
    """Give connections until the block ends."""
    opened = [RawGrpc(port, window) for _ in range(count)]
    try:
        yield opened
    finally:
        close(opened)


def close(opened: Iterable[RawGrpc]) -> None:
    for connection in opened:
        connection.close()
