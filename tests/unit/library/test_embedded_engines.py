"""The engines in this process, apart from what they compute."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.openvino import OpenVinoEngine


class Recording(OpenVinoEngine):
    """Notes the thread of each inference."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.threads: list[str] = []
        super().__init__(*args, **kwargs)

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        self.threads.append(threading.current_thread().name)
        return super()._infer(inputs)


def test_openvino_has_inferred_alone_before_two_threads_can_and_wait_for_each_other(builtin: Bundle) -> None:
    # Started at once, two first inferences hung one start of the server in eight.
    assert Recording(builtin, "fp32", threads=2).threads == [threading.current_thread().name]
