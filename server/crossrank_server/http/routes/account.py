"""Serve GET /account: scopes, limits, credit and usage of the caller's key."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request, Response

from crossrank_server.accounts.base import SCOPES, Account
from crossrank_server.http.body import JsonResponse
from crossrank_server.http.handler import HttpHandler
from crossrank_server.http.schema.answers import ErrorResponse

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 403, 503)}


def account_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/account", responses=_ERRORS)
    @router.get("/v1/account", responses=_ERRORS)
    async def account(request: Request) -> Response:
        """Tell the caller's limits, credit and usage; where keys are off `key` is null and nothing is limited."""
        call = await handler.open(request, "account")
        statement = await handler.service.accounts.statement(call.account)
        return JsonResponse(_answer(call.account, statement), headers=call.response_headers)

    return router


def _answer(account: Account | None, statement: dict[str, Any] | None) -> dict[str, Any]:
    """Build the answer, which has the same form with and without keys."""
    return {
        "object": "account",
        "keys_required": account is not None,
        "key": None
        if account is None
        else {"id": account.key_id, "name": account.name, "expires_at": _expiry(account)},
        "scopes": [scope for scope in SCOPES if account is None or scope in account.scopes],
        "limits": {
            "requests_per_minute": account and account.requests_per_minute,
            "documents_per_minute": account and account.documents_per_minute,
        },
        "currency": "USD",
        **(statement or {"balance": None, "credit": None, "usage": None}),
    }


def _expiry(account: Account) -> str | None:
    if account.expires_at is None:
        return None
    return datetime.fromtimestamp(account.expires_at, timezone.utc).isoformat(timespec="seconds")
