"""Look up keys: good ones are cached for seconds, all that are asked for meanwhile go into one query.

Whoever sends made-up keys decides neither how much memory is used nor how long others wait: what has not the form of a
key is refused without the store, refusals have a small cache of their own, and a lookup waits for at most two queries.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from crossrank.errors import AccountsUnavailable, Unauthorized
from crossrank_server.accounts.base import Account, again, unavailable
from crossrank_server.accounts.keys import Found, expired_key, find_accounts, key_parts, unknown_key
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.threads import StoreThreads

# Seconds for which an account is cached, and so a revoked key is still accepted.
TRUST_S = 5.0
_MAX_GOOD = 10_000
# Enough for the callers of a server who all have a wrong key; a flood of different ones gains nothing from a cache.
_MAX_REFUSED = 1_000
_MAX_PER_QUERY = 256
_MAX_WAITING = 2_000


@dataclass(frozen=True)
class _Entry:
    """A cached answer; times are monotonic."""

    found: Account | Unauthorized
    until_s: float
    expires_s: float | None = None


_Answer = _Entry | AccountsUnavailable


class KeyCache:
    """Find the accounts of keys.

    Args:
        store: Where keys are.
        threads: Run the queries.
    """

    def __init__(self, store: Store, threads: StoreThreads) -> None:
        self._store = store
        self._threads = threads
        self._clock = store.clock
        # By the SHA-256 of the key: keys themselves are not kept in memory.
        self._good: OrderedDict[bytes, _Entry] = OrderedDict()
        self._refused: OrderedDict[bytes, _Entry] = OrderedDict()
        self._waiting: dict[bytes, tuple[tuple[str, str], asyncio.Future[_Answer]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def find(self, token: str) -> Account:
        """Return the account of a key.

        Raises:
            Unauthorized: It is unknown, expired or revoked.
            AccountsUnavailable: The store does not answer.
        """
        digest = hashlib.sha256(token.encode()).digest()
        entry = self._good.get(digest) or self._refused.get(digest)
        now_s = self._clock.monotonic()
        if entry is None or entry.until_s < now_s:
            parts = key_parts(token)
            if parts is None:
                raise unknown_key()
            entry = await self._look_up(digest, parts)
            now_s = self._clock.monotonic()
        found = entry.found
        if isinstance(found, Unauthorized):
            raise Unauthorized(found.message, code=found.code)
        if entry.expires_s is not None and entry.expires_s <= now_s:
            raise expired_key(found)
        return found

    def forget(self) -> None:
        """Look up every key anew; may be called in any thread."""
        self._good, self._refused = OrderedDict(), OrderedDict()

    async def _look_up(self, digest: bytes, parts: tuple[str, str]) -> _Entry:
        self._threads.refuse_if_open()
        waiting = self._waiting.get(digest)
        if waiting is None:
            if len(self._waiting) >= _MAX_WAITING:
                raise unavailable(f"{len(self._waiting)} keys wait to be looked up")
            waiting = self._waiting[digest] = (parts, asyncio.get_running_loop().create_future())
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())
        answer = await self._threads.wait(waiting[1])
        if isinstance(answer, AccountsUnavailable):
            raise again(answer)
        return answer

    async def _read(self) -> None:
        """Ask for all keys that wait, the next ones while these are read, until none waits."""
        try:
            while self._waiting:
                asked = list(self._waiting.items())[:_MAX_PER_QUERY]
                parts = [key for _, (key, _) in asked]
                try:
                    found: Found | AccountsUnavailable = await self._threads.start(
                        partial(find_accounts, self._store, parts)
                    )
                except AccountsUnavailable as error:
                    found = error
                for position, (digest, (_, future)) in enumerate(asked):
                    del self._waiting[digest]
                    future.set_result(
                        found if isinstance(found, AccountsUnavailable) else self._remember(digest, found, position)
                    )
        finally:
            self._reader = None
            left, self._waiting = self._waiting, {}
            for _, future in left.values():  # only after an error of this code
                future.set_result(unavailable("keys cannot be read"))

    def _remember(self, digest: bytes, found: Found, position: int) -> _Entry:
        account = found.accounts[position]
        now_s = self._clock.monotonic()
        good = isinstance(account, Account)
        expires_at = account.expires_at if isinstance(account, Account) else None
        entry = _Entry(account, now_s + TRUST_S, None if expires_at is None else now_s + expires_at - found.now_s)
        cache, most = (self._good, _MAX_GOOD) if good else (self._refused, _MAX_REFUSED)
        (self._refused if good else self._good).pop(digest, None)
        cache[digest] = entry
        cache.move_to_end(digest)
        if len(cache) > most:
            cache.popitem(last=False)
        return entry
