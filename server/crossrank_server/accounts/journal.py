"""Keep usage that the store did not take in a file, and write it to the store at the next start, exactly once.

Once: every batch has the number that the store compares with the last one it took from that gateway. A file is written
whole beside the old one and renamed, so that a process may be killed at any moment; it belongs to the process that
holds the lock beside it, so that no other takes up usage that is still growing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crossrank_server.accounts.ledger import Ledger, UsageBatch
from crossrank_server.accounts.prices import usd_from_nano

_log = logging.getLogger("crossrank.accounts")
_KEYS_PER_LINE = 100


class Journal:
    """The file of one process.

    Args:
        folder: Where the files of all processes are; it need not exist.

    Attributes:
        path: The file; it exists while it holds usage.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.json"
        self._lock = FileLock(self.path.with_suffix(".lock"), thread_local=False)

    def save(self, batches: Sequence[UsageBatch]) -> None:
        """Replace what the file holds.

        Raises:
            OSError: It cannot be written; then it holds what it held.
        """
        if not self._lock.is_locked:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except NotImplementedError as error:
                raise OSError(errno.ENOLCK, str(error)) from None
        new = self.path.with_suffix(".new")
        # Readable by its owner alone: it holds who used how much.
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump([_data_from_batch(batch) for batch in batches], file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)

    def clear(self) -> None:
        """Delete the file, as the store has what it holds."""
        if self._lock.is_locked:
            _delete(self.path)
            self._lock.release()


def replay(folder: Path, ledger: Ledger) -> None:
    """Write to the store what processes that have ended left behind.

    A file of another store, or older than the store's memory of gateways, is left where it is and named in the log.

    Raises:
        AccountsUnavailable: The store does not answer; what it has not taken stays in its file.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                _replay(path, ledger)
        except Timeout:
            continue  # its process lives
        except OSError as error:
            _log.error("usage in %s cannot be read (%s): check its rights", path, error.strerror)


def _replay(path: Path, ledger: Ledger) -> None:
    try:
        batches = [_batch_from_data(data) for data in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return  # another process was faster
    except (ValueError, KeyError, TypeError):
        _log.error("%s is no journal of usage: remove it", path)
        return
    if not all(ledger.knows(batch.gateway_id) for batch in batches):
        _log.warning(
            "%s holds usage that this store did not ask for: it is of another --store, or over 30 days old. It is left "
            "as it is: %s",
            path,
            "; ".join(describe(batches)),
        )
        return
    for batch in batches:
        ledger.apply(batch)
    _delete(path)
    _log.warning("usage that an earlier process left in %s is in the store: %s", path, "; ".join(describe(batches)))


def describe(batches: Iterable[UsageBatch]) -> list[str]:
    """Return requests, documents and cost by key id; a line for every hundred keys."""
    sums: dict[str, list[int]] = {}
    for batch in batches:
        for (key_id, *_), (requests, documents, _, cost) in batch.usage.items():
            mine = sums.setdefault(key_id, [0, 0, 0])
            for position, amount in enumerate((requests, documents, cost)):
                mine[position] += amount
    parts = [
        f"key {key_id} {requests} requests {documents} documents {usd_from_nano(cost):.9f} USD"
        for key_id, (requests, documents, cost) in sorted(sums.items())
    ]
    return [", ".join(parts[start : start + _KEYS_PER_LINE]) for start in range(0, len(parts), _KEYS_PER_LINE)]


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".new").unlink(missing_ok=True)
    with suppress(OSError):  # Windows does not delete what is open
        path.with_suffix(".lock").unlink(missing_ok=True)


def _data_from_batch(batch: UsageBatch) -> dict[str, Any]:
    return {
        "gateway_id": batch.gateway_id,
        "number": batch.number,
        "usage": [
            [key_id, day.isoformat(), model, tier, *sums] for (key_id, day, model, tier), sums in batch.usage.items()
        ],
        "settled": [[*where, *sums] for where, sums in batch.settled.items()],
    }


def _batch_from_data(data: dict[str, Any]) -> UsageBatch:
    return UsageBatch(
        gateway_id=data["gateway_id"],
        number=data["number"],
        usage={
            (key_id, date.fromisoformat(day), model, tier): [int(amount) for amount in sums]
            for key_id, day, model, tier, *sums in data["usage"]
        },
        settled={(key_id, gateway_id): [int(held), int(spent)] for key_id, gateway_id, held, spent in data["settled"]},
    )
