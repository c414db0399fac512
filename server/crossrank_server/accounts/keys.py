"""Create, find, list and revoke API keys.

A key is `cr-<id>-<secret>`. The id is public and finds the row; of the secret only its SHA-256 is stored. A slow
password hash would add nothing: the secret is 256 random bits, not something a person chose.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import func, insert, select, update

from crossrank.errors import SetupError, Unauthorized
from crossrank_server.accounts.base import SCOPES, Account
from crossrank_server.accounts.prices import usd_from_nano
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import allowances, keys

_KEY = re.compile(r"cr-([0-9a-f]{12})-([\w-]{43})", re.ASCII)
_KEY_ID = re.compile(r"(?:cr-)?([0-9a-f]{12})(?:-[\w-]{43})?", re.ASCII)
_REMEDY = "ask whoever runs this server for a key (`crossrank keys create`)"


@dataclass(frozen=True)
class NewKey:
    """The properties of a key to create.

    Attributes:
        name: What its owner calls it.
        scopes: What it may do, of SCOPES.
        expires_at: Unix time; None is never.
        requests_per_minute: None is no limit.
        documents_per_minute: None is no limit.
        credit_nano_usd: Prepaid credit; None meters without end.
    """

    name: str
    scopes: tuple[str, ...] = SCOPES
    expires_at: float | None = None
    requests_per_minute: int | None = None
    documents_per_minute: int | None = None
    credit_nano_usd: int | None = None


@dataclass(frozen=True)
class KeyInfo:
    """A key as its operator sees it; money in USD, times as Unix time."""

    id: str
    name: str
    scopes: tuple[str, ...]
    state: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    requests_per_minute: int | None
    documents_per_minute: int | None
    granted_usd: float | None = field(default=None)
    balance_usd: float | None = field(default=None)


def create_key(store: Store, new: NewKey) -> str:
    """Create a key and return it; it cannot be read again later."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    with store.write() as connection:
        connection.execute(
            insert(keys).values(
                id=key_id,
                secret_sha256=_hashed(secret),
                name=new.name,
                scopes=" ".join(new.scopes),
                created_at=time.time(),
                expires_at=new.expires_at,
                requests_per_minute=new.requests_per_minute,
                documents_per_minute=new.documents_per_minute,
            )
        )
        credit = new.credit_nano_usd
        connection.execute(insert(allowances).values(key_id=key_id, granted=credit or 0, balance=credit))
    return f"cr-{key_id}-{secret}"


def key_parts(token: str) -> tuple[str, str] | None:
    """Return id and hashed secret of what has the form of a key, else None."""
    parts = _KEY.fullmatch(token)
    return (parts[1], _hashed(parts[2])) if parts else None


@dataclass(frozen=True)
class Found:
    """What the store says of keys, at one time.

    Attributes:
        now_s: The store's Unix time.
        accounts: For each key asked for, its account, or the error for it. One that has expired has an account.
    """

    now_s: float
    accounts: list[Account | Unauthorized]


def find_accounts(store: Store, parts: Sequence[tuple[str, str]]) -> Found:
    """Look up the accounts of keys in one query. Only a caller with the whole key learns that it was revoked.

    Args:
        store: The store.
        parts: Of each key, as `key_parts` returns them.

    Raises:
        AccountsUnavailable: The store does not answer.
    """
    query = select(keys, allowances.c.balance, store.now.label("now")).join(
        allowances, allowances.c.key_id == keys.c.id
    )
    with store.read() as connection:
        rows = connection.execute(query.where(keys.c.id.in_([key_id for key_id, _ in parts]))).all()
        now_s = rows[0].now if rows else connection.scalars(select(store.now)).one()
    by_id = {row.id: row for row in rows}
    return Found(now_s, [_account(by_id.get(key_id), hashed) for key_id, hashed in parts])


def _account(row: Any, hashed_secret: str) -> Account | Unauthorized:
    if row is None or not hmac.compare_digest(row.secret_sha256, hashed_secret):
        return unknown_key()
    if row.revoked_at is not None:
        return Unauthorized(f"API key {row.id} was revoked; {_REMEDY}", code="revoked_api_key")
    return Account(
        key_id=row.id,
        name=row.name,
        scopes=frozenset(row.scopes.split()),
        requests_per_minute=row.requests_per_minute,
        documents_per_minute=row.documents_per_minute,
        prepaid=row.balance is not None,
        expires_at=row.expires_at,
    )


