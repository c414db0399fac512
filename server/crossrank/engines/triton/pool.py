"""Watch all Triton servers of a gateway in the background, and pick the one with the least work under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from crossrank.engines.triton.address import Target, resolve, resolve_soon
from crossrank.engines.triton.contract import Contract
from crossrank.engines.triton.endpoint import Endpoint
from crossrank.errors import BackendUnavailable

_log = logging.getLogger("crossrank.triton")

# A server in use is asked this often whether the model is still there and still the same.
_CHECK_EVERY_S = 2.0
# One that is out is asked again after this long, then after twice as long, up to the limit.
_PROBE_AFTER_S, _PROBE_LIMIT_S = 0.1, 2.0
# Pods behind a name come and go.
_RESOLVE_EVERY_S = 5.0


class Pool:
    """Keep the servers behind the given addresses.

    Args:
        targets: The addresses, IP addresses or names.
        make_endpoint: Makes the endpoint of an `ip:port` that a name has newly got.
        endpoints: The servers known already.
    """

    def __init__(
        self, targets: Sequence[Target], make_endpoint: Callable[[str], Endpoint], endpoints: Sequence[Endpoint]
    ) -> None:
        self._names = [target for target in targets if target.is_name]
        self._make_endpoint = make_endpoint
        self._fixed = {address for target in targets if not target.is_name for address in resolve(target)}
        self._endpoints = {endpoint.address: endpoint for endpoint in endpoints}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def endpoints(self) -> list[Endpoint]:
        """All servers, in use or not."""
        return list(self._endpoints.values())

    def start(self) -> None:
        """Begin watching, in the running event loop; calling it again is harmless."""
        if self._tasks:
            return
        for endpoint in self.endpoints:
            self._watch(endpoint)
        if self._names:
            self._tasks["names"] = asyncio.get_running_loop().create_task(self._follow_names())

    def pick(self, excluded: frozenset[Endpoint] = frozenset(), contract: Contract | None = None) -> Endpoint | None:
        """Return the usable server with the least work under way; among equals the one idle for longest.

        Args:
            excluded: Servers that are not to be used.
            contract: Only servers with exactly this one.
        """
        usable = [
            endpoint
            for endpoint in self._endpoints.values()
            if endpoint.contract is not None
            and endpoint not in excluded
            and (contract is None or endpoint.contract == contract)
        ]
        return min(usable, key=lambda each: (each.tokens_under_way, each.last_sent_s), default=None)

    def unavailable(self) -> BackendUnavailable:
        """Return the error that says why no server is usable."""
        reasons = "; ".join(f"{each.address}: {each.reason}" for each in self.endpoints if each.contract is None)
        return BackendUnavailable(
            f"no Triton can take the request now ({reasons[:500] or 'none is known'}): try again in a second",
            retry_after_s=1.0,
        )

    async def close(self) -> None:
        """Stop watching and close all connections."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    def _watch(self, endpoint: Endpoint) -> None:
        self._tasks[endpoint.address] = asyncio.get_running_loop().create_task(self._check_forever(endpoint))

    async def _check_forever(self, endpoint: Endpoint) -> None:
        failures = 0
        pause_s = _CHECK_EVERY_S if endpoint.contract else 0.0
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(endpoint.suspect.wait(), pause_s)
            endpoint.suspect.clear()
            try:
                await endpoint.check()
            except Exception:
                _log.exception("checking Triton at %s failed; it is checked again", endpoint.address)
            failures = 0 if endpoint.contract else failures + 1
            if failures:
                pause_s = min(_PROBE_AFTER_S * 2 ** min(failures, 10), _PROBE_LIMIT_S)
            else:
                pause_s = _PROBE_AFTER_S if endpoint.late_checks else _CHECK_EVERY_S
            if endpoint.stalled and self.pick() is not None:
                endpoint.abandon()

    async def _follow_names(self) -> None:
        while True:
            try:
                found = {address for target in self._names for address in await resolve_soon(target)}
            except OSError as error:
                _log.warning("a name of --triton-url cannot be looked up, its last addresses are kept: %s", error)
            else:
                await self._use(found | self._fixed)
            await asyncio.sleep(_RESOLVE_EVERY_S)

    async def _use(self, addresses: set[str]) -> None:
        for address in addresses - self._endpoints.keys():
            self._endpoints[address] = self._make_endpoint(address)
            self._watch(self._endpoints[address])
        for address in self._endpoints.keys() - addresses:
            await self._forget(address)

    async def _forget(self, address: str) -> None:
        """Drop a server that no name has any more, unless it still works: a pod on its way out finishes first."""
        endpoint = self._endpoints[address]
        if endpoint.contract is not None:
            return
        del self._endpoints[address]
        task = self._tasks.pop(address)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await endpoint.close()
