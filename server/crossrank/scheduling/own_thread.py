"""Functions that may wait for anything, each called in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_thread_of_its_own(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function in a new thread; return the future of its result."""
    future: Future[Result] = Future()

    def call() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="crossrank-function", daemon=True).start()
    return future
