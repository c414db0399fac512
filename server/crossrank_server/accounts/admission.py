"""The SQL of admission: one UPDATE checks a key's limits and balance, and counts the request if it fits both.

The minute is that of the store's clock. A row whose minute lies further ahead than the next one was written before that
clock was set back: its counts are void, so that no key is refused until the clock is there again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Float, bindparam, case, literal_column, or_, select, update

from crossrank_server.accounts.base import Account
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import allowances
from crossrank_server.accounts.windows import WINDOW_S

# Stands for no limit; float64 counts up to it exactly.
_UNLIMITED = 2**53
_KINDS = ("requests", "documents")


def _bound(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


class AdmissionSql:
    """The statements, for the store whose clock tells the minute.

    Args:
        store: The store.

    Attributes:
        admit: Takes `admission_facts`; gives the row as it is now, or nothing if the request does not fit.
        look: Takes `key`; gives the row as `admit` sees it.
        take: Takes `key` and `cost`; gives the balance, or nothing if it does not cover the cost.
        look_balance: Takes `key`; gives the balance.
    """

    def __init__(self, store: Store) -> None:
        # Literals, as each parameter costs a microsecond.
        zero, one = literal_column("0", BigInteger), literal_column("1", BigInteger)
        minute = store.minute
        following, before = minute + one, minute - one
        weight = following - store.now / literal_column(f"{WINDOW_S}.0", Float)
        # A statement that waited for a lock may see a row of the next minute.
        is_current = or_(allowances.c.window == minute, allowances.c.window == following)
        counted: dict[str, dict[str, Any]] = {
            kind: {
                "current": case((is_current, allowances.c[kind]), else_=zero),
                "previous": case(
                    (is_current, allowances.c[f"previous_{kind}"]),
                    (allowances.c.window == before, allowances.c[kind]),
                    else_=zero,
                ),
            }
            for kind in _KINDS
        }
        mine = allowances.c.key_id == bindparam("key")
        affordable = or_(allowances.c.balance.is_(None), allowances.c.balance >= _bound("cost"))
        fits = (
            counted[kind]["current"] + counted[kind]["previous"] * weight + _bound(f"new_{kind}")
            <= _bound(f"limit_{kind}")
            for kind in _KINDS
        )
        now = store.now.label("now")
        self.admit = (
            update(allowances)
            .where(mine, *fits, affordable)
            .values(
                window=case((allowances.c.window == following, allowances.c.window), else_=minute),
                balance=allowances.c.balance - _bound("cost"),
                **{kind: counted[kind]["current"] + _bound(f"new_{kind}") for kind in _KINDS},
                **{f"previous_{kind}": counted[kind]["previous"] for kind in _KINDS},
            )
            .returning(
                now,
                allowances.c.balance,
                *(allowances.c[kind].label(f"current_{kind}") for kind in _KINDS),
                *(allowances.c[f"previous_{kind}"].label(f"previous_{kind}") for kind in _KINDS),
            )
        )
        parts = (counted[kind][part].label(f"{part}_{kind}") for kind in _KINDS for part in ("current", "previous"))
        self.look = select(now, allowances.c.balance, *parts).where(mine)
        self.take = (
            update(allowances)
            .where(mine, affordable)
            .values(balance=allowances.c.balance - _bound("cost"))
            .returning(allowances.c.balance)
        )
        self.look_balance = select(allowances.c.balance).where(mine)


def admission_facts(account: Account, documents: int, cost: int, *, count: bool) -> dict[str, Any]:
    """Return the parameters of `AdmissionSql.admit`.

    Args:
        account: The key's.
        documents: Number of documents in the request.
        cost: Cost in nano-dollars.
        count: Whether the key's limits are counted in this row.
    """
    limits = (account.requests_per_minute, account.documents_per_minute) if count else (None, None)
    return {
        "key": account.key_id,
        "new_requests": 1,
        "new_documents": documents,
        "limit_requests": _UNLIMITED if limits[0] is None else limits[0],
        "limit_documents": _UNLIMITED if limits[1] is None else limits[1],
        "cost": cost,
    }
