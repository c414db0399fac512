"""Compute with ONNX Runtime on the CPU: in fp32, or in another precision of which the bundle holds a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Precision
from crossrank.engines.embedded import GraphEngine
from crossrank.errors import BundleError
from crossrank.reasons import reason_of


class OnnxRuntimeEngine(GraphEngine):
    """Run an ONNX graph with ONNX Runtime's CPU provider.

    Raises:
        BundleError: The graph cannot be loaded, or does not fit the manifest.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, precision: Precision = "fp32", threads: int | None = None) -> None:
        import onnxruntime

        graph = bundle.manifest.graph(precision)
        super().__init__(bundle, graph, precision, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            # Its fused Add + LayerNormalization takes three times as long on the CPU as the two apart (1.32).
            self._session: Any = onnxruntime.InferenceSession(
                str(self._path), options, ["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise BundleError(f"ONNX Runtime cannot load {self._path.name} ({reason_of(error)})") from error
        self._check_interface(*session_interface(self._session))

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._session.run([self._graph.output.name], inputs)[0]
        return output


def session_interface(session: Any) -> tuple[dict[str, str], dict[str, int | None]]:
    """Return the dtype of each input of a session, and the columns of each output, None where they are left open."""
    integers = {"tensor(int32)": "int32", "tensor(int64)": "int64"}
    outputs = {tensor.name: (tensor.shape or [None])[-1] for tensor in session.get_outputs()}
    return (
        {tensor.name: integers.get(tensor.type, tensor.type) for tensor in session.get_inputs()},
        {name: columns if isinstance(columns, int) else None for name, columns in outputs.items()},
    )
