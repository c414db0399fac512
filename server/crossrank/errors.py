"""Every error a caller can see, and how each protocol reports it.

CrossrankError
|- InvalidRequest         400  the request cannot be scored as it stands
|  |- InvalidInput         400  what a caller of the library gave is not texts; a ValueError too
|  |- RequestTimedOut     408  the request did not come in time
|  |- RequestTooLarge     413  the body is over the limit
|  |- UnsupportedEncoding 415  the body is compressed in a way that is not known here
|  `- ExpectationFailed   417  the header Expect asks for what is not known here
|- Unauthorized           401  the API key is missing, unknown, expired or revoked
|- PaymentRequired        402  the prepaid credit is spent
|- Forbidden              403  the API key may not do this
|- ModelNotFound          404  no such model is served here
|- Overloaded             429  the queue is full: retry after `retry_after_s`
|- RateLimited            429  the API key's own limit is reached: retry after `retry_after_s`
|- EngineFailure          500  the engine broke or answered nonsense; only an error id is shown
|- BackendError           502  an upstream engine answered with an error
|- BackendUnavailable     503  no engine can take requests now: retry after `retry_after_s`
|  |- ModelWarming        503  the model was asleep and is being loaded: retry after `retry_after_s`
|  `- AccountsUnavailable 503  API keys, limits or credit cannot be looked up: retry after `retry_after_s`
|- BackendTimeout         504  the deadline passed
`- SetupError             --   start-up or command line: shown on stderr, exit code 1
   |- BundleError             a bundle does not fit its manifest
   `- ModelSourceError        a model cannot be found, fetched or trusted
"""

from __future__ import annotations

import logging
import uuid
from typing import Any, ClassVar

_log = logging.getLogger("crossrank")

# The words that Text Embeddings Inference has for a failure, by status.
_TEI_ERROR_TYPES = {429: "Overloaded", 503: "Unhealthy"}


class CrossrankError(Exception):
    """Base of all errors whose message is meant for the caller.

    A message states the value, the limit and the remedy.

    Args:
        message: The sentence shown to the caller.
        param: The request field at fault, such as `documents[3]`.
        code: A stable machine-readable word; the class's `default_code` if omitted.
        retry_after_s: Seconds to wait before trying again, where trying again can help.
    """

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    error_type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s

    def as_body(self) -> dict[str, Any]:
        """Return the one JSON body that every client parses.

        `error` is OpenAI's object; Cohere's clients read `message`, Jina's and Voyage's `detail`, TEI's `error_type`.
        """
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s  # type: ignore[assignment]
        error_type = _TEI_ERROR_TYPES.get(self.http_status, "Validation" if self.http_status < 500 else "Backend")
        return {"error": error, "error_type": error_type, "message": self.message, "detail": self.message}


class InvalidRequest(CrossrankError):
    """The request cannot be scored as it stands; sending it again will not help."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    error_type = "invalid_request_error"
    default_code = "invalid_value"


class InvalidInput(InvalidRequest, ValueError):
    """What a caller of the library gave is not what is to be scored: pairs of texts."""


class RequestTimedOut(InvalidRequest):
    """The client did not send its request whole in time, or too slowly."""

    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    default_code = "request_timeout"


class RequestTooLarge(InvalidRequest):
    """The body is over the configured limit and was not read whole."""

    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    default_code = "request_too_large"


class UnsupportedEncoding(InvalidRequest):
    """The body is compressed in a way that the server cannot undo; Accept-Encoding names those it can."""

    http_status = 415
    default_code = "unsupported_encoding"


class ExpectationFailed(InvalidRequest):
    """The header Expect asks for something other than 100-continue."""

    http_status = 417
    default_code = "expectation_failed"


class Unauthorized(CrossrankError):
    """The API key is missing, unknown, expired or revoked."""

    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    error_type = "authentication_error"
    default_code = "invalid_api_key"


class PaymentRequired(CrossrankError):
    """The prepaid credit of the API key does not cover the request."""

    http_status = 402
    grpc_status = "RESOURCE_EXHAUSTED"
    error_type = "insufficient_quota"
    default_code = "out_of_credit"


class Forbidden(CrossrankError):
    """The API key is good, but its scopes do not cover what was asked."""

    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    error_type = "permission_error"
    default_code = "insufficient_scope"


class ModelNotFound(CrossrankError):
    """The named model is not served here."""

    http_status = 404
    grpc_status = "NOT_FOUND"
    error_type = "invalid_request_error"
    default_code = "model_not_found"


class Overloaded(CrossrankError):
    """More work is waiting than the configured queue holds."""

    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    error_type = "rate_limit_error"
    default_code = "overloaded"


class RateLimited(CrossrankError):
    """The API key's requests or documents a minute are used up."""

    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    error_type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class EngineFailure(CrossrankError):
    """The engine raised, or produced a score that is not a finite number."""

    default_code = "engine_failure"


class BackendError(CrossrankError):
    """An upstream inference server answered with an error."""

    http_status = 502
    grpc_status = "INTERNAL"
    default_code = "backend_error"


class BackendUnavailable(CrossrankError):
    """No engine can take requests at the moment."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    error_type = "service_unavailable_error"
    default_code = "backend_unavailable"


class ModelWarming(BackendUnavailable):
    """The model was asleep and is being loaded; `Prefer: wait=N` holds a request up to N seconds instead."""

    default_code = "model_warming"


class AccountsUnavailable(BackendUnavailable):
    """API keys, limits or credit cannot be looked up, as their store does not answer.

    Attributes:
        reason: Why, for operators; callers do not see it.
    """

    default_code = "accounts_unavailable"
    reason: str = ""


class BackendTimeout(CrossrankError):
    """The deadline passed before all scores were there."""

    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    error_type = "timeout_error"
    default_code = "deadline_exceeded"


class SetupError(CrossrankError):
    """The server or a command cannot start with what it was given."""

    error_type = "setup_error"
    default_code = "setup_error"


class BundleError(SetupError):
    """A bundle is incomplete, damaged or does not fit its manifest."""

    default_code = "invalid_bundle"


class ModelSourceError(SetupError):
    """A model cannot be found, fetched or trusted."""

    default_code = "model_source"


def shown_error(error: Exception, request_id: str) -> CrossrankError:
    """Return what the caller is told of a failure; what broke inside is logged, and told as the id of its log line."""
    if isinstance(error, CrossrankError) and error.http_status != 500:
        return error
    error_id = uuid.uuid4().hex[:12]
    _log.error("error %s in request %s", error_id, request_id, exc_info=error)
    code = error.code if isinstance(error, CrossrankError) else CrossrankError.default_code
    return CrossrankError(
        f"the server failed on this request; its log has the cause under error id {error_id}", code=code
    )
