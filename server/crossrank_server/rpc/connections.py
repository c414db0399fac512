"""Ask the kernel about the TCP connections of this process, which gRPC neither counts nor closes for its user."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Collection, Iterator
from urllib.parse import unquote

# Offset of tcpi_bytes_received in struct tcp_info, and the bytes that hold all before it and itself (Linux 4.1).
# Source: https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/tcp.h
_BYTES_RECEIVED = 128
_TCP_INFO_BYTES = 136
Peer = tuple[str, int]
_MAPPED_IPV4 = "::ffff:"


def peer_from_name(name: str) -> Peer:
    """Return what gRPC calls `ipv4:10.0.0.7:5000` or `ipv6:%5B::1%5D:5000` as the address and the port."""
    _, _, address = unquote(name).partition(":")
    host, _, port = address.rpartition(":")
    return _plain(host.strip("[]")), int(port) if port.isdigit() else 0


def received_bytes() -> dict[Peer, int]:
    """Return how many bytes each open connection has received since it was opened, by its peer's address and port."""
    received = {}
    for connection, peer in _connections():
        with contextlib.suppress(OSError, struct.error):  # Closed meanwhile, or no TCP.
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            received[peer] = int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])
    return received


def open_files() -> int:
    """Return the number of open files and connections of this process; far quicker than to look at each."""
    return len(os.listdir("/proc/self/fd"))


def peers_of(port: int) -> list[Peer]:
    """Return the peers of the open connections to a port of this process."""
    found = []
    for connection, peer in _connections():
        with contextlib.suppress(OSError):
            if connection.getsockname()[1] == port:
                found.append(peer)
    return found


def hang_up(peers: Collection[Peer]) -> None:
    """End the connections of peers, as if they had: gRPC then drops their RPCs and what it holds for them."""
    for connection, peer in _connections():
        if peer in peers:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _connections() -> Iterator[tuple[socket.socket, Peer]]:
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


def _plain(host: str) -> str:
    return host.partition("%")[0].removeprefix(_MAPPED_IPV4)
