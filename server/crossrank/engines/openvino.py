"""Compute with OpenVINO on the CPU: in fp32, or in bf16 where the CPU has it (AMX, AVX-512 BF16)."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.embedded import GraphEngine
from crossrank.engines.lent import Lent
from crossrank.errors import BundleError
from crossrank.reasons import reason_of


class OpenVinoEngine(GraphEngine):
    """Run the fp32 graph with OpenVINO's CPU plugin, one stream for each thread.

    Raises:
        BundleError: The graph cannot be loaded, or does not fit the manifest.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, precision: Literal["fp32", "bf16"] = "fp32", threads: int | None = None) -> None:
        graph = bundle.manifest.graph("fp32")
        super().__init__(bundle, graph, precision, threads)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self.concurrency,
            "NUM_STREAMS": self.concurrency,
            "PERFORMANCE_HINT": "THROUGHPUT",
            # Pinned, every process would take the first cores: two Triton instances would share one.
            "ENABLE_CPU_PINNING": False,
        }
        core = _core()
        try:
            self._model: Any = core.compile_model(str(self._path), "CPU", settings)
        except Exception as error:  # OpenVINO raises plain RuntimeError
            raise BundleError(f"OpenVINO cannot load {self._path.name} ({reason_of(error)})") from error
        self._requests = Lent(self._model.create_infer_request)
        dtypes = {"i32": "int32", "i64": "int64"}
        inputs = {
            _name(port, {tensor.name for tensor in graph.inputs}): port.get_element_type().get_type_name()
            for port in self._model.inputs
        }
        self._check_interface(
            {name: dtypes.get(dtype, dtype) for name, dtype in inputs.items()},
            {_name(port, {graph.output.name}): _columns(port.get_partial_shape()) for port in self._model.outputs},
        )

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        with self._requests.one() as request:
            request.infer(inputs, share_inputs=True)
            # Copied: the memory is the request's, which another thread may be lent next.
            return np.array(request.get_tensor(self._graph.output.name).data)


@cache
def _core() -> Any:
    # One for all models: each more keeps half a MB for good, also when its models are gone (openvino 2026.4).
    import openvino

    return openvino.Core()


def _name(port: Any, expected: set[str]) -> str:
    """Return the name of a port: it has several where OpenVINO merged a conversion into an input."""
    names: set[str] = port.get_names()
    return min(names & expected or names)


def _columns(shape: Any) -> int | None:
    """Return the last dimension of an OpenVINO shape, None where it is open."""
    if shape.rank.is_dynamic or len(shape) == 0 or shape[len(shape) - 1].is_dynamic:
        return None
    columns: int = shape[len(shape) - 1].get_length()
    return columns
