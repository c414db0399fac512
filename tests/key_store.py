"""A real store of keys for a server of its own, and keys in it."""

from __future__ import annotations

from typing import Any

from crossrank.errors import Unauthorized
from crossrank_server.accounts.base import Account
from crossrank_server.accounts.keys import NewKey, create_key, expired_key, find_accounts, key_parts, unknown_key
from crossrank_server.accounts.store import Store


def store_address(store: Store) -> str:
    """Return what --store is to be given; it holds no password here."""
    return store.url


def new_key(store: Store, **options: Any) -> str:
    return create_key(store, NewKey(**{"name": "n", **options}))


def find_account(store: Store, token: str) -> Account:
    """Look up one key in the store itself; raise the error for it."""
    parts = key_parts(token)
    if parts is None:
        raise unknown_key()
    found = find_accounts(store, [parts])
    (account,) = found.accounts
    if isinstance(account, Unauthorized):
        raise account
    if account.expires_at is not None and account.expires_at <= found.now_s:
        raise expired_key(account)
    return account
