"""A call: who asks, how urgently and until when, and where its time went. The same for HTTP and gRPC.

HTTP headers and gRPC metadata have the same lower-case names, so that both transports open a call with `open_call`.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from crossrank.errors import InvalidRequest
from crossrank_server.accounts.base import Account, Accounts

Tier = Literal["realtime", "batch"]

# Where a request's time goes, in order.
STAGES = ("parse", "tokenize", "queue", "inference", "respond")

# A request may be held at most this long while its model is loaded.
MAX_WAIT_S = 300.0

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)


@dataclass
class Call:
    """One request, beside its text.

    Attributes:
        request_id: Names the request in answers and logs.
        account: Whose key was presented; None where keys are off.
        tier: `batch` gives way to `realtime` and has its own price.
        wait_s: Seconds the caller is willing to wait for a model that is asleep.
        stages_s: Seconds spent by stage, one of STAGES.
        stage_starts: time.perf_counter() when a stage began, where it was noted.
        response_headers: To send with the answer, HTTP headers or gRPC trailing metadata.
        started: time.perf_counter() when the request came.
        model: Id of the model that it is for, once that is known.
        documents: How many it has.
        tokens: Tokens scored; 0 until then.
        truncated_documents: How many of them were truncated.
        query_truncated: Whether the query was truncated.
    """

    request_id: str = ""
    account: Account | None = None
    tier: Tier = "realtime"
    wait_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    stage_starts: dict[str, float] = field(default_factory=dict)
    response_headers: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    model: str = ""
    documents: int = 0
    tokens: int = 0
    truncated_documents: int = 0
    query_truncated: bool = False

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        self.stage_starts.setdefault(name, start)
        try:
            yield
        finally:
            self.stages_s[name] = self.stages_s.get(name, 0.0) + time.perf_counter() - start

    def server_timing(self) -> str:
        """Return the value of a Server-Timing header: the stages and the total so far, in milliseconds.

        Source: https://www.w3.org/TR/server-timing/
        """
        parts = [f"{name};dur={self.stages_s[name] * 1e3:.2f}" for name in STAGES if name in self.stages_s]
        return ", ".join([*parts, f"total;dur={(time.perf_counter() - self.started) * 1e3:.2f}"])


async def open_call(accounts: Accounts, headers: Mapping[str, str], request_id: str | None = None) -> Call:
    """Return the call that a request's headers or metadata describe.

    Args:
        accounts: Who may ask.
        headers: By lower-case name: `authorization`, `x-tier`, `prefer`, `x-request-id`.
        request_id: In place of the header's.

    Raises:
        Unauthorized: The key is missing or not good.
        InvalidRequest: There is no such tier.
    """
    tier = headers.get("x-tier", "").strip().lower() or "realtime"
    if tier not in ("realtime", "batch"):
        raise InvalidRequest(f"x-tier is {tier[:40]!r}; send realtime or batch, or leave it out", param="x-tier")
    wait = _PREFER_WAIT.search(headers.get("prefer", ""))
    return Call(
        request_id=request_id or usable_request_id(headers.get("x-request-id", "")),
        account=await accounts.identify(bearer_token(headers)),
        tier="batch" if tier == "batch" else "realtime",
        wait_s=min(float(wait[1]), MAX_WAIT_S) if wait else 0.0,
    )


def usable_request_id(given: str) -> str:
    """Return the caller's id if it can stand in a header and a log line, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the key of an `Authorization: Bearer` header (or of `x-api-key`), None without one."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or None
