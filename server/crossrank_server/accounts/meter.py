"""Sum up usage in memory, and write it to the store in batches that count exactly once."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timezone

from crossrank.errors import BackendUnavailable
from crossrank_server.accounts.ledger import Hold, Ledger, UsageBatch

_log = logging.getLogger("crossrank.accounts")


class Meter:
    """Sum up usage until it is written; safe to use from any thread.

    There is one sum for each key, day, model and tier, so that they stay small while the store cannot be reached.

    Args:
        ledger: Writes the batches.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._adding = threading.Lock()
        self._writing = threading.Lock()
        self._number = 1
        self._pending = UsageBatch(ledger.gateway_id, self._number)
        self._sending: UsageBatch | None = None

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
        where = (key_id, datetime.now(timezone.utc).date(), model, tier)
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
            BackendUnavailable: The store does not answer.
        """
        with self._writing:
            if self._sending is not None:
                self._ledger.apply(self._sending)
                self._sending = None
            give_sign = self._ledger.should_give_sign()
            with self._adding:
                if self._pending.empty and not give_sign:
                    return
                self._sending = self._pending
                self._number += 1
                self._pending = UsageBatch(self._ledger.gateway_id, self._number)
            self._ledger.apply(self._sending)
            self._sending = None
            if give_sign:
                self._ledger.release_dead()

    def close(self) -> None:
        """Write the rest and give back all holds; usage that cannot be written is logged."""
        try:
            self.flush()
            self._ledger.close_gateway()
        except BackendUnavailable:
            lost = [batch.usage for batch in (self._sending, self._pending) if batch and batch.usage]
            _log.error("usage is lost, as the account store did not take it before the end: %s", lost)

    def _settle(self, hold: Hold, cost: int) -> None:
        sums = self._pending.settled.setdefault((hold.key_id, hold.gateway_id), [0, 0])
        sums[0] += hold.nano_usd
        sums[1] += cost
