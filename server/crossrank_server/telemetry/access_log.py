"""Log a line for each request: route, status, times and counts, but no text, no URL and no error message.

Error messages quote values of the request and URLs may hold a query, so that a line has the error's code and the
route's template instead.
"""

from __future__ import annotations

import logging
from typing import Any

from crossrank_server.telemetry.base import Exchange, ScoredBatch

_log = logging.getLogger("crossrank.access")


class AccessLog:
    """Log requests; an `Observer`. Failures of the server are logged as errors, probes at debug level."""

    def finished(self, exchange: Exchange) -> None:
        """Log one line, at the level of the outcome."""
        level = _level(exchange)
        if not _log.isEnabledFor(level):
            return
        _log.log(level, "%s %s %s", exchange.method, exchange.route, exchange.status, extra=facts_of(exchange))

    def batch_scored(self, batch: ScoredBatch) -> None:
        """Log nothing: a busy server scores hundreds a second."""

    def close(self) -> None:
        """Do nothing: lines are written at once."""


def _level(exchange: Exchange) -> int:
    if exchange.is_probe:
        return logging.DEBUG
    return logging.ERROR if exchange.failed else logging.INFO


def facts_of(exchange: Exchange) -> dict[str, Any]:
    """Return the fields of a line; times in milliseconds."""
    facts: dict[str, Any] = {
        "request_id": exchange.request_id,
        "protocol": exchange.protocol,
        "route": exchange.route,
        "status": exchange.status,
        "code": exchange.code,
        "duration_ms": round(exchange.duration_s * 1e3, 3),
    }
    if exchange.trace_id:
        facts["trace_id"] = exchange.trace_id
    call = exchange.call
    if call is None:
        return facts
    if call.account is not None:
        facts["key_id"] = call.account.key_id
    if call.model:
        facts |= {
            "model": call.model,
            "tier": call.tier,
            "documents": call.documents,
            "tokens": call.tokens,
            "truncated_documents": call.truncated_documents,
            "query_truncated": call.query_truncated,
            "stages_ms": {name: round(seconds * 1e3, 3) for name, seconds in call.stages_s.items()},
        }
    return facts
