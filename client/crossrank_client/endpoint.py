"""Hold the address of a server and the way to reach it, checked before the first call."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from crossrank_client.operations import Operation
from crossrank_client.retries import RetryPolicy

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SCHEMES = ("http", "https", "grpc", "grpcs")


@dataclass(frozen=True)
class Endpoint:
    """Hold the address of a server and the way to reach it, checked and completed.

    Attributes:
        base_url: Its address; a trailing `/v1`, which many hosted APIs have, is removed.
        api_key: Sent as a bearer token unless empty.
        timeout_s: Timeout in seconds for one step (connecting, sending, the answer) of one attempt.
        retries: Bounds of the retries.
        ca_file: PEM of the authorities to trust in place of the usual ones.
        client_cert: PEM files of the certificate to present and of its key.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout_s: float
    retries: RetryPolicy
    ca_file: str | None = None
    client_cert: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        url = self.base_url.strip().rstrip("/").removesuffix("/v1")
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(f"base_url is {self.base_url!r}; start it with http://, https://, grpc:// or grpcs://")
        if parts.scheme in ("grpc", "grpcs") and (parts.port is None or parts.path or parts.query):
            raise ValueError(f"base_url is {self.base_url!r}; give a host and a port, like {parts.scheme}://host:9000")
        object.__setattr__(self, "base_url", url)
        key = self.api_key.strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError("api_key has characters that cannot be sent in a header; check how it was copied")
        object.__setattr__(self, "api_key", key)
        checked_timeout_s(self.timeout_s)
        if (self.ca_file or self.client_cert) and parts.scheme in ("http", "grpc"):
            raise ValueError(f"base_url is {self.base_url!r}, which has no TLS; leave out ca_file and client_cert")

    @property
    def is_grpc(self) -> bool:
        """Whether the address selects gRPC."""
        return self.base_url.startswith("grpc")

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that no proxy is used."""
        return urlsplit(self.base_url).hostname in _LOOPBACK

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every call."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def limit_s(self, operation: Operation[Any], timeout_s: float | None) -> float:
        """Return the timeout of a call: its own or the client's, plus the seconds that the server may let it wait.

        Raises:
            ValueError: The timeout is not more than 0.
        """
        return checked_timeout_s(self.timeout_s if timeout_s is None else timeout_s) + operation.may_wait_s

    def policy_for(self, operation: Operation[Any]) -> RetryPolicy:
        """Return the retry policy of an operation."""
        return self.retries if operation.retried else RetryPolicy(0, self.retries.max_wait_s)

    def ssl_context(self) -> ssl.SSLContext | bool:
        """Return the SSL context for `ca_file` and `client_cert`; True selects the default one."""
        if not (self.ca_file or self.client_cert):
            return True
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.client_cert:
            context.load_cert_chain(*self.client_cert)
        return context


def checked_timeout_s(seconds: float) -> float:
    """Return a timeout.

    Raises:
        ValueError: It is not more than 0.
    """
    if not seconds > 0:
        raise ValueError(f"timeout is {seconds}; pass seconds, more than 0")
    return seconds
