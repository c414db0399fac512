"""Hold the model of one encoder: open it when needed, once in each process, and close it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from crossrank.cross_encoder.opening import Opening

if TYPE_CHECKING:
    from crossrank.cross_encoder.loaded import LoadedModel


class ModelHandle:
    """Open a model on first use, and hold it.

    A handle can be pickled and used in a forked process. There it opens the model again, as only `opening` is carried
    over.

    Args:
        opening: Opens the model.
    """

    def __init__(self, opening: Opening) -> None:
        self.__setstate__({"opening": opening, "closed": False})

    def __getstate__(self) -> dict[str, Any]:
        return {"opening": self.opening, "closed": self._closed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.opening: Opening = state["opening"]
        self._closed: bool = state["closed"]
        self._lock = threading.Lock()
        self._model: LoadedModel | None = None
        self._finalizer: Any = None
        _HANDLES.add(self)

    @property
    def is_open(self) -> bool:
        """Whether the model is loaded in this process."""
        return self._model is not None

    def model(self) -> LoadedModel:
        """Return the model, opened first if necessary.

        Raises:
            RuntimeError: The handle is closed.
            CrossrankError: The model cannot be opened, see `Opening.open`.
        """
        model = self._model
        if model is not None:
            return model
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self.opening.model} is closed: open it with a new CrossEncoder")
            if self._model is None:
                self._model = self.opening.open()
                # If nobody closes the model, its thread ends when this object is freed.
                self._finalizer = weakref.finalize(self, self._model.stop)
            return self._model

    def close(self) -> None:
        """Wait for running calls, then release threads and memory. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            model, self._model = self._model, None
            if model is None:
                return
            self._finalizer.detach()
            model.close()

    def forget(self) -> None:
        """Drop the parent's model in a forked process, where the model's threads do not exist.

        Its memory is never freed here, as some runtimes would then wait for those threads.
        """
        self._lock = threading.Lock()
        if self._model is not None:
            self._finalizer.detach()
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._model))
            self._model = None


_HANDLES: weakref.WeakSet[ModelHandle] = weakref.WeakSet()


def _forget_all() -> None:
    for handle in list(_HANDLES):
        handle.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
