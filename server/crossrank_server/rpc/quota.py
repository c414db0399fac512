"""Bound what callers make a gRPC server hold: RPCs, messages that arrive, requests under way, answers not taken.

gRPC for Python has no memory quota. It buffers a message until it is whole, whoever sends it and however slowly, and
an answer until its caller takes it. Both are counted here by connection, the first by the kernel's counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import time
from collections import Counter
from collections.abc import Iterator

import grpc

from crossrank.errors import BackendUnavailable, Overloaded, RequestTimedOut, RequestTooLarge
from crossrank_server.held import HeldBytes, Holding
from crossrank_server.rpc.connections import Peer, hang_up, open_files, peer_from_name, peers_of, received_bytes
from crossrank_server.rpc.held import Connection, Read

# Messages and answers may be in memory at a time as if they were so many of the largest size, shared between callers as
# HTTP's are: 7 of one caller.
_LARGEST_MESSAGES_HELD = 16
# The share of that for what waits for callers, the rest of a message or answers not taken: it must keep nobody out.
_WAITING_SHARE = 0.25
# A message up to this many times the limit is still read, so that its sender is told the limit and the remedy and a
# stream lives on; what is larger is refused by gRPC itself, in its own words.
REFUSED_WITH_REASON = 2
# RPCs under way; each takes about 50 kB.
MAX_RPCS = 2048
# Seconds for which a caller may do nothing while the server ends.
_DRAIN_S = 5.0
# Seconds until an answer must have been taken where callers hold more than their limit.
_TAKEN_SOON_S = 0.5
# Seconds between two looks at what waits; a look never takes more than a twentieth of the time.
_LOOK_S = 0.01
# Bytes of headers and frames that come with a message, which the kernel counts too.
_OVERHEAD_BYTES = 250
# An answer is in memory as Python wrote it and as gRPC copied it.
_ANSWER_COPIES = 2
_FEWEST_REMEMBERED = 256
_TRIM_AFTER_S = 0.2
_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl not.


class MemoryQuota:
    """Count what callers make the server hold, and give up what exceeds the limits, beginning with who holds most.

    Args:
        max_message_bytes: Limit for one message.
        timeout_s: Seconds within which a message must be whole, where one is due, and an answer be taken.
        max_rpcs: Limit of RPCs under way.
    """

    def __init__(self, max_message_bytes: int, timeout_s: float, max_rpcs: int = MAX_RPCS) -> None:
        self._max_message_bytes = max_message_bytes
        self.held = HeldBytes(_LARGEST_MESSAGES_HELD * max_message_bytes)
        self._max_waiting_bytes = int(_WAITING_SHARE * self.held.limit)
        self._timeout_s = timeout_s
        self._max_rpcs = max_rpcs
        self._drained_at = float("inf")
        self._rpcs = 0
        self._unsent_bytes = 0
        self._connections: dict[str, Connection] = {}
        self._forget_at = _FEWEST_REMEMBERED
        self._look: asyncio.TimerHandle | None = None
        self._trim: asyncio.TimerHandle | None = None

    def enter(self, context: grpc.aio.ServicerContext) -> Connection:
        """Count an RPC, until it is finished, and return its connection.

        Raises:
            Overloaded: Too many are under way, and none of them only waits for its caller.
        """
        peer = context.peer()
        connection = self._connections.get(peer) or self._remember(peer)
        if self._rpcs >= self._max_rpcs and not self._end_a_waiting_one():
            raise Overloaded(
                f"{self._rpcs} RPCs are under way, the limit is {self._max_rpcs}; try again in a second",
                retry_after_s=1.0,
            )
        self._rpcs += 1
        connection.rpcs += 1
        context.add_done_callback(functools.partial(self._leave, connection))
        return connection

    async def read(
        self, connection: Connection, context: grpc.aio.ServicerContext, *, due: bool = True
    ) -> bytes | None:
        """Return the next message; None if there is no more.

        Args:
            connection: As `enter` returned it.
            context: gRPC's context of the RPC.
            due: The message must come within the time limit; those of a stream may be far apart.

        Raises:
            RequestTimedOut: It did not come in time.
            Overloaded: Callers hold more than their limit, and this one most.
        """
        with self.waiting(connection, self._timeout_s if due else float("inf")):
            data = await context.read()
        if data is grpc.aio.EOF:
            return None
        connection.consumed_bytes += len(data) + _OVERHEAD_BYTES
        return bytes(data)

    @contextlib.contextmanager
    def waiting(self, connection: Connection, within_s: float = float("inf")) -> Iterator[None]:
        """Let the running task wait for its caller within the block; it is ended where others need the room.

        Raises:
            RequestTimedOut: It took longer than `within_s` seconds.
            Overloaded: See `read` and `enter`.
        """
        task = asyncio.current_task()
        assert task is not None
        now = time.monotonic()
        read = Read(task, now, now + within_s)
        connection.reads.add(read)
        self._look_soon()
        try:
            yield
        except asyncio.CancelledError:
            if read.refusal is None:
                raise
            raise read.refusal from None
        finally:
            connection.reads.discard(read)

    @contextlib.contextmanager
    def buffered(self, holding: Holding, size: int) -> Iterator[None]:
        """Count a message as in memory until the block ends.

        Args:
            holding: Of its RPC.
            size: Bytes of the message.

        Raises:
            RequestTooLarge: The message is over its limit.
            Overloaded: See `Holding.add`.
        """
        if size > self._max_message_bytes:
            raise RequestTooLarge(
                f"the message has {size} bytes, the limit is {self._max_message_bytes}; split the request, "
                "or raise --max-body-bytes",
                param="body",
            )
        with holding.holding(size):
            yield

    def answering(self, connection: Connection, context: grpc.aio.ServicerContext, size: int) -> None:
        """Count an answer as in memory until the RPC is finished, or `answered` is called."""
        connection.unsent[id(context)] = (time.monotonic(), _ANSWER_COPIES * size)
        self._unsent_bytes += _ANSWER_COPIES * size
        self.held.count(connection.caller, _ANSWER_COPIES * size)
        self._look_soon()

    def answered(self, connection: Connection, context: grpc.aio.ServicerContext) -> None:
        """Count an answer no more: gRPC has sent it."""
        _, size = connection.unsent.pop(id(context), (0.0, 0))
        self._unsent_bytes -= size
        self.held.count(connection.caller, -size)

    def drain(self) -> None:
        """Wait no longer than some seconds for callers from now on, as the server ends."""
        self._drained_at = time.monotonic() + _DRAIN_S
        self._timeout_s = min(self._timeout_s, _DRAIN_S)
        self._look_soon()

    def bound_connections(self, port: int, most: int) -> None:
        """End idle connections to a port while more than `most` are open, those of the address with most first."""
        if open_files() <= most:
            return
        peers = peers_of(port)
        if len(peers) <= most:
            return
        busy = {connection.peer for connection in self._connections.values() if connection.rpcs}
        by_address = Counter(address for address, _ in peers)
        idle = sorted((peer for peer in peers if peer not in busy), key=lambda peer: -by_address[peer[0]])
        hang_up(set(idle[: len(peers) - most]))

    def _leave(self, connection: Connection, context: grpc.aio.ServicerContext) -> None:
        self._rpcs -= 1
        connection.rpcs -= 1
        self.answered(connection, context)

    def _remember(self, peer: str) -> Connection:
        """Return a new connection; forget those that were closed each time that the number has doubled."""
        if len(self._connections) >= self._forget_at:
            received = received_bytes()
            for name, known in tuple(self._connections.items()):
                if not known.rpcs and known.peer not in received:
                    del self._connections[name]
            self._forget_at = max(_FEWEST_REMEMBERED, 2 * len(self._connections))
        connection = self._connections[peer] = Connection(peer_from_name(peer))
        return connection

    def _look_soon(self, pause_s: float = _LOOK_S) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(pause_s, self._look_at_waiting)

    def _look_at_waiting(self) -> None:
        """Give up what took too long, and what exceeds the limit of bytes."""
        self._look = None
        now, began = time.monotonic(), time.thread_time()
        waiting = [known for known in self._connections.values() if known.reads or known.unsent]
        possible_bytes = self._unsent_bytes
        for connection in waiting:
            if connection.leaves_unsent(self._timeout_s, now):
                hang_up([connection.peer])
            for read in connection.reads:
                if self._drained_at < now:
                    read.refuse(
                        BackendUnavailable(
                            "the server is shutting down and waited for its caller: send it again", retry_after_s=1.0
                        )
                    )
                elif read.ends_at < now:
                    read.refuse(
                        RequestTimedOut(
                            f"the message was not whole after {self._timeout_s:g} s; send it faster, or in parts"
                        )
                    )
            possible_bytes += len(connection.reads) * REFUSED_WITH_REASON * self._max_message_bytes
        if possible_bytes > self._max_waiting_bytes:
            self._enforce_limit(waiting)
        if waiting:
            self._look_soon(max(_LOOK_S, 20 * (time.thread_time() - began)))

    def _enforce_limit(self, waiting: list[Connection]) -> None:
        """Give up what the connections hold that hold most, those of one address first, until all hold less."""
        received = received_bytes()
        held = {connection: self._held_bytes(connection, received) for connection in waiting}
        by_address: Counter[str] = Counter()
        for connection, size in held.items():
            by_address[connection.peer[0]] += size
        total = sum(held.values())
        while total > self._max_waiting_bytes and held:
            most = max(held, key=lambda connection: (by_address[connection.peer[0]], held[connection]))
            for read in most.reads:
                read.refuse(
                    Overloaded(
                        f"messages that are not whole and answers that are not taken hold {total} bytes, the limit is "
                        f"{self._max_waiting_bytes}; try again in a second, or send smaller requests",
                        retry_after_s=1.0,
                    )
                )
            if most.leaves_unsent(_TAKEN_SOON_S, time.monotonic()):
                hang_up([most.peer])
            self._trim_soon()
            most.consumed_bytes = received.get(most.peer, most.consumed_bytes)
            by_address[most.peer[0]] -= held[most]
            total -= held.pop(most)

    def _trim_soon(self) -> None:
        """Give the memory back that was freed, which glibc keeps, when gRPC has dropped what was given up."""
        if self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(_TRIM_AFTER_S, self._trim_now)

    def _trim_now(self) -> None:
        self._trim = None
        if _MALLOC_TRIM is not None:
            asyncio.get_running_loop().run_in_executor(None, _MALLOC_TRIM, 0)

    def _held_bytes(self, connection: Connection, received: dict[Peer, int]) -> int:
        count = received.get(connection.peer, 0)
        # Headers take less than was taken for them: that must not add up to a message.
        connection.consumed_bytes = min(connection.consumed_bytes, count)
        most = len(connection.reads) * REFUSED_WITH_REASON * self._max_message_bytes
        return min(count - connection.consumed_bytes, most) + connection.unsent_bytes

    def _end_a_waiting_one(self) -> bool:
        """End an RPC that waits for its caller, of those with most RPCs, and return whether there was one."""
        now = time.monotonic()
        rpcs: Counter[str] = Counter()
        for connection in self._connections.values():
            rpcs[connection.peer[0]] += connection.rpcs
        waiting = [
            known for known in self._connections.values() if known.reads or known.leaves_unsent(_TAKEN_SOON_S, now)
        ]
        if not waiting:
            return False
        most = max(waiting, key=lambda connection: (rpcs[connection.peer[0]], connection.rpcs))
        if most.reads:
            oldest = min(most.reads, key=lambda read: read.since)
            oldest.refuse(
                Overloaded(
                    f"{self._rpcs} RPCs are under way, the limit is {self._max_rpcs}, and this one waited for its "
                    "caller; try again in a second",
                    retry_after_s=1.0,
                )
            )
        else:
            hang_up([most.peer])
        return True
