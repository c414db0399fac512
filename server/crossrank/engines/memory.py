"""Return freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes


def return_memory() -> None:
    """Return freed memory to the system; glibc by itself keeps most of it. Does nothing with other C libraries."""
    # TypeError: Windows has no library of the process.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
