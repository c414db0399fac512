"""OpenVINO on the CPU: fp32, or bf16 arithmetic where the CPU has it (AMX, AVX-512 BF16)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossrank_server.bundle import Bundle
from crossrank_server.engines.base import PairBatch
from crossrank_server.engines.embedded import EmbeddedEngine
from crossrank_server.errors import BundleError


class OpenVinoEngine(EmbeddedEngine):
    """Runs the fp32 graph with OpenVINO's CPU plugin, one stream a thread.

    Raises:
        BundleError: The graph cannot be loaded, or its inputs are not those of the manifest.
        EngineFailure: It can be loaded but not run.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, precision: Literal["fp32", "bf16"] = "fp32", threads: int | None = None) -> None:
        import openvino

        graph = bundle.manifest.graph("fp32")
        super().__init__(bundle, graph, precision, threads)
        path = bundle.file(graph.file)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self.concurrency,
            "NUM_STREAMS": self.concurrency,
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        try:
            self._model: Any = openvino.Core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # OpenVINO raises plain RuntimeError
            raise BundleError(f"OpenVINO cannot load {path}: {error}") from error
        present = {port.get_any_name() for port in self._model.inputs}
        expected = {tensor.name for tensor in graph.inputs}
        if present != expected:
            raise BundleError(f"{path}: the graph has inputs {present}, the manifest says {expected}; export it again")
        self._infer_alone()

    def _infer_alone(self) -> None:
        """Run one pair before any other thread can.

        The binding initializes itself on first use; of two threads that get there together, one waits for the GIL
        and the other, holding it, for the first: for ever (openvino 2026.4).
        """
        pad = np.array([self._pad_token_id], np.int32)
        self.infer(PairBatch(pad, np.zeros(1, np.int32), np.array([0, 1])))
        del self._local.request

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        request.infer(inputs, share_inputs=True)
        output: NDArray[np.float32] = request.get_output_tensor(0).data
        return output
