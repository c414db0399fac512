"""Query sums of the usage table, for operators and for the owner of a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import func, select

from crossrank_server.accounts.base import Account
from crossrank_server.accounts.prices import usd_from_nano
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import allowances, keys, usage

_SUMS = [func.coalesce(func.sum(usage.c[name]), 0).label(name) for name in ("requests", "documents", "tokens", "cost")]


@dataclass(frozen=True)
class UsageFilter:
    """Select usage; None selects all.

    Attributes:
        key_id: Id of the only key.
        since: First day (UTC).
        until: Last day (UTC), included.
    """

    key_id: str | None = None
    since: date | None = None
    until: date | None = None


def usage_by_day(store: Store, which: UsageFilter, *, by_model: bool = False) -> list[dict[str, Any]]:
    """Return a row for each day and key: day, key_id, name, (model, tier,) requests, documents, tokens, cost_usd."""
    groups = [usage.c.day, usage.c.key_id, keys.c.name, *([usage.c.model, usage.c.tier] if by_model else [])]
    query = select(*groups, *_SUMS).join(keys, keys.c.id == usage.c.key_id).group_by(*groups).order_by(*groups)
    if which.key_id is not None:
        query = query.where(usage.c.key_id == which.key_id)
    if which.since is not None:
        query = query.where(usage.c.day >= which.since)
    if which.until is not None:
        query = query.where(usage.c.day <= which.until)
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [{**{group.name: row[group.name] for group in groups}, **_sums(row)} for row in rows]


def account_statement(store: Store, account: Account, today: date) -> dict[str, Any]:
    """Return the credit of a key, its usage in all, and its usage of today, as `GET /account` shows them."""
    mine = usage.c.key_id == account.key_id
    with store.read() as connection:
        credit = connection.execute(select(allowances).where(allowances.c.key_id == account.key_id)).one()
        total = connection.execute(select(*_SUMS).where(mine)).mappings().one()
        since_midnight = connection.execute(select(*_SUMS).where(mine, usage.c.day == today)).mappings().one()
    prepaid = credit.balance is not None
    return {
        "balance": usd_from_nano(credit.balance) if prepaid else None,
        "credit": {
            "granted": usd_from_nano(credit.granted),
            "spent": usd_from_nano(credit.spent),
            "reserved": usd_from_nano(credit.granted - credit.spent - credit.balance),
        }
        if prepaid
        else None,
        "usage": {"total": _sums(total), "today": _sums(since_midnight)},
    }


def _sums(row: Mapping[Any, Any]) -> dict[str, Any]:
    # PostgreSQL adds BIGINT up to NUMERIC.
    counts = {name: int(row[name]) for name in ("requests", "documents", "tokens")}
    return {**counts, "cost_usd": usd_from_nano(int(row["cost"]))}
