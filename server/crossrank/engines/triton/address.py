"""Parse the addresses of Triton servers in `--triton-url`, and look their names up again as they change."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any

from crossrank.errors import SetupError

_DEFAULT_PORT = 8001
_ADDRESS = re.compile(r"(?:grpc://)?(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+)(?::(\d{1,5}))?/?")


@dataclass(frozen=True)
class Target:
    """Hold one address as the user wrote it.

    Attributes:
        host: A name or an IP address, IPv6 without brackets.
        port: Of Triton's gRPC service.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return address_of(self.host, self.port)

    @property
    def is_name(self) -> bool:
        """Tell whether the host must be looked up."""
        try:
            ipaddress.ip_address(self.host.partition("%")[0])
        except ValueError:
            return True
        return False


def address_of(host: str, port: int) -> str:
    """Return `host:port` as gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def targets_from_url(url: str) -> list[Target]:
    """Parse `grpc://host:8001[,host2:8001]`; the scheme and the port 8001 may be left out.

    Raises:
        SetupError: It is empty, malformed, of another scheme, or names an address twice.
    """
    targets: list[Target] = []
    for part in url.split(","):
        match = _ADDRESS.fullmatch(part.strip())
        if match is None or int(match[2] or 1) not in range(1, 65536):
            raise SetupError(
                f"--triton-url: {part.strip()!r} is no address of Triton's gRPC service; "
                "give it like grpc://host:8001,host2:8001"
            )
        target = Target(match[1].strip("[]"), int(match[2] or _DEFAULT_PORT))
        if target in targets:
            raise SetupError(f"--triton-url names {target} twice: each address is one Triton")
        targets.append(target)
    return targets


def resolve(target: Target) -> list[str]:
    """Return `ip:port` of every server behind a target; a headless Kubernetes service has one for each pod.

    Raises:
        OSError: The name is not known now.
    """
    return _addresses(target, socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))


async def resolve_soon(target: Target) -> list[str]:
    """Do the same without holding up the event loop."""
    loop = asyncio.get_running_loop()
    return _addresses(target, await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))


def _addresses(target: Target, found: list[Any]) -> list[str]:
    # A server on both families would count twice: IPv6 is taken only where a name has nothing else.
    families = [socket.AF_INET] if any(entry[0] == socket.AF_INET for entry in found) else [socket.AF_INET6]
    return sorted({address_of(str(entry[4][0]), target.port) for entry in found if entry[0] in families})
