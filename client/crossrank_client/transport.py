"""The seam that carries operations to a server, and HTTP as what crosses it.

A further protocol implements Transport and AsyncTransport; nothing outside this module knows of httpx's clients.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx
from httpx_retries import RetryTransport

from crossrank_client.errors import ConnectionFailed, InvalidResponse, TimedOut, error_from_reply
from crossrank_client.operations import Operation
from crossrank_client.retries import RetryPolicy, retry_after_s

Answer = TypeVar("Answer")

# Connecting takes milliseconds or fails; waiting longer only delays the news.
_MAX_CONNECT_S = 5.0
# Idle connections are kept for less time than the server keeps them (75 s), so that none is used as it is closed.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=30.0)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Transport(Protocol):
    """Carries operations to a server and waits for each."""

    def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError; None means the default timeout."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Carries operations to a server, many at a time."""

    async def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError; None means the default timeout."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and how to speak to it, checked and completed.

    Attributes:
        base_url: Its address; a trailing `/v1` is taken off, as many hosted APIs are given with it.
        api_key: Sent as a bearer token unless empty.
        timeout_s: Longest wait for one step (connecting, sending, the answer) of one attempt.
        retries: When to try again.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout_s: float
    retries: RetryPolicy

    def __post_init__(self) -> None:
        url = self.base_url.strip().rstrip("/").removesuffix("/v1")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {self.base_url!r}; start it with http:// or https://")
        object.__setattr__(self, "base_url", url)
        key = self.api_key.strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError("api_key has characters that cannot be sent in a header; check how it was copied")
        object.__setattr__(self, "api_key", key)
        _timeout(self.timeout_s)

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of httpx's clients."""
        headers = {"user-agent": "crossrank-client", "accept": "application/json"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        return {"base_url": self.base_url, "headers": headers}

    def pool_options(self) -> dict[str, Any]:
        """Return the arguments of httpx's transports; with one of our own httpx does not look for a proxy itself."""
        return {"limits": _LIMITS, "proxy": _proxy_from_environment(httpx.URL(self.base_url))}

    def request_options(self, operation: Operation[Any], timeout_s: float | None) -> dict[str, Any]:
        """Return the arguments of httpx's `request` for one call."""
        body = operation.http_body()
        retries = self.retries if operation.retried else RetryPolicy(0, self.retries.max_wait_s)
        return {
            "method": operation.http_method,
            "url": operation.http_path,
            "content": body,
            "headers": {} if body is None else {"content-type": "application/json"},
            "timeout": _timeout(self.timeout_s if timeout_s is None else timeout_s),
            "extensions": {"retry": retries.new_retry()},
        }

    @contextlib.contextmanager
    def errors_translated(self, timeout_s: float | None) -> Iterator[None]:
        """Raise what httpx raises within as errors of this package."""
        try:
            yield
        except httpx.TimeoutException as error:
            limit = self.timeout_s if timeout_s is None else timeout_s
            step = type(error).__name__
            raise TimedOut(f"{self.base_url} did not answer ({step}, timeout {limit:g} s); raise timeout") from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ConnectionFailed(f"no answer from {self.base_url}: {reason}; is the server running?") from error
        except httpx.DecodingError as error:
            raise InvalidResponse(f"the answer of {self.base_url} cannot be decoded: {error}") from error


class HttpTransport:
    """HTTP over pooled connections; safe to use from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        pool = RetryTransport(httpx.HTTPTransport(**endpoint.pool_options()))
        self._http = httpx.Client(transport=pool, **endpoint.client_options())

    def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError."""
        with self._endpoint.errors_translated(timeout_s):
            response = self._http.request(**self._endpoint.request_options(operation, timeout_s))
        return _answer(operation, response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncHttpTransport:
    """HTTP over pooled connections, for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        pool = RetryTransport(httpx.AsyncHTTPTransport(**endpoint.pool_options()))
        self._http = httpx.AsyncClient(transport=pool, **endpoint.client_options())

    async def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError."""
        with self._endpoint.errors_translated(timeout_s):
            response = await self._http.request(**self._endpoint.request_options(operation, timeout_s))
        return _answer(operation, response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _answer(operation: Operation[Answer], response: httpx.Response) -> Answer:
    if response.status_code in operation.http_answers:
        return operation.answer_from_http(response.status_code, response.content)
    if response.has_redirect_location:
        # Not followed: the key must not go to another host, nor the POST become a GET.
        where = response.headers["location"]
        raise InvalidResponse(f"{response.url} redirects to {where}; make that address the base_url")
    raise error_from_reply(
        response.status_code,
        response.content,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=retry_after_s(response.headers),
    )


def _timeout(seconds: float) -> httpx.Timeout:
    if not seconds > 0:
        raise ValueError(f"timeout is {seconds}; pass seconds, more than 0")
    return httpx.Timeout(seconds, connect=min(seconds, _MAX_CONNECT_S))


def _proxy_from_environment(url: httpx.URL) -> str | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for the address; none for loopback."""
    if url.host in _LOOPBACK or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
