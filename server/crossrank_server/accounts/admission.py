"""The SQL of admission: one UPDATE checks a key's limits and balance, and counts the request if it fits both."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Float, bindparam, case, or_, select, update

from crossrank_server.accounts.base import Account
from crossrank_server.accounts.store import allowances
from crossrank_server.accounts.windows import WINDOW_S

# Stands for no limit; float64 counts up to it exactly.
_UNLIMITED = 2**53


def _bound(name: str) -> Any:
    return bindparam(name, type_=Float() if name == "weight" else BigInteger())


# Whether the row's counters are those of the caller's minute, or of a later one that another gateway's clock began.
_is_current = allowances.c.window >= _bound("minute")
_counted = {
    kind: {
        "current": case((_is_current, allowances.c[kind]), else_=0),
        "previous": case(
            (_is_current, allowances.c[f"previous_{kind}"]),
            (allowances.c.window == _bound("minute") - 1, allowances.c[kind]),
            else_=0,
        ),
    }
    for kind in ("requests", "documents")
}


def _fits(kind: str) -> Any:
    used = _counted[kind]["current"] + _counted[kind]["previous"] * _bound("weight")
    return used + _bound(f"new_{kind}") <= _bound(f"limit_{kind}")


_STATE = (
    allowances.c.balance,
    *(_counted[kind][part].label(f"{part}_{kind}") for kind in _counted for part in ("current", "previous")),
)
ADMIT = (
    update(allowances)
    .where(
        allowances.c.key_id == bindparam("key"),
        _fits("requests"),
        _fits("documents"),
        or_(allowances.c.balance.is_(None), allowances.c.balance >= _bound("cost")),
    )
    .values(
        window=case((_is_current, allowances.c.window), else_=_bound("minute")),
        balance=allowances.c.balance - _bound("cost"),
        **{kind: _counted[kind]["current"] + _bound(f"new_{kind}") for kind in _counted},
        **{f"previous_{kind}": _counted[kind]["previous"] for kind in _counted},
    )
    .returning(
        allowances.c.balance,
        *(allowances.c[kind].label(f"current_{kind}") for kind in _counted),
        *(allowances.c[f"previous_{kind}"].label(f"previous_{kind}") for kind in _counted),
    )
)
LOOK = select(*_STATE).where(allowances.c.key_id == bindparam("key"))
TAKE = (
    update(allowances)
    .where(
        allowances.c.key_id == bindparam("key"),
        or_(allowances.c.balance.is_(None), allowances.c.balance >= _bound("cost")),
    )
    .values(balance=allowances.c.balance - _bound("cost"))
    .returning(allowances.c.balance)
)
LOOK_BALANCE = select(allowances.c.balance).where(allowances.c.key_id == bindparam("key"))


def admission_facts(
    account: Account, documents: int, cost: int, *, minute: int, left_s: float, count: bool
) -> dict[str, Any]:
    """Return the parameters of ADMIT.

    Args:
        account: The key's.
        documents: Number of documents in the request.
        cost: Cost in nano-dollars.
        minute: Number of the clock minute.
        left_s: Seconds it has left.
        count: Whether the key's limits are counted in this row.
    """
    limits = (account.requests_per_minute, account.documents_per_minute) if count else (None, None)
    return {
        "key": account.key_id,
        "minute": minute,
        "weight": left_s / WINDOW_S,
        "new_requests": 1,
        "new_documents": documents,
        "limit_requests": _UNLIMITED if limits[0] is None else limits[0],
        "limit_documents": _UNLIMITED if limits[1] is None else limits[1],
        "cost": cost,
    }


def clock_minute(now_s: float) -> tuple[int, float]:
    """Return the number of a Unix time's minute since 1970 and the seconds it has left."""
    minute = int(now_s // WINDOW_S)
    return minute, (minute + 1) * WINDOW_S - now_s