def expired_key(account: Account) -> Unauthorized:
    """Return the error for a key that has expired."""
    when = datetime.fromtimestamp(account.expires_at or 0.0, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return Unauthorized(f"API key {account.key_id} expired on {when}; {_REMEDY}", code="expired_api_key")


def unknown_key() -> Unauthorized:
    """Return the error for a key that is not in the store, whatever is wrong with it."""
    return Unauthorized(f"the API key is not known here; check how it was copied, or {_REMEDY}")


def missing_key() -> Unauthorized:
    """Return the error for a request without a key."""
    return Unauthorized(
        f"the request has no API key; send it as `Authorization: Bearer cr-...`, or {_REMEDY}", code="missing_api_key"
    )


def has_keys(store: Store) -> bool:
    """Tell whether there is any key."""
    with store.read() as connection:
        return connection.scalar(select(keys.c.id).limit(1)) is not None


def list_keys(store: Store) -> list[KeyInfo]:
    """Return all keys, the newest last."""
    query = select(keys, allowances.c.granted, allowances.c.balance).join(allowances, allowances.c.key_id == keys.c.id)
    with store.read() as connection:
        rows = connection.execute(query.order_by(keys.c.created_at, keys.c.id)).mappings().all()
    return [_info(row) for row in rows]


def revoke_key(store: Store, key: str) -> None:
    """Revoke a key for good; gateways that have it cached as good refuse it within 5 s.

    Raises:
        SetupError: There is no such key.
    """
    with store.write() as connection:
        # A second revocation keeps the time of the first.
        revoked_at = func.coalesce(keys.c.revoked_at, time.time())
        done = connection.execute(update(keys).where(keys.c.id == _key_id(key)).values(revoked_at=revoked_at))
        if not done.rowcount:
            raise _no_such_key(key)


def add_credit(store: Store, key: str, nano_usd: int) -> tuple[int, int]:
    """Add to a key's credit, or take from its balance; a key without credit becomes prepaid.

    Returns:
        Credit granted in all, and the balance, in nano-dollars.

    Raises:
        SetupError: There is no such key, or more would be taken than is left.
    """
    balance = func.coalesce(allowances.c.balance, 0) + nano_usd
    change = update(allowances).where(allowances.c.key_id == _key_id(key))
    change = change.where(balance >= 0) if nano_usd < 0 else change
    with store.write() as connection:
        row = connection.execute(
            change.values(balance=balance, granted=allowances.c.granted + nano_usd).returning(
                allowances.c.granted, allowances.c.balance
            )
        ).first()
        if row is None:
            left = connection.execute(select(allowances.c.balance).where(allowances.c.key_id == _key_id(key))).first()
            if left is None:
                raise _no_such_key(key)
            raise SetupError(
                f"key {_key_id(key)} has {usd_from_nano(left.balance or 0):.6f} USD left, "
                f"{usd_from_nano(-nano_usd):.6f} USD cannot be taken: take at most what is left"
            )
    return int(row.granted), int(row.balance)


def existing_key_id(store: Store, key: str) -> str:
    """Return the id of an existing key, given its id or the whole key.

    Raises:
        SetupError: There is no such key.
    """
    with store.read() as connection:
        if connection.scalar(select(keys.c.id).where(keys.c.id == _key_id(key))) is None:
            raise _no_such_key(key)
    return _key_id(key)


def _key_id(key: str) -> str:
    """Return the id within an id or a whole key."""
    match = _KEY_ID.fullmatch(key.strip())
    if match is None:
        raise _no_such_key(key)
    return match[1]


def _no_such_key(key: str) -> SetupError:
    # It may be a whole key: the secret stays out of logs.
    return SetupError(f"there is no key {key[:15]!r}; `crossrank keys list` shows the ids")


def _info(row: Mapping[Any, Any]) -> KeyInfo:
    expired = row["expires_at"] is not None and row["expires_at"] <= time.time()
    prepaid = row["balance"] is not None
    return KeyInfo(
        id=row["id"],
        name=row["name"],
        scopes=tuple(row["scopes"].split()),
        state="revoked" if row["revoked_at"] is not None else "expired" if expired else "good",
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        requests_per_minute=row["requests_per_minute"],
        documents_per_minute=row["documents_per_minute"],
        granted_usd=usd_from_nano(row["granted"]) if prepaid else None,
        balance_usd=usd_from_nano(row["balance"]) if prepaid else None,
    )


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
