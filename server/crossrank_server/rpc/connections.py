"""Ask the kernel about the TCP connections of this process, which gRPC neither counts nor closes for its user."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from urllib.parse import unquote

# Offset of tcpi_bytes_received in struct tcp_info, and the bytes that hold all before it and itself (Linux 4.1).
# Source: https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/tcp.h
_BYTES_RECEIVED = 128
_TCP_INFO_BYTES = 136
_MAPPED_IPV4 = "::ffff:"


def address_of(peer: str) -> str:
    """Return the address of a peer as gRPC names it, without its port: `ipv4:10.0.0.7:5000` has `10.0.0.7`."""
    return _endpoint(peer)[0]


def received_bytes() -> dict[tuple[str, int], int]:
    """Return how many bytes each open connection has received since it was opened, by its peer's address and port."""
    received = {}
    for connection, peer in _connections():
        with contextlib.suppress(OSError, struct.error):  # Closed meanwhile, or no TCP.
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            received[peer] = int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])
    return received


def received_of(received: dict[tuple[str, int], int], peer: str) -> int | None:
    """Return the count of a peer as gRPC names it; None if it has left."""
    return received.get(_endpoint(peer))


def hang_up(peer: str) -> None:
    """End the connection of a peer, as if it had ended it: gRPC then drops its RPCs and what it holds for them."""
    for connection, found in _connections():
        if found == _endpoint(peer):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _connections() -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """Yield the connections of this process and their peers; each is valid until the next is asked for."""
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=int(name))
        except OSError:  # No socket, or closed meanwhile.
            continue
        try:
            peer = connection.getpeername()
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                yield connection, (_plain(peer[0]), peer[1])
        except OSError:  # It listens.
            continue
        finally:
            connection.detach()  # It is gRPC's, or another's: never closed here.


def _endpoint(peer: str) -> tuple[str, int]:
    _, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    return _plain(host.strip("[]")), int(port) if port.isdigit() else 0


def _plain(host: str) -> str:
    return host.partition("%")[0].removeprefix(_MAPPED_IPV4)
