"""Open the sockets of the server's ports, and let the process have enough descriptors for its connections.

A port that is taken is refused with the remedy.
"""

from __future__ import annotations

import logging
import socket

from crossrank.errors import SetupError

_log = logging.getLogger("crossrank")
# Descriptors for all but HTTP's connections: gRPC's, stores, models, libraries.
_OTHER_DESCRIPTORS = 1024


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a listening socket.

    Args:
        host: Name or address.
        port: 0 takes a free one.
        flag: The setting that names the port, for the message.

    Raises:
        SetupError: The port is taken or the address is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with --host or {flag}") from None


def reserve(host: str, port: int, flag: str) -> socket.socket:
    """Return a bound socket that reserves a port for the workers that share it; it never listens itself.

    Args:
        host: Name or address.
        port: 0 takes a free one.
        flag: The setting that names the port, for the message.

    Raises:
        SetupError: See `listen`.
    """
    # The probe does not share the port, so that it fails if another server has it.
    with listen(host, port, flag) as probe:
        name, family = probe.getsockname(), probe.family
    return _bind_shared(name, family)


def bind_reserved(reserved: socket.socket) -> socket.socket:
    """Return a socket of a worker on a reserved port, which gets its share of the connections once it listens."""
    return _bind_shared(reserved.getsockname(), reserved.family)


def _bind_shared(name: tuple[str, int], family: int) -> socket.socket:
    """Bind a socket to an address that other processes of this user may share (SO_REUSEPORT)."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as create_server does
    bound.bind(name)
    return bound


def port_of(bound: socket.socket) -> int:
    """Return the port of a bound socket."""
    return int(bound.getsockname()[1])


def descriptors_for(connections: int) -> int:
    """Raise the process's limit of open files as far as HTTP's connections need, and return how many of them it allows.

    Args:
        connections: The most that are wanted.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = max(1, soft - min(_OTHER_DESCRIPTORS, soft // 2))
    _log.warning(
        "--max-connections %d needs %d open files, the limit is %d: %d connections are allowed; raise it (ulimit -n)",
        connections,
        wanted,
        soft,
        allowed,
    )
    return allowed
