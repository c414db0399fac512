"""The seam that carries operations to a server, and its implementation over HTTP; gRPC is in grpc_transport.py.

No other module uses httpx's clients.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import httpx
from httpx_retries import RetryTransport

from crossrank_client.endpoint import Endpoint
from crossrank_client.errors import ConnectionFailed, InvalidResponse, TimedOut, error_from_reply
from crossrank_client.operations import Operation
from crossrank_client.retries import retry_after_s

Answer = TypeVar("Answer")

# Connecting takes milliseconds or fails; a longer timeout would only delay the error.
_MAX_CONNECT_S = 5.0
# Seconds that an idle connection is kept: less than the server's 75, so that none is used while the server closes it.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=30.0)


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


class HttpTransport:
    """Send operations over pooled HTTP connections; safe to use from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        pool = RetryTransport(httpx.HTTPTransport(**_pool_options(endpoint)))
        self._http = httpx.Client(transport=pool, **_client_options(endpoint))

    def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError."""
        options = _request_options(self._endpoint, operation, timeout_s)
        with _errors_translated(self._endpoint, options["timeout"].read):
            response = self._http.request(**options)
        return _answer(operation, response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncHttpTransport:
    """Send operations over pooled HTTP connections, for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        pool = RetryTransport(httpx.AsyncHTTPTransport(**_pool_options(endpoint)))
        self._http = httpx.AsyncClient(transport=pool, **_client_options(endpoint))

    async def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError."""
        options = _request_options(self._endpoint, operation, timeout_s)
        with _errors_translated(self._endpoint, options["timeout"].read):
            response = await self._http.request(**options)
        return _answer(operation, response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _answer(operation: Operation[Answer], response: httpx.Response) -> Answer:
    if response.status_code in operation.http_answers:
        return operation.answer_from_http(response.status_code, response.content)
    if response.has_redirect_location:
        # Not followed: the key must not reach another host, and the POST must not become a GET.
        where = response.headers["location"]
        raise InvalidResponse(f"{response.url} redirects to {where}; make that address the base_url")
    raise error_from_reply(
        response.status_code,
        response.content,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=retry_after_s(response.headers),
    )


def _client_options(endpoint: Endpoint) -> dict[str, Any]:
    headers = {"user-agent": "crossrank-client", "accept": "application/json", **endpoint.headers}
    return {"base_url": endpoint.base_url, "headers": headers}


def _pool_options(endpoint: Endpoint) -> dict[str, Any]:
    # With a transport of our own httpx does not look for a proxy itself.
    proxy = None if endpoint.is_loopback else _proxy_from_environment(httpx.URL(endpoint.base_url))
    return {"limits": _LIMITS, "proxy": proxy, "verify": endpoint.ssl_context()}


def _request_options(endpoint: Endpoint, operation: Operation[Any], timeout_s: float | None) -> dict[str, Any]:
    body = operation.http_body()
    limit_s = endpoint.limit_s(operation, timeout_s)
    return {
        "method": operation.http_method,
        "url": operation.http_path,
        "content": body,
        "headers": operation.headers if body is None else {"content-type": "application/json", **operation.headers},
        "timeout": httpx.Timeout(limit_s, connect=min(limit_s, _MAX_CONNECT_S)),
        "extensions": {"retry": endpoint.policy_for(operation).new_retry()},
    }


@contextlib.contextmanager
def _errors_translated(endpoint: Endpoint, limit_s: float) -> Iterator[None]:
    """Turn errors of httpx into those of this package."""
    try:
        yield
    except httpx.TimeoutException as error:
        step = type(error).__name__
        raise TimedOut(f"{endpoint.base_url} did not answer ({step}, timeout {limit_s:g} s); raise timeout") from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise ConnectionFailed(f"no answer from {endpoint.base_url}: {reason}; is the server running?") from error
    except httpx.DecodingError as error:
        raise InvalidResponse(f"the answer of {endpoint.base_url} cannot be decoded: {error}") from error


def _proxy_from_environment(url: httpx.URL) -> str | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for the address."""
    if urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
