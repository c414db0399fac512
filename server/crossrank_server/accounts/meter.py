"""Sum up usage in memory, and write it to the store in batches that count exactly once."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from crossrank_server.accounts.base import unavailable
from crossrank_server.accounts.journal import Journal, describe
from crossrank_server.accounts.ledger import Hold, Ledger, UsageBatch

_log = logging.getLogger("crossrank.accounts")

# Seconds that a flush waits for another one.
_TURN_S = 2.0


class Meter:
    """Sum up usage until it is written; safe to use from any thread.

    There is one sum for each key, day, model and tier, so that they stay small while the store cannot be reached.

    Args:
        ledger: Writes the batches.
        journal: Keeps what the store did not take.
    """

    def __init__(self, ledger: Ledger, journal: Journal) -> None:
        self._ledger = ledger
        self._journal = journal
        self._adding = threading.Lock()
        self._writing = threading.Lock()
        self._number = 1
        self._pending = UsageBatch(ledger.gateway_id, self._number)
        self._sending: UsageBatch | None = None
        # What the journal holds.
        self._kept: list[UsageBatch] = []

    def record(
        self, key_id: str, model: str, tier: str, *, documents: int, tokens: int, cost: int, hold: Hold | None
    ) -> None:
        """Add a scored request.

        Args:
            key_id: The key.
            model: Id of the model that scored.
            tier: `realtime` or `batch`.
            documents: Number of documents billed.
            tokens: Number of tokens scored.
            cost: Cost in nano-dollars.
            hold: The credit held for it; None for a key that is not prepaid.
        """
        where = (key_id, self._ledger.time.today(), model, tier)
        with self._adding:
            sums = self._pending.usage.setdefault(where, [0, 0, 0, 0])
            for position, amount in enumerate((1, documents, tokens, cost)):
                sums[position] += amount
            if hold is not None:
                self._settle(hold, cost)

    def release(self, hold: Hold | None) -> None:
        """Give back the credit held for a request that failed."""
        if hold is not None:
            with self._adding:
                self._settle(hold, 0)

    def flush(self) -> None:
        """Write all usage recorded so far; a batch that cannot be written is kept and tried again.

        Raises:
            AccountsUnavailable: The store does not answer.
        """
        with self._turn():
            if self._sending is not None:
                self._ledger.apply(self._sending)
                self._sending = None
            give_sign = self._ledger.should_give_sign()
            with self._adding:
                if self._pending.empty and not give_sign:
                    self._forget_kept()
                    return
                self._sending = self._pending
                self._number += 1
                self._pending = UsageBatch(self._ledger.gateway_id, self._number)
            self._ledger.apply(self._sending)
            self._sending = None
            self._forget_kept()
            if give_sign:
                self._ledger.release_dead()

    def keep(self) -> None:
        """Save all usage that is not known to be written in the journal, for the next start.

        Raises:
            OSError: It cannot be written.
        """
        batches = self._unwritten()
        if batches and batches != self._kept:
            self._journal.save(batches)
            self._kept = batches

    def close(self) -> None:
        """Write the rest and give back all holds.

        Raises:
            AccountsUnavailable: The store does not answer; see `close_without_store`.
        """
        self.flush()
        self._ledger.close_gateway()

    def close_without_store(self) -> None:
        """Save the rest in the journal, and say in the log what it is; if it cannot be saved, what is lost."""
        batches = self._unwritten()
        try:
            self.keep()
        except OSError as error:
            for line in describe(batches):
                _log.error(
                    "usage is lost, as neither the account store nor %s (%s) took it: %s",
                    self._journal.path,
                    error.strerror or error,
                    line,
                )
        else:
            for line in describe(batches):
                _log.warning(
                    "usage that the account store did not take is in %s, which the next start writes to it: %s",
                    self._journal.path,
                    line,
                )

    def _forget_kept(self) -> None:
        self._kept = []
        self._journal.clear()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=_TURN_S):
            raise unavailable("another write of usage takes too long")
        try:
            yield
        finally:
            self._writing.release()

    def _unwritten(self) -> list[UsageBatch]:
        with self._adding:
            return [copy.deepcopy(batch) for batch in (self._sending, self._pending) if batch and not batch.empty]

    def _settle(self, hold: Hold, cost: int) -> None:
        sums = self._pending.settled.setdefault((hold.key_id, hold.gateway_id), [0, 0])
        sums[0] += hold.nano_usd
        sums[1] += cost
