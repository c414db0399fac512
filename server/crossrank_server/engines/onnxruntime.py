"""ONNX Runtime on the CPU: the engine that is always there, in fp32 or any variant that the bundle holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank_server.bundle import Bundle, Precision
from crossrank_server.engines.embedded import EmbeddedEngine
from crossrank_server.errors import BundleError


class OnnxRuntimeEngine(EmbeddedEngine):
    """Runs an ONNX graph with ONNX Runtime's CPU provider.

    Raises:
        BundleError: The graph cannot be loaded, or its inputs are not those of the manifest.
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
        path = bundle.file(graph.file)
        try:
            # Its fused Add + LayerNormalization takes three times as long on the CPU as the two apart (1.32).
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, ["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error
        present = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        expected = {tensor.name: f"tensor({tensor.dtype})" for tensor in graph.inputs}
        if present != expected:
            raise BundleError(f"{path}: the graph has inputs {present}, the manifest says {expected}; export it again")
        self._output = graph.output.name
        if self._output not in [tensor.name for tensor in self._session.get_outputs()]:
            raise BundleError(
                f"{path}: the graph has no output {self._output}, which the manifest names; export it again"
            )

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._session.run([self._output], inputs)[0]
        return output
