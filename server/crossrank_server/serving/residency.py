"""Which models are in memory: loaded when first asked for, asleep after idle time, within a budget.

A model is `asleep`, `warming` (it is being loaded) or `ready`. One model is loaded at a time, in a thread: loads would
compete for the same cores. What decides is done between two awaits on the event loop, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from crossrank.bundles.bundle import Bundle
from crossrank.engines.memory import return_memory
from crossrank.errors import BackendUnavailable, ModelWarming, SetupError
from crossrank_server.serving.served import ServedModel

_log = logging.getLogger("crossrank")

# Estimates for a model that was not loaded yet; measured with OpenVINO on 2 Zen 2 cores, for graphs of 18 to 440 MB:
# 98, 241, 533 and 1569 MB resident after warm-up, and 0.25 to 14 s to load. ONNX Runtime takes less.
_MB_PER_GRAPH_MB = 3.5
_MB_PER_MODEL = 35.0
_MB_LOADED_PER_S = 120.0
# A model loaded for a caller who was told to come back is kept at least this long, or two models that do not fit
# together would push each other out before anybody is answered.
_KEPT_FOR_CALLER_S = 10.0
# After this long a model in use may be idle, or what a load failed on be repaired.
_RETRY_S = 5.0


@dataclass(frozen=True)
class EngineFacts:
    """What computes a model's scores; None until the model is first loaded."""

    name: str | None = None
    precision: str | None = None


@dataclass(eq=False)
class ModelSlot:
    """A model of a server, in memory or not.

    Attributes:
        bundle: The model on disk.
        load: Loads it, blocking; called in a thread.
        memory_mb: What counts against the budget while it is loaded.
        pinned: It never sleeps.
        served: The loaded model; None while it is asleep or being loaded.
        engine: What computes, or last computed, its scores.
        users: Requests that use it or wait for it.
    """

    bundle: Bundle
    load: Callable[[], ServedModel]
    memory_mb: float = 0.0
    pinned: bool = False
    served: ServedModel | None = None
    engine: EngineFacts = EngineFacts()
    users: int = 0
    _used_s: float = 0.0
    _kept_until_s: float = 0.0
    _loading: asyncio.Task[None] | None = None
    _load_began_s: float = 0.0
    _load_took_s: float | None = None
    _failure_id: str = ""
    _timer: asyncio.TimerHandle | None = None

    @property
    def id(self) -> str:
        """The model's id."""
        return self.bundle.manifest.model_id

    @property
    def status(self) -> Literal["ready", "warming", "asleep"]:
        """Whether a request would be scored at once."""
        if self.served:
            return "ready"
        return "warming" if self._loading else "asleep"

    def wake(self, served: ServedModel) -> None:
        """Take what `load` gave."""
        self.served = served
        self.engine = EngineFacts(served.engine.name, served.engine.precision)


def estimated_memory_mb(bundle: Bundle) -> float:
    """Return about how many MB of resident memory the model takes when it is loaded."""
    return _MB_PER_MODEL + _MB_PER_GRAPH_MB * bundle.file(bundle.manifest.graph("fp32").file).stat().st_size / 1e6


