"""Talk to one Triton server: check its model, send inferences, and translate its failures."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Manifest
from crossrank.engines.triton.contract import Contract, contract_from_replies
from crossrank.errors import BackendError, BackendTimeout, CrossrankError, Overloaded, SetupError
from crossrank.native.padding import pad
from crossrank.packed import PairBatch

_log = logging.getLogger("crossrank.triton")

CHECK_TIMEOUT_S = 2.0
# A busy server may be late once; one that is late twice in a row is not used.
_LATE_CHECKS = 2
# gRPC's own pauses between connection attempts grow to two minutes, a returned server would wait for them.
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
# A day; larger figures mean no limit and may overflow on the way.
_LONGEST_S = 86_400.0


class ConnectionLost(Exception):
    """The connection was lost before an answer came; the inference may be sent to another server."""


class ModelChanged(Exception):
    """The server refused the shape or no longer has the model; its contract must be read again."""


class Endpoint:
    """Use the Triton server at one address.

    All methods belong to one event loop.

    Args:
        address: `ip:port`.
        model: Name of the engine model.
        manifest: That of the bundle that tokenizes for it.
        contract: The contract found at start-up; None keeps the server out of use until a check finds one.

    Attributes:
        contract: How inferences must look; None while the server is not usable.
        reason: Why it is not usable.
        late_checks: Checks in a row that were not answered in time.
        tokens_under_way: Padded tokens sent and not yet answered.
        last_sent_s: When an inference was sent last, on the event loop's clock.
        suspect: Set when an inference found the server gone, so that it is checked at once.
    """

    def __init__(self, address: str, model: str, manifest: Manifest, contract: Contract | None = None) -> None:
        self.address = address
        self.contract = contract
        self.reason = "not asked yet"
        self.late_checks = 0
        self.tokens_under_way = 0
        self.last_sent_s = 0.0
        self.suspect = asyncio.Event()
        self._model = model
        self._manifest = manifest
        self._client: Any = None
        self._calls: set[asyncio.Future[Any]] = set()

    @property
    def stalled(self) -> bool:
        """Tell whether the last checks were not answered in time."""
        return self.late_checks >= _LATE_CHECKS

    async def check(self) -> None:
        """Ask the server for its model and set `contract`, or `reason` where it is not usable."""
        from tritonclient.grpc import InferenceServerException

        try:
            client = self._connection()
            if not await client.is_model_ready(self._model, client_timeout=CHECK_TIMEOUT_S):
                return self._take_out(f"model {self._model} is not ready")
            metadata = await client.get_model_metadata(self._model, client_timeout=CHECK_TIMEOUT_S)
            reply = await client.get_model_config(self._model, client_timeout=CHECK_TIMEOUT_S)
            contract = contract_from_replies(self._manifest, metadata, reply.config)
        except SetupError as error:
            return self._take_out(error.message)
        except InferenceServerException as error:
            return await self._after_failed_check(error)
        self.late_checks = 0
        if contract != self.contract:
            _log.info("Triton at %s serves %s: %s", self.address, self._model, contract)
        self.contract = contract

    async def _after_failed_check(self, error: Any) -> None:
        if error.status() != "StatusCode.DEADLINE_EXCEEDED":
            return self._take_out(error.message())
        self.late_checks += 1
        if self.stalled:
            self._take_out(f"no answer within {CHECK_TIMEOUT_S:g} s")
            if not self._calls:
                # The connection itself may be dead without either side having been told.
                await self.close()

    async def infer(self, batch: PairBatch, length: int, deadline_s: float) -> tuple[NDArray[np.float32], str]:
        """Return the logits, float32 [pairs], and the version of the model that computed them.

        Args:
            batch: At most `contract.max_rows` pairs.
            length: Tokens to pad them to, one of `contract.buckets`.
            deadline_s: Time limit, on the event loop's clock.

        Raises:
            ConnectionLost, ModelChanged: The inference may be tried again, elsewhere or in another shape.
            Overloaded, BackendTimeout, BackendError: It may not.
        """
        from tritonclient.grpc import InferenceServerException

        loop = asyncio.get_running_loop()
        if self.contract is None:
            raise ConnectionLost(self.reason)
        remaining_s = min(deadline_s - loop.time(), _LONGEST_S)
        if remaining_s <= 0:
            raise _timeout(self.address, "the request's time was up before it was sent")
        tokens = len(batch) * length
        call = loop.create_task(self._call(self.contract, batch, length, remaining_s))
        self._calls.add(call)
        self.tokens_under_way += tokens
        self.last_sent_s = loop.time()
        try:
            await asyncio.wait({call})
            if call.cancelled():
                raise ConnectionLost(self.reason)
            return call.result()
        except InferenceServerException as error:
            failure = _failure(self.address, error)
            if isinstance(failure, ConnectionLost):
                self._take_out(error.message())
                self.suspect.set()
            raise failure from None
        finally:
            # Where the caller was cancelled this reaches Triton, which then drops the request from its queue.
            call.cancel()
            self._calls.discard(call)
            self.tokens_under_way -= tokens

    async def _call(
        self, contract: Contract, batch: PairBatch, length: int, remaining_s: float
    ) -> tuple[NDArray[np.float32], str]:
        from tritonclient.grpc import InferInput

        # As bytes in the request, not in shared memory: that saves nothing for passages (measured: 0.1 ms of 13 for 32
        # rows of 512 tokens), and a region whose request was cancelled may still be read by Triton.
        ids, types, mask = pad(batch, length, self._manifest.pad_token_id)
        arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        inputs = [InferInput(name, ids.shape, "INT32").set_data_from_numpy(arrays[name]) for name in contract.inputs]
        result = await self._connection().infer(
            self._model, inputs, timeout=max(1, int(remaining_s * 1e6)), client_timeout=remaining_s
        )
        logits = result.as_numpy(contract.output)
        if logits is None or logits.shape != (len(batch), 1):
            shape = None if logits is None else list(logits.shape)
            raise BackendError(
                f"Triton at {self.address} answered {shape} for {len(batch)} pairs, not [{len(batch)}, 1]"
            )
        return logits[:, 0], result.get_response().model_version

    def abandon(self) -> None:
        """Cancel the inferences under way, so that they are sent to other servers."""
        for call in self._calls:
            call.cancel()

    async def close(self) -> None:
        """Close the connection, which fails the inferences under way. The next one opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connection(self) -> Any:
        # Made here and not in __init__: a channel belongs to the event loop that made it.
        if self._client is None:
            from tritonclient.grpc.aio import InferenceServerClient

            self._client = InferenceServerClient(self.address, channel_args=_CHANNEL_OPTIONS)
        return self._client

    def _take_out(self, reason: str) -> None:
        if self.contract is not None:
            _log.warning("Triton at %s is taken out: %s", self.address, reason)
        self.contract, self.reason = None, reason


def _failure(address: str, error: Any) -> Exception:
    """Return the exception of a failed inference.

    Triton says UNAVAILABLE for a full queue and for a request that waited too long, gRPC for every lost connection;
    only the message tells them apart.
    Source: https://github.com/triton-inference-server/core (dynamic_batch_scheduler.cc, scheduler_utils.cc)
    """
    status, message = error.status(), error.message() or ""
    shown = message[:300]
    if status == "StatusCode.UNAVAILABLE":
        if "maximum queue size" in message:
            return Overloaded(
                f"the queue of Triton at {address} is full ({shown}): try again in a second, or raise its "
                "max_queue_size with crossrank repository",
                retry_after_s=1.0,
            )
        return _timeout(address, shown) if "timeout expired" in message else ConnectionLost(shown)
    if status == "StatusCode.DEADLINE_EXCEEDED":
        return _timeout(address, shown)
    if status in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"):
        return ModelChanged(shown)
    return BackendError(f"Triton at {address} failed: {shown}")


def _timeout(address: str, message: str) -> CrossrankError:
    return BackendTimeout(
        f"Triton at {address} did not answer in time ({message}): send fewer documents, or raise --request-timeout-s "
        "and the queue's timeout in Triton"
    )
