"""A real store of keys for a server of its own, and keys in it."""

from __future__ import annotations

from typing import Any

from crossrank_server.accounts.keys import NewKey, create_key
from crossrank_server.accounts.store import Store


def store_address(store: Store) -> str:
    """Return what --store is to be given; it holds no password here."""
    return store.url


def new_key(store: Store, **options: Any) -> str:
    return create_key(store, NewKey(**{"name": "n", **options}))
