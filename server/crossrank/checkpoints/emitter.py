"""Write an ONNX graph node by node, with its weights in a file beside it.

Memory holds a copy of at most one weight at a time, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 17
"""The first opset with LayerNormalization as one operator; TensorRT 10.4 reads up to 20."""

_IR_VERSION = 8
# Smaller constants, such as shapes and scalars, stay in the graph, where runtimes look for them to optimize it.
_INLINE_BYTES = 1024
# Each array begins on a page, as runtimes map the file into memory by pages.
_ALIGNMENT = 4096
_PIECE_BYTES = 1 << 24


class WeightsFile:
    """Write the file of a graph's external data, hashing the arrays on the way.

    Args:
        path: File to create.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        """Hex sha256 of the bytes written so far."""
        return self._digest.hexdigest()

    def append(self, array: NDArray[Any]) -> int:
        """Write an array, little-endian and in C order, from a page boundary on; return its offset in bytes."""
        self._write(memoryview(bytes(-self._size % _ALIGNMENT)))
        offset = self._size
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _PIECE_BYTES):
            self._write(flat[start : start + _PIECE_BYTES].data)
        return offset

    def _write(self, piece: memoryview) -> None:
        self._stream.write(piece)
        self._digest.update(piece)
        self._size += len(piece)


class Emitter:
    """Collect the nodes and constants of a graph, and write it.

    Args:
        weights: Takes the arrays that are too large for the graph file.
    """

    def __init__(self, weights: WeightsFile) -> None:
        self._weights = weights
        self._nodes: list[Any] = []
        self._tensors: dict[str, Any] = {}
        self.offsets: dict[str, int] = {}
        """Offset in bytes of each array in the weights file, by name."""

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node with one output; return the output's name."""
        from onnx import helper

        output = output or f"{op_type}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def tensor(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant; return its name."""
        from onnx import TensorProto, helper

        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        if array.nbytes <= _INLINE_BYTES:
            tensor.raw_data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        else:
            offset = self.offsets[name] = self._weights.append(array)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self._weights.name), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
        self._tensors[name] = tensor
        return name

    def scalar(self, value: float) -> str:
        """Return the name of a float32 constant without dimensions."""
        name = f"scalar_{value!r}"
        return name if name in self._tensors else self.tensor(name, np.array(value, np.float32))

    def dims(self, *dims: int) -> str:
        """Return the name of a constant int64 vector, as Reshape and Slice read it."""
        name = "dims_" + "_".join(map(str, dims))
        return name if name in self._tensors else self.tensor(name, np.array(dims, np.int64))

    def index(self, value: int) -> str:
        """Return the name of an int64 constant without dimensions: a Gather with it removes the axis."""
        name = f"index_{value}"
        return name if name in self._tensors else self.tensor(name, np.array(value, np.int64))

    def write(self, path: Path, inputs: list[str], output: str, columns: int) -> None:
        """Write the graph file.

        Args:
            path: File to write, beside the weights file.
            inputs: Names of the inputs, int32 [batch, sequence] each.
            output: Name of the output, float32 [batch, columns].
            columns: Number of logits of a pair.
        """
        from onnx import TensorProto, helper

        axes = ["batch", "sequence"]
        graph = helper.make_graph(
            self._nodes,
            "crossrank",
            [helper.make_tensor_value_info(name, TensorProto.INT32, axes) for name in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", columns])],
            list(self._tensors.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="crossrank"
        )
        path.write_bytes(model.SerializeToString())
