"""Every error the client raises.

CrossrankClientError
|- APIError              the server answered with an error: status, message, param, code, request_id and more
|  |- BadRequest          400, 422  the request cannot be scored as it stands; `param` names the field
|  |- Unauthorized        401  the API key is missing or unknown
|  |- PaymentRequired     402  the credit is spent
|  |- Forbidden           403  the API key may not do this
|  |- NotFound            404  no such model, or no such route: is base_url a crossrank server?
|  |- TooLarge            413  the body is over the server's limit
|  |- RateLimited         429  too much at once: try again after `retry_after_s`
|  `- ServerError         5xx  the server failed; quote `request_id` when reporting it
|     |- Unavailable      503  cannot score now: try again after `retry_after_s`
|     `- Timeout          504  the server gave up on the request
|- ConnectionFailed       no server was reached, or it hung up before it answered
|- TimedOut               the server did not answer within the client's `timeout`
|- InvalidResponse        the server answered, but not as a crossrank server does
|- NotSupported           the protocol of the address has no such call: account() over gRPC
`- PartialFailure         some requests of rerank_many or rerank_each failed; it holds the answers to the others

Statuses are HTTP's; over gRPC an error has the status that HTTP has for it. 429 and 503 are raised only after the
retries are used up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from crossrank_client.results import RerankResponse

# Characters quoted of an answer that is not a crossrank server's, such as a proxy's HTML page.
_QUOTED_CHARACTERS = 200


class CrossrankClientError(Exception):
    """Base of all errors of this package."""


class ConnectionFailed(CrossrankClientError):
    """No server was reached, or it hung up before it answered."""


class TimedOut(CrossrankClientError):
    """The server did not answer within the client's timeout."""


class InvalidResponse(CrossrankClientError):
    """The server answered with something that is not a crossrank answer."""


class NotSupported(CrossrankClientError):
    """The protocol of the address has no such call."""


class APIError(CrossrankClientError):
    """The server answered with an error.

    Attributes:
        status: HTTP status code; over gRPC the one that HTTP has for this error.
        message: The server's message: value, limit and remedy.
        type: The kind of error, such as `invalid_request_error`.
        param: The request field at fault, such as `documents[3]`.
        code: A stable machine-readable word, such as `model_not_found`.
        request_id: Identifies the request in the server's log.
        retry_after_s: Seconds after which the server wants to be asked again.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.type: str | None = None
        self.param: str | None = None
        self.code: str | None = None
        self.request_id: str | None = None
        self.retry_after_s: float | None = None

    def __str__(self) -> str:
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.message} (status {self.status}{request})"


class BadRequest(APIError):
    """The request cannot be scored as it stands; sending it again will not help."""


class Unauthorized(APIError):
    """The API key is missing or unknown."""


class PaymentRequired(APIError):
    """The credit is spent."""


class Forbidden(APIError):
    """The API key is good, but may not do this."""


class NotFound(APIError):
    """The server has no such model, or no such route."""


class TooLarge(APIError):
    """The body is over the server's limit; split the documents over several requests."""


class RateLimited(APIError):
    """Too many requests or documents at once."""


class ServerError(APIError):
    """The server failed to answer a good request."""


class Unavailable(ServerError):
    """The server cannot score at the moment."""


class Timeout(ServerError):
    """The server gave up on the request at its own deadline."""


class PartialFailure(CrossrankClientError):
    """Some of many requests failed; nothing that was answered is lost.

    Attributes:
        responses: Answers by number of the request, from 0; those of rerank_many hold logits, and indices count over
            all documents.
        failures: Errors by number of the request. A request in neither was not begun.
        total: How many requests there were.
    """

    def __init__(
        self, responses: dict[int, RerankResponse], failures: dict[int, CrossrankClientError], total: int
    ) -> None:
        super().__init__(responses, failures, total)
        self.responses = responses
        self.failures = failures
        self.total = total

    def __str__(self) -> str:
        first = min(self.failures)
        left = self.total - len(self.responses) - len(self.failures)
        return (
            f"of {self.total} requests {len(self.responses)} were answered, {len(self.failures)} failed and {left} "
            f"were not begun; request {first}: {self.failures[first]}"
        )


_CLASS_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthorized,
    402: PaymentRequired,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    422: BadRequest,
    429: RateLimited,
    503: Unavailable,
    504: Timeout,
}


def error_from_reply(status: int, body: bytes, *, request_id: str | None, retry_after_s: float | None) -> APIError:
    """Return the error that an HTTP answer stands for.

    Args:
        status: HTTP status code other than success.
        body: `{"error": {...}}`, or whatever something between client and server made of it.
        request_id: The answer's `x-request-id`.
        retry_after_s: The answer's Retry-After in seconds; the body's `retry_after_s` if None.
    """
    detail = _detail(body)
    wait_s = detail.get("retry_after_s") if retry_after_s is None else retry_after_s
    return api_error(
        status,
        _string(detail, "message") or _quoted(status, body),
        detail,
        request_id=request_id,
        retry_after_s=float(wait_s) if isinstance(wait_s, (int, float)) else None,
    )


def api_error(
    status: int,
    message: str,
    detail: Mapping[str, Any],
    *,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> APIError:
    """Return the error of a status.

    Args:
        status: As HTTP has it.
        message: For the caller.
        detail: `type`, `param` and `code`, as far as they are known.
        request_id: As the server calls the request.
        retry_after_s: Seconds after which the server wants to be asked again.
    """
    error = _CLASS_BY_STATUS.get(status, ServerError if status >= 500 else APIError)(status, message)
    error.type = _string(detail, "type")
    error.param = _string(detail, "param")
    error.code = _string(detail, "code")
    error.request_id = request_id
    error.retry_after_s = retry_after_s
    return error


def _detail(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    detail = data.get("error") if isinstance(data, dict) else None
    return detail if isinstance(detail, dict) else {}


def _string(detail: Mapping[str, Any], name: str) -> str | None:
    value = detail.get(name)
    return value if isinstance(value, str) else None


def _quoted(status: int, body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    shown = text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "..."
    return f"the server answered {status} without saying why" + (f": {shown}" if shown else "")
