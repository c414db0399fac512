"""Keep what one connection makes a gRPC server hold: RPCs, messages that are awaited, answers that are not taken."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from crossrank.errors import CrossrankError
from crossrank_server.held import caller_at
from crossrank_server.rpc.connections import Peer


@dataclass(eq=False, slots=True)
class Read:
    """One message that is awaited.

    Attributes:
        task: Awaits it.
        since: time.monotonic() when that began.
        ends_at: The same when it must be whole.
        refusal: Why it is given up.
    """

    task: asyncio.Task[object]
    since: float
    ends_at: float
    refusal: CrossrankError | None = None

    def refuse(self, error: CrossrankError) -> None:
        """Let `MemoryQuota.read` raise an error."""
        if self.refusal is None:
            self.refusal = error
            self.task.cancel()


@dataclass(eq=False, slots=True)
class Connection:
    """What one connection makes the server hold.

    Attributes:
        peer: Address and port of its other end.
        consumed_bytes: Bytes received whose messages are whole, headers included, about.
        rpcs: RPCs that are not finished.
        reads: Messages that are awaited.
        unsent: time.monotonic() and bytes of each answer that is not taken, by the id of its RPC.
    """

    peer: Peer
    consumed_bytes: int = 0
    rpcs: int = 0
    reads: set[Read] = field(default_factory=set)
    unsent: dict[int, tuple[float, int]] = field(default_factory=dict)

    @property
    def caller(self) -> str:
        """Whose it is where no key tells."""
        return caller_at(self.peer[0])

    @property
    def unsent_bytes(self) -> int:
        """Bytes of all answers that are not taken."""
        return sum(size for _, size in self.unsent.values())

    def leaves_unsent(self, seconds: float, now: float) -> bool:
        """Return whether an answer has not been taken for so long."""
        return any(since + seconds < now for since, _ in self.unsent.values())


NO_CONNECTION = Connection(("", 0))
