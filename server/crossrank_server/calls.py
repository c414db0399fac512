"""Describe a request beside its text: who asks, how urgently, how long it may wait, and where its time went.

HTTP headers and gRPC metadata have the same lower-case names, so that both transports open a call with `open_call`.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from crossrank.errors import InvalidRequest
from crossrank.scheduling.tiers import BULK, REALTIME, Tier
from crossrank_server.accounts.base import Account, Accounts

# The stages of a request, in order.
STAGES = ("parse", "tokenize", "queue", "inference", "respond")

# Limit in seconds for the wait for a model that is being loaded (`Prefer: wait=N`).
MAX_WAIT_S = 300.0

# ASCII: as a header, a letter of Latin-1 would come back as two bytes of UTF-8.
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE | re.ASCII)


@dataclass
class Call:
    """One request, beside its text.

    Attributes:
        request_id: Identifies the request in answers and logs.
        account: The account of the API key; None where keys are off.
        tier: Class of service; `batch` gives way to `realtime` and has its own price.
        wait_s: Seconds the caller is willing to wait for a model that is asleep.
        stages_s: Seconds spent by stage, one of STAGES.
        stage_starts: time.perf_counter() at the start of a stage, for the stages that are timed here.
        response_headers: Sent with the answer, as HTTP headers or gRPC trailing metadata.
        started: time.perf_counter() when the request arrived.
        model: Id of the model that scores it; empty until it is known.
        documents: Number of its documents.
        tokens: Number of tokens scored; 0 before.
        truncated_documents: Number of documents that were truncated.
        query_truncated: Whether the query was truncated.
    """

    request_id: str = ""
    account: Account | None = None
    tier: Tier = REALTIME
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
        """Add the time spent inside the block to a stage."""
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
        accounts: Looks up the API key.
        headers: By lower-case name; `authorization`, `x-api-key`, `x-tier`, `prefer` and `x-request-id` are read.
        request_id: Used instead of the header's.

    Raises:
        Unauthorized: The key is missing, unknown, expired or revoked.
        InvalidRequest: There is no such tier.
    """
    tier = headers.get("x-tier", "").strip().lower() or REALTIME
    if tier not in (REALTIME, BULK):
        raise InvalidRequest(f"x-tier is {tier[:40]!r}; send realtime or batch, or leave it out", param="x-tier")
    wait = _PREFER_WAIT.search(headers.get("prefer", ""))
    return Call(
        request_id=request_id or usable_request_id(headers.get("x-request-id", "")),
        account=await accounts.identify(bearer_token(headers)),
        tier=BULK if tier == BULK else REALTIME,
        wait_s=min(float(wait[1]), MAX_WAIT_S) if wait else 0.0,
    )


def usable_request_id(given: str) -> str:
    """Return the caller's request id if it is fit for a header and a log line, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the key of an `Authorization: Bearer` header (or of `x-api-key`), None without one."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or None
