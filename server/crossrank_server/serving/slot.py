"""One model of a server and its state: `asleep`, `warming` (it is being loaded) or `ready`, and how many use it.

    asleep --begin--> warming --finish--> ready --sleep--> asleep
                      warming --fail----> asleep

A slot knows no event loop and no other slot: Residency calls these methods and says what time it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from crossrank.bundles.bundle import Bundle
from crossrank_server.serving.served import ServedModel

# A model loaded for a caller who was told to come back is kept at least this long, or two models that do not fit
# together would evict each other before any caller is answered.
_KEPT_FOR_CALLER_S = 10.0
# Of graph file, loaded in a second; measured with OpenVINO on 2 Zen 2 cores.
_MB_LOADED_PER_S = 120.0


@dataclass(frozen=True)
class EngineFacts:
    """Name and precision of the engine that scores a model; None until the model is first loaded."""

    name: str | None = None
    precision: str | None = None


class ModelSlot:
    """Hold a model of a server, in memory or not.

    Args:
        bundle: The model on disk.
        load: Loads it, blocking; called in a thread.
        memory_mb: MB that count against the memory budget while it is loaded.
        pinned: It never sleeps.

    Attributes:
        engine: The engine that scores the model, or last scored it.
        users: Requests that use the model or wait for it.
        used_s: Event loop time when a request last ended, or when it was loaded.
        failure_id: Error id of the last load if that failed, else empty.
    """

    def __init__(
        self, bundle: Bundle, load: Callable[[], ServedModel], *, memory_mb: float = 0.0, pinned: bool = False
    ) -> None:
        self.bundle = bundle
        self.load = load
        self.memory_mb = memory_mb
        self.pinned = pinned
        self.engine = EngineFacts()
        self.users = 0
        self.used_s = 0.0
        self.failure_id = ""
        self._served: ServedModel | None = None
        self._warming = False
        self._kept_until_s = 0.0
        self._load_began_s = 0.0
        self._load_took_s: float | None = None

    @property
    def id(self) -> str:
        """The model's id."""
        return self.bundle.manifest.model_id

    @property
    def served(self) -> ServedModel | None:
        """The loaded model; None while it is asleep or warming."""
        return self._served

    @property
    def status(self) -> Literal["ready", "warming", "asleep"]:
        """Whether a request would be scored at once, after the load under way, or after a new one."""
        if self._served is not None:
            return "ready"
        return "warming" if self._warming else "asleep"

    def begin(self, now_s: float) -> None:
        """Note that a load begins; again when it starts to read, having waited for the memory of another model."""
        self._warming = True
        self._load_began_s = now_s

    def finish(self, served: ServedModel, now_s: float = 0.0) -> None:
        """Take the loaded model, and keep it for a while for the caller who was told to come back."""
        if self._warming:
            self._load_took_s = now_s - self._load_began_s
        self._warming = False
        self._served = served
        self.engine = EngineFacts(served.engine.name, served.engine.precision)
        self.failure_id = ""
        self.used_s = now_s
        self._kept_until_s = now_s + _KEPT_FOR_CALLER_S

    def fail(self, failure_id: str) -> None:
        """Note that the load failed; the log has the reason under the id."""
        self._warming = False
        self.failure_id = failure_id

    def sleep(self) -> ServedModel:
        """Give the loaded model up and return it, to be closed."""
        served, self._served = self._served, None
        if served is None:
            raise RuntimeError(f"model {self.id} is {self.status}: only a loaded one can be put to sleep")
        return served

    def enter(self) -> None:
        """Count a request that uses the model or waits for it."""
        self.users += 1

    def leave(self, now_s: float) -> None:
        """Count a request out. If it was scored, the model is no longer kept for a caller to come back."""
        self.users -= 1
        self.used_s = now_s
        if self._served is not None:
            self._kept_until_s = 0.0

    def may_sleep(self) -> bool:
        """Tell whether it is loaded, not pinned and not in use."""
        return self._served is not None and not self.pinned and not self.users

    def may_be_evicted(self, now_s: float) -> bool:
        """Tell whether it may sleep, and is not kept for a caller who was told to come back."""
        return self.may_sleep() and self._kept_until_s <= now_s

    def expected_load_s(self, now_s: float) -> float:
        """Return the seconds that the load under way will still take, from the last load or else the size.

        0 for a model that is not warming.
        """
        if not self._warming:
            return 0.0
        whole_s = self._load_took_s or self.memory_mb / _MB_LOADED_PER_S
        return max(whole_s - (now_s - self._load_began_s), 0.0)

    @property
    def load_took_s(self) -> float:
        """Seconds that the last load took; 0 if there was none."""
        return self._load_took_s or 0.0
