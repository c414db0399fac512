"""Keep TensorRT's errors for the message of one exception, and log nothing of it."""

from __future__ import annotations

from collections import deque
from typing import Any

_MOST_OF_A_REASON = 500
# A plan may run for months.
_KEPT = 20


def new_logger(trt: Any) -> Any:
    """Return a logger of a TensorRT module, whose `reason()` is the first error since `forget()`."""

    class Errors(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))

        def forget(self) -> None:
            self.errors.clear()

        def reason(self) -> str:
            # Without a GPU each error is followed by one of the CUDA runtime that says so.
            first = next((error for error in [*self.errors] if "CUDA driver version" not in error), None)
            return first[:_MOST_OF_A_REASON] if first else "it gives no reason"

    return Errors()
