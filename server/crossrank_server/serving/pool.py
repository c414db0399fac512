"""The models of a server: looked up by any of their names, kept awake while they are used."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from crossrank.bundles.catalog import canonical_model_id
from crossrank.errors import ModelNotFound
from crossrank_server.serving.residency import Residency
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.slot import ModelSlot


class ModelPool:
    """Hold the models that a server offers.

    Args:
        models: The first one is the default. A loaded model is pinned.
        idle_sleep_s: See Residency.
        memory_budget_mb: See Residency.
        strict_names: Refuse an unknown name; otherwise it gets the default model, as some applications send names of
            their own.

    Raises:
        SetupError: A model does not fit into the budget.
    """

    def __init__(
        self,
        models: Iterable[ServedModel | ModelSlot],
        *,
        idle_sleep_s: float = 0.0,
        memory_budget_mb: float = 0.0,
        strict_names: bool = True,
    ) -> None:
        slots = [_pinned(model) if isinstance(model, ServedModel) else model for model in models]
        self._slots = {slot.id: slot for slot in slots}
        self._residency = Residency(slots, idle_sleep_s=idle_sleep_s, memory_budget_mb=memory_budget_mb)
        self._strict_names = strict_names

    @property
    def slots(self) -> list[ModelSlot]:
        """All models, the default first, whether awake or asleep."""
        return list(self._slots.values())

    def ready(self) -> bool:
        """Tell whether every pinned model can take requests; one that sleeps is no fault."""
        return all(slot.served is not None and slot.served.engine.ready() for slot in self.slots if slot.pinned)

    def resolve(self, name: str | None) -> str:
        """Return the id of the model that a name means (older spellings accepted); no name is the default.

        Raises:
            ModelNotFound: It is not served here.
        """
        if not name:
            return self.slots[0].id
        for spelling in (name, canonical_model_id(name)):
            if spelling in self._slots:
                return spelling
        if not self._strict_names:
            return self.slots[0].id
        served = ", ".join(self._slots)
        raise ModelNotFound(f"model {name[:200]!r} is not served here; served: {served}", param="model")

    def awake(self, model_id: str, wait_s: float = 0.0) -> AbstractAsyncContextManager[ServedModel]:
        """Enter with the loaded model, which stays loaded until the block ends; see Residency.awake.

        Args:
            model_id: As `resolve` gives it.
            wait_s: Seconds to wait while it is loaded; a request's time limit begins after it.

        Raises:
            ModelWarming: It is being loaded.
            BackendUnavailable: It cannot be loaded, or there is no room for it.
        """
        return self._residency.awake(self._slots[model_id], wait_s)

    async def close(self) -> None:
        """Finish the batches under way and release the engines."""
        await self._residency.close()


def _pinned(served: ServedModel) -> ModelSlot:
    slot = ModelSlot(served.bundle, lambda: served, pinned=True)
    slot.finish(served)
    return slot