class Residency:
    """Loads models for requests and puts idle ones to sleep.

    Args:
        slots: The models.
        idle_sleep_s: A model that is not pinned sleeps after this many seconds without a request; 0 is never.
        memory_budget_mb: `memory_mb` of all loaded models together; 0 is no limit. Of the idle ones, the least recently
            used sleeps first; one in use is never closed.

    Raises:
        SetupError: A model does not fit beside the pinned ones.
    """

    def __init__(
        self, slots: Iterable[ModelSlot] = (), *, idle_sleep_s: float = 0.0, memory_budget_mb: float = 0.0
    ) -> None:
        self._slots = list(slots)
        self._idle_sleep_s = idle_sleep_s
        self._budget_mb = memory_budget_mb
        self._closing: set[asyncio.Task[None]] = set()
        # Replaced each time it is set: whoever waits for room then looks again.
        self._changed = asyncio.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="crossrank-load")
        pinned_mb = sum(slot.memory_mb for slot in self._slots if slot.pinned)
        largest_mb = max((slot.memory_mb for slot in self._slots if not slot.pinned), default=0.0)
        if 0 < memory_budget_mb < pinned_mb + largest_mb:
            raise SetupError(
                f"--memory-budget-mb is {memory_budget_mb:g}, but the pinned models take about {pinned_mb:.0f} MB and "
                f"the largest of the others {largest_mb:.0f} MB: raise it, pin less, or leave models out"
            )

    @contextlib.asynccontextmanager
    async def hold(self, slot: ModelSlot, wait_s: float) -> AsyncIterator[ServedModel]:
        """Give the model, loaded, and keep it so until the block ends.

        Args:
            slot: The model.
            wait_s: Seconds to wait for it. A caller that gives up does not stop the load: others share it.

        Raises:
            ModelWarming: It is not loaded by then.
            BackendUnavailable: It cannot be loaded, or there is no room for it.
        """
        slot.users += 1
        try:
            yield slot.served or await self._wake(slot, wait_s)
        finally:
            slot.users -= 1
            slot._used_s = asyncio.get_running_loop().time()
            slot._kept_until_s = 0.0 if slot.served else slot._kept_until_s
            self._watch(slot)
            self._tell()

    async def _wake(self, slot: ModelSlot, wait_s: float) -> ServedModel:
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + wait_s
        while slot._loading is None:
            try:
                self._begin(slot)
            except BackendUnavailable:
                if loop.time() >= give_up_s:
                    raise
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(give_up_s - loop.time(), 1.0))
            if slot.served:
                return slot.served
        if wait_s <= 0:
            raise self._failed(slot) if slot._failure_id else self._warming(slot)
        done, _ = await asyncio.wait({slot._loading}, timeout=max(give_up_s - loop.time(), 0))
        if slot.served:
            return slot.served
        raise self._failed(slot) if done else self._warming(slot)

    def _begin(self, slot: ModelSlot) -> None:
        """Start to load it, after those that give way to it are closed.

        Raises:
            BackendUnavailable: Not enough models can give way.
        """
        for victim in self._those_that_give_way(slot):
            _log.info("%s goes to sleep to make room for %s", victim.id, slot.id)
            self._put_to_sleep(victim)
        slot._load_began_s = asyncio.get_running_loop().time()
        slot._loading = asyncio.get_running_loop().create_task(self._load(slot))

    def _those_that_give_way(self, slot: ModelSlot) -> list[ModelSlot]:
        if not self._budget_mb:
            return []
        now = asyncio.get_running_loop().time()
        loaded = [each for each in self._slots if each.status != "asleep"]
        idle = [each for each in loaded if each.served and not (each.pinned or each.users or each._kept_until_s > now)]
        excess_mb = sum(each.memory_mb for each in loaded) + slot.memory_mb - self._budget_mb
        victims: list[ModelSlot] = []
        for victim in sorted(idle, key=lambda each: each._used_s):
            if excess_mb <= 0:
                break
            victims.append(victim)
            excess_mb -= victim.memory_mb
        if excess_mb > 0:
            taken = ", ".join(f"{each.id} ({each.memory_mb:.0f} MB)" for each in loaded)
            raise BackendUnavailable(
                f"model {slot.id} needs {slot.memory_mb:.0f} MB, the budget of {self._budget_mb:g} MB for all models "
                f"is taken by {taken}, which are pinned, in use or just loaded for a caller: try again in "
                f"{_RETRY_S:g} s, send Prefer: wait=N, or raise --memory-budget-mb",
                code="memory_budget",
                retry_after_s=_RETRY_S,
            )
        return victims

    async def _load(self, slot: ModelSlot) -> None:
        loop = asyncio.get_running_loop()
        try:
            # Their memory is needed, and one of them may be this very model.
            await asyncio.gather(*self._closing)
            slot._load_began_s = loop.time()
            slot.wake(await loop.run_in_executor(self._loader, slot.load))
        except Exception as error:
            slot._failure_id = uuid.uuid4().hex[:12]
            _log.error("error %s: model %s cannot be loaded", slot._failure_id, slot.id, exc_info=error)
        else:
            slot._failure_id = ""
            slot._used_s = loop.time()
            slot._load_took_s = slot._used_s - slot._load_began_s
            slot._kept_until_s = slot._used_s + _KEPT_FOR_CALLER_S
            _log.info("%s is awake, loaded in %.1f s", slot.id, slot._load_took_s)
            self._watch(slot)
        finally:
            slot._loading = None
            self._tell()

    def _put_to_sleep(self, slot: ModelSlot) -> None:
        served, slot.served = slot.served, None
        assert served is not None  # who calls has looked; this tells mypy
        task = asyncio.get_running_loop().create_task(self._release(served))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _release(self, served: ServedModel) -> None:
        try:
            await served.close()
        except Exception:
            _log.exception("model %s did not end as it should", served.id)
        del served
        await asyncio.get_running_loop().run_in_executor(self._loader, return_memory)
        self._tell()

    def _watch(self, slot: ModelSlot, after_s: float | None = None) -> None:
        """See to it that the model sleeps when it has been idle long enough; one timer a model is enough."""
        if self._idle_sleep_s and slot.served and not (slot.pinned or slot.users or slot._timer):
            loop = asyncio.get_running_loop()
            slot._timer = loop.call_later(after_s or self._idle_sleep_s, self._sleep_if_idle, slot)

    def _sleep_if_idle(self, slot: ModelSlot) -> None:
        slot._timer = None
        if not slot.served or slot.users:
            return
        rest_s = slot._used_s + self._idle_sleep_s - asyncio.get_running_loop().time()
        if rest_s > 0:
            self._watch(slot, rest_s)
        else:
            _log.info("%s goes to sleep", slot.id)
            self._put_to_sleep(slot)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _warming(self, slot: ModelSlot) -> ModelWarming:
        """Estimate from the last load, or from the size; what is loaded before it counts too."""
        now = asyncio.get_running_loop().time()
        rest_s = sum(
            max((each._load_took_s or each.memory_mb / _MB_LOADED_PER_S) - (now - each._load_began_s), 0.0)
            for each in self._slots
            if each.status == "warming"
        )
        retry_after_s = max(float(round(rest_s)), 1.0)
        return ModelWarming(
            f"model {slot.id} was asleep and is being loaded: try again in {retry_after_s:g} s, or send Prefer: wait=N "
            "to be held up to N seconds",
            retry_after_s=retry_after_s,
        )

    def _failed(self, slot: ModelSlot) -> BackendUnavailable:
        return BackendUnavailable(
            f"model {slot.id} could not be loaded; the server's log has the cause under error id {slot._failure_id}; "
            "it is tried again with each request",
            code="model_load_failed",
            retry_after_s=_RETRY_S,
        )

    async def close(self) -> None:
        """Finish the loads and the batches under way, and release all models."""
        self._idle_sleep_s = 0.0
        await asyncio.gather(*(slot._loading for slot in self._slots if slot._loading))
        for slot in self._slots:
            if slot._timer:
                slot._timer.cancel()
            if slot.served:
                self._put_to_sleep(slot)
        await asyncio.gather(*self._closing)
        self._loader.shutdown()
