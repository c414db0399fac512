"""Sockets of the ports that the server was asked to listen on; a taken one is refused with its remedy."""

from __future__ import annotations

import socket

from crossrank.errors import SetupError


def listen(host: str, port: int, flag: str, *, share: bool = False) -> socket.socket:
    """Return a listening socket.

    Args:
        host: Name or address.
        port: 0 takes a free one.
        flag: The setting that names the port, for the message.
        share: Other processes of this user that share it too may listen on the same port (SO_REUSEPORT).

    Raises:
        SetupError: The port is taken or the address is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048, reuse_port=share)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with --host or {flag}") from None


def hold(host: str, port: int, flag: str) -> socket.socket:
    """Return a socket that keeps a port for processes that share it, and gets no connection itself.

    Args:
        host: Name or address.
        port: 0 takes a free one.
        flag: The setting that names the port, for the message.

    Raises:
        SetupError: See `listen`.
    """
    # Not shared, so that a port of another server is seen to be taken.
    with listen(host, port, flag) as probe:
        held = socket.socket(probe.family, socket.SOCK_STREAM)
        name = probe.getsockname()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if held.family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as create_server does
    held.bind(name)
    return held


def port_of(held: socket.socket) -> int:
    """Return the port of a socket."""
    return int(held.getsockname()[1])
