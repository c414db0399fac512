"""Keep models in memory: load them when a request needs them, put idle ones to sleep, stay within a budget.

One model is loaded at a time, in a thread: loads would compete for the same cores. All decisions are made between two
awaits on the event loop, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor

from crossrank.bundles.bundle import Bundle
from crossrank.engines.memory import return_memory
from crossrank.errors import BackendUnavailable, ModelWarming, SetupError
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.slot import ModelSlot

_log = logging.getLogger("crossrank")

# Estimates for a model that was not loaded yet; measured with OpenVINO on 2 Zen 2 cores, for graphs of 18 to 440 MB:
# 98, 241, 533 and 1569 MB resident after warm-up, and 0.25 to 14 s to load. ONNX Runtime takes less.
_MB_PER_GRAPH_MB = 3.5
_MB_PER_MODEL = 35.0
# After this long a model in use may be idle, or the cause of a failed load be repaired.
_RETRY_S = 5.0


def estimated_memory_mb(bundle: Bundle) -> float:
    """Return about how many MB of resident memory the model takes when it is loaded."""
    return _MB_PER_MODEL + _MB_PER_GRAPH_MB * bundle.file(bundle.manifest.graph("fp32").file).stat().st_size / 1e6


class Residency:
    """Load models for requests and put idle ones to sleep.

    Args:
        slots: The models.
        idle_sleep_s: A model that is not pinned sleeps after this many seconds without a request; 0 is never.
        memory_budget_mb: Limit for the `memory_mb` of all loaded models together; 0 is no limit. The least recently
            used idle models are put to sleep for a new one; a model in use is never closed.

    Raises:
        SetupError: A model does not fit beside the pinned ones.
    """

    def __init__(
        self, slots: Iterable[ModelSlot] = (), *, idle_sleep_s: float = 0.0, memory_budget_mb: float = 0.0
    ) -> None:
        self._slots = list(slots)
        self._idle_sleep_s = idle_sleep_s
        self._budget_mb = memory_budget_mb
        self._loads: dict[ModelSlot, asyncio.Task[None]] = {}
        self._timers: dict[ModelSlot, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()
        # Replaced each time it is set: requests that wait for room then look again.
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
    async def awake(self, slot: ModelSlot, wait_s: float) -> AsyncIterator[ServedModel]:
        """Enter with the loaded model, which stays loaded until the block ends.

        Args:
            slot: The model.
            wait_s: Seconds to wait for the load. A caller that gives up does not stop the load: others share it.

        Raises:
            ModelWarming: It is not loaded by then.
            BackendUnavailable: It cannot be loaded, or there is no room for it.
        """
        slot.enter()
        try:
            yield slot.served or await self._loaded(slot, wait_s)
        finally:
            slot.leave(_now_s())
            self._schedule_sleep(slot)
            self._notify()

    async def _loaded(self, slot: ModelSlot, wait_s: float) -> ServedModel:
        """Begin the load if none is under way, and wait for it.

        Raises:
            ModelWarming, BackendUnavailable: See `awake`.
        """
        give_up_s = _now_s() + wait_s
        while slot not in self._loads:
            try:
                self._begin(slot)
            except BackendUnavailable:
                if _now_s() >= give_up_s:
                    raise
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(give_up_s - _now_s(), 1.0))
            if slot.served:
                return slot.served
        if wait_s <= 0:
            raise _load_failed(slot) if slot.failure_id else self._still_warming(slot)
        done, _ = await asyncio.wait({self._loads[slot]}, timeout=max(give_up_s - _now_s(), 0))
        if slot.served:
            return slot.served
        raise _load_failed(slot) if done else self._still_warming(slot)

    def _begin(self, slot: ModelSlot) -> None:
        """Begin the load, after the models that must give way are put to sleep.

        Raises:
            BackendUnavailable: Not enough of them may sleep.
        """
        for victim in self._victims(slot):
            _log.info("%s goes to sleep to make room for %s", victim.id, slot.id)
            self._put_to_sleep(victim)
        slot.begin(_now_s())
        self._loads[slot] = asyncio.get_running_loop().create_task(self._load(slot))

    def _victims(self, slot: ModelSlot) -> list[ModelSlot]:
        """Return the models to put to sleep so that this one fits the budget, the least recently used first.

        Raises:
            BackendUnavailable: Not enough of them may sleep.
        """
        if not self._budget_mb:
            return []
        now_s = _now_s()
        loaded = [each for each in self._slots if each.status != "asleep"]
        idle = [each for each in loaded if each.may_be_evicted(now_s)]
        excess_mb = sum(each.memory_mb for each in loaded) + slot.memory_mb - self._budget_mb
        victims: list[ModelSlot] = []
        for victim in sorted(idle, key=lambda each: each.used_s):
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
        try:
            # Their memory is needed, and one of them may be this very model.
            await asyncio.gather(*self._closing)
            slot.begin(_now_s())
            served = await asyncio.get_running_loop().run_in_executor(self._loader, slot.load)
        except asyncio.CancelledError:
            slot.fail("")
            raise
        except Exception as error:
            failure_id = uuid.uuid4().hex[:12]
            slot.fail(failure_id)
            _log.error("error %s: model %s cannot be loaded", failure_id, slot.id, exc_info=error)
        else:
            slot.finish(served, _now_s())
            _log.info("%s is awake, loaded in %.1f s", slot.id, slot.load_took_s)
            self._schedule_sleep(slot)
        finally:
            del self._loads[slot]
            self._notify()

    def _put_to_sleep(self, slot: ModelSlot) -> None:
        task = asyncio.get_running_loop().create_task(self._release(slot.sleep()))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _release(self, served: ServedModel) -> None:
        try:
            await served.close()
        except Exception:
            _log.exception("model %s did not end as it should", served.id)
        del served
        await asyncio.get_running_loop().run_in_executor(self._loader, return_memory)
        self._notify()

    def _schedule_sleep(self, slot: ModelSlot, after_s: float | None = None) -> None:
        """Set the one timer that puts an idle model to sleep, unless it is set or not needed."""
        if self._idle_sleep_s and slot.may_sleep() and slot not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[slot] = loop.call_later(after_s or self._idle_sleep_s, self._sleep_if_idle, slot)

    def _sleep_if_idle(self, slot: ModelSlot) -> None:
        del self._timers[slot]
        if not slot.may_sleep():
            return
        rest_s = slot.used_s + self._idle_sleep_s - _now_s()
        if rest_s > 0:
            self._schedule_sleep(slot, rest_s)
        else:
            _log.info("%s goes to sleep", slot.id)
            self._put_to_sleep(slot)

    def _notify(self) -> None:
        """Let requests that wait for room look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _still_warming(self, slot: ModelSlot) -> ModelWarming:
        """Return the error that says when to come back; loads that come first count too."""
        rest_s = sum(each.expected_load_s(_now_s()) for each in self._slots)
        retry_after_s = max(float(round(rest_s)), 1.0)
        return ModelWarming(
            f"model {slot.id} was asleep and is being loaded: try again in {retry_after_s:g} s, or send Prefer: wait=N "
            "to be held up to N seconds",
            retry_after_s=retry_after_s,
        )

    async def close(self) -> None:
        """Finish the loads and the batches under way, and release all models."""
        self._idle_sleep_s = 0.0
        await asyncio.gather(*self._loads.values())
        for timer in self._timers.values():
            timer.cancel()
        for slot in self._slots:
            if slot.served:
                self._put_to_sleep(slot)
        await asyncio.gather(*self._closing)
        self._loader.shutdown()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _load_failed(slot: ModelSlot) -> BackendUnavailable:
    return BackendUnavailable(
        f"model {slot.id} could not be loaded; the server's log has the cause under error id {slot.failure_id}; "
        "it is tried again with each request",
        code="model_load_failed",
        retry_after_s=_RETRY_S,
    )
