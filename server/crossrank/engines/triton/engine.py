"""Compute in Triton servers: split requests by bucket, send the parts to all servers at once, join their logits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Manifest
from crossrank.engines.triton.address import Target, resolve, targets_from_url
from crossrank.engines.triton.buckets import split_by_bucket, split_by_rows
from crossrank.engines.triton.contract import Contract, contract_from_replies
from crossrank.engines.triton.endpoint import CHECK_TIMEOUT_S, ConnectionLost, Endpoint, ModelChanged
from crossrank.engines.triton.pool import Pool
from crossrank.errors import BackendError, BackendUnavailable, SetupError
from crossrank.packed import PairBatch, take_pairs

_log = logging.getLogger("crossrank.triton")
_START_POLL_S = 0.5

T = TypeVar("T")


class TritonEngine:
    """Send pairs to the engine model of one or several Triton servers.

    Triton merges the requests of all its clients, so that no `Batcher` stands in front.

    An inference that finds its server gone is tried once more on another: the model has no state. Deadlines and
    cancellations reach Triton's queue.

    Args:
        pool: The servers.
        contract: The model's contract at start-up, for `precision`.
        timeout_s: Seconds that a request may take, its retry included.
    """

    name = "triton"

    def __init__(self, pool: Pool, contract: Contract, timeout_s: float) -> None:
        self.precision = contract.precision
        self._pool = pool
        self._timeout_s = timeout_s

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        """See Engine.score; a cancelled caller cancels its inferences.

        Raises:
            Overloaded: Triton's queue is full.
            BackendTimeout: The time limit, or that of Triton's queue, passed.
            BackendUnavailable: No server can be reached, or two in a row were lost.
            BackendError: Triton failed.
        """
        self._pool.start()
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        for _ in range(2):
            logits, versions = await self._score(batch, deadline_s)
            if len(versions) == 1:
                return logits
            # The model was replaced in between: logits of two models must not be ranked together.
            _log.info("versions %s answered parts of one request, which is scored again", sorted(versions))
        raise BackendUnavailable("the model is being replaced in Triton: try again in a second", retry_after_s=1.0)

    async def _score(
        self, batch: PairBatch, deadline_s: float, excluded: frozenset[Endpoint] = frozenset(), last: bool = False
    ) -> tuple[NDArray[np.float32], set[str]]:
        """Split the batch as one of the usable servers wants it; return the logits and the versions that answered."""
        leader = self._pool.pick(excluded)
        if leader is None or leader.contract is None:
            raise self._pool.unavailable()
        contract = leader.contract
        split = split_by_rows if contract.merges_lengths else split_by_bucket
        parts = split(batch.lengths, contract.buckets, contract.max_rows)
        answers = await _all(
            self._score_part(take_pairs(batch, part.rows), part.length, contract, deadline_s, excluded, last)
            for part in parts
        )
        logits = np.empty(len(batch), np.float32)
        versions: set[str] = set()
        for part, (own, version) in zip(parts, answers, strict=True):
            logits[part.rows] = own
            versions |= version
        return logits, versions

    async def _score_part(
        self,
        part: PairBatch,
        length: int,
        contract: Contract,
        deadline_s: float,
        excluded: frozenset[Endpoint],
        last: bool,
    ) -> tuple[NDArray[np.float32], set[str]]:
        """Send one inference; where it may be tried again, split the part anew, as the next server may differ."""
        endpoint = self._pool.pick(excluded, contract)
        try:
            if endpoint is None:
                raise ConnectionLost("it was taken out")
            logits, version = await endpoint.infer(part, length, deadline_s)
            return logits, {version}
        except ConnectionLost:
            if last:
                raise self._pool.unavailable() from None
        except ModelChanged as error:
            assert endpoint is not None  # who else raised; this tells mypy
            if last:
                raise BackendError(f"Triton at {endpoint.address} refused the request: {error}") from None
            await endpoint.check()
            return await self._score(part, deadline_s, excluded, last=True)
        return await self._score(part, deadline_s, excluded | ({endpoint} if endpoint else set()), last=True)

    def ready(self) -> bool:
        """See Engine.ready: any server will do. Called on the event loop, it also starts the watch."""
        self._pool.start()
        return self._pool.pick() is not None

    async def close(self) -> None:
        """See Engine.close."""
        await self._pool.close()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await all together; the first failure, or a cancellation, cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def connect_triton(
    bundle: Bundle, url: str, *, model: str = "", wait_s: float = 30.0, timeout_s: float = 60.0
) -> TritonEngine:
    """Check the model on every Triton that answers, and return the engine in front of them.

    Args:
        bundle: Tokenizes for the model.
        url: `grpc://host:port[,host2:port2]`.
        model: Name of the engine model in Triton; the model id without its owner if empty.
        wait_s: Seconds to wait for a first Triton that is ready.
        timeout_s: Seconds that a request may take.

    Raises:
        SetupError: The URL is malformed, no Triton is ready in time, or one serves the wrong model.
    """
    try:
        import tritonclient.grpc  # noqa: F401
    except ModuleNotFoundError as error:
        raise SetupError(f"engine triton needs {error.name}: pip install 'crossrank[triton]'") from None
    manifest = bundle.manifest
    name = model or manifest.model_id.rpartition("/")[2]
    targets = targets_from_url(url)
    give_up_at = time.monotonic() + wait_s
    while True:
        contracts, reasons = _ask_all(targets, name, manifest)
        usable = [contract for contract in contracts.values() if contract is not None]
        if usable:
            break
        if time.monotonic() >= give_up_at:
            raise SetupError(
                f"no Triton is ready after {wait_s:g} s ({'; '.join(reasons)}): start it, correct --triton-url, or "
                "raise --triton-wait-s"
            )
        time.sleep(_START_POLL_S)
    for reason in reasons:
        _log.warning("starting without Triton at %s", reason)
    pool = Pool(
        targets,
        lambda address: Endpoint(address, name, manifest),
        [Endpoint(address, name, manifest, contract) for address, contract in contracts.items()],
    )
    return TritonEngine(pool, usable[0], timeout_s)


def _ask_all(targets: Sequence[Target], model: str, manifest: Manifest) -> tuple[dict[str, Contract | None], list[str]]:
    """Return what each server says of the model, None where it is not ready, and why not."""
    contracts: dict[str, Contract | None] = {}
    reasons: list[str] = []
    for target in targets:
        try:
            addresses = resolve(target)
        except OSError as error:
            reasons.append(f"{target}: {error.strerror or error}")
            continue
        for address in addresses:
            contracts[address], reason = _ask(address, model, manifest)
            reasons += [f"{address}: {reason}"] if reason else []
    return contracts, reasons


def _ask(address: str, model: str, manifest: Manifest) -> tuple[Contract | None, str]:
    """Return the contract, or None and the reason where waiting may help."""
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    # Not the asyncio client: this runs before the event loop that will serve.
    client = InferenceServerClient(address)
    try:
        if not client.is_model_ready(model, client_timeout=CHECK_TIMEOUT_S):
            if client.is_server_ready(client_timeout=CHECK_TIMEOUT_S):
                raise SetupError(_missing(client, address, model))
            return None, "its models are still loading"
        metadata = client.get_model_metadata(model, client_timeout=CHECK_TIMEOUT_S)
        config = client.get_model_config(model, client_timeout=CHECK_TIMEOUT_S).config
    except InferenceServerException as error:
        return None, str(error.message())
    finally:
        client.close()
    return contract_from_replies(manifest, metadata, config), ""


def _missing(client: Any, address: str, model: str) -> str:
    index = client.get_model_repository_index(client_timeout=CHECK_TIMEOUT_S).models
    present = ", ".join(f"{each.name} ({(each.reason or each.state).lower()})" for each in index) or "none"
    return (
        f"Triton at {address} is ready but does not serve {model}; it has: {present}. "
        "Add the model with crossrank repository, or name it with --triton-model"
    )
