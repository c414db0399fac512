"""Return freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes


def return_memory() -> None:
    """Return freed memory to the system; glibc by itself keeps most of it. Does nothing with other C libraries."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
