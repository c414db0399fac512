"""Serialize CUDA graph capture against all other GPU work of the process.

A thread that allocates or copies during a capture fails, and so does the capture; and a model may be loaded while
others serve.

Source: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__STREAM.html (cudaStreamCaptureModeGlobal)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Let any number of runs through at once, or one capture; a waiting capture goes before new runs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._waiting = 0
        self._capturing = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """Use the GPU inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing and not self._waiting)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Use the GPU alone inside the block."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._capturing and not self._running)
            self._waiting -= 1
            self._capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()
