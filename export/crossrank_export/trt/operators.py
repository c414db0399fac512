"""Check a graph before building: by TensorRT's own parser, and where that is not installed, by its published table.

The table is that of TensorRT 10.6, the nearest published one to 10.4 (between the two only STFT was added, by
10.5, and it is left out here); nothing in it was withdrawn in 10.15. tests/golden holds both tables.

Source: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md and docs/Changelog.md there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from crossrank.engines.tensorrt.build import parse_graph
from crossrank.engines.tensorrt.gpus import release_of
from crossrank.engines.tensorrt.runtimes import RTX
from crossrank.engines.tensorrt.spec import EngineSpec
from crossrank.errors import SetupError

_FLOAT = "FP32 FP16 BF16"
_NUMBER = f"{_FLOAT} INT32 INT64"
_ANY = f"{_NUMBER} BOOL"

_BY_DTYPES = {
    _FLOAT: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose
        Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM
        LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool
        MeanVarianceNormalization PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Reciprocal Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax
        Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample""",
    _NUMBER: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min
        Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
        ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub
        Sum TopK""",
    _ANY: """Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop
        OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""",
    f"{_ANY} UINT8": "Cast CastLike",
    "BOOL": "And Not Or Xor",
    "FP32 FP16": "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign",
    f"{_NUMBER} INT8": "Gelu",
    f"{_NUMBER} FP8": "Mean",
    "INT8 FP8 INT4": "DequantizeLinear",
}
SUPPORTED: dict[str, frozenset[str]] = {
    operator: frozenset(dtypes.split()) for dtypes, names in _BY_DTYPES.items() for operator in names.split()
}

# (first release, highest opset its parser publishes)
_OPSETS = (((10, 15), 24), ((10, 6), 22), ((10, 0), 20))
_OLDEST_OPSET = 9

# Inputs that must be known when the plan is built: those restrictions of the table that an encoder could meet.
_CONSTANT_INPUT = dict.fromkeys(["Squeeze", "Unsqueeze", *(name for name in SUPPORTED if name.startswith("Reduce"))], 1)

_DTYPES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64", "FLOAT8E4M3FN": "FP8",
}  # fmt: skip


def check_graph(trt: Any | None, path: Path, spec: EngineSpec) -> str:
    """Check that a plan's graph can be parsed, and return a sentence that says who answered.

    Args:
        trt: The module of `spec.runtime`, or None where it cannot be used on this machine.
        path: The ONNX file.
        spec: Parameters of the build.

    Raises:
        SetupError: The parser refuses the graph, or the table does for a release of TensorRT.
    """
    if trt is not None:
        parse_graph(trt, path, spec.release)
        return f"{path.name} was parsed by {spec.release}"
    if spec.runtime is RTX:
        return f"{path.name} was not parsed: {RTX.label} is not installed here (pip install 'crossrank[tensorrt]')"
    check_operators(path, spec.tensorrt)
    return f"{path.name} was compared with the published operator support: {spec.release} cannot parse it here"


def newest_opset(tensorrt_version: str) -> int:
    """Return the highest ONNX opset that the release's parser publishes as supported."""
    release = release_of(tensorrt_version)
    for first, opset in _OPSETS:
        if release >= first:
            return opset
    return _OPSETS[-1][1]


def graph_dtypes(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Return the dtypes of the values of each operator in the graph, in TensorRT's words.

    Operators of another domain than ONNX's own are listed as `domain::name`.

    Raises:
        SetupError: The types of the graph contradict each other.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise SetupError(f"the dtypes of the graph cannot be inferred ({error}): export the model again") from error
    types = {init.name: init.data_type for init in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    opset = _opset(model)
    found: dict[str, set[str]] = {}
    for node in inferred.graph.node:
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        values = _typed_values(node, opset) if name == node.op_type else []
        codes = {types.get(value, 0) for value in values} - {0}
        labels = {onnx.TensorProto.DataType.Name(code) for code in codes}
        found.setdefault(name, set()).update(_DTYPES.get(label, label) for label in labels)
    return found


def check_operators(path: Path, tensorrt_version: str) -> dict[str, set[str]]:
    """Check that a graph has only what TensorRT's ONNX parser publishes as supported.

    Args:
        path: The ONNX file.
        tensorrt_version: Release that will parse it.

    Returns:
        Operators of the graph, each with the dtypes that it is used with.

    Raises:
        SetupError: An operator, a dtype of one, the opset, or an input that must be constant is not supported.
    """
    model = onnx.load(str(path), load_external_data=False)
    opset, newest = _opset(model), newest_opset(tensorrt_version)
    if not _OLDEST_OPSET <= opset <= newest:
        raise SetupError(
            f"{path.name} is of opset {opset}, TensorRT {tensorrt_version} takes {_OLDEST_OPSET} to {newest}: "
            f"export the model again with --opset {min(newest, 17)}"
        )
    found = graph_dtypes(model)
    problems = [f"{name} (no such operator)" for name in found if name not in SUPPORTED]
    problems += [
        f"{name} at {', '.join(sorted(dtypes - SUPPORTED[name]))}"
        for name, dtypes in found.items()
        if name in SUPPORTED and dtypes - SUPPORTED[name]
    ]
    problems += _computed_axes(model)
    if problems:
        raise SetupError(
            f"{path.name} uses what TensorRT {tensorrt_version} does not support: {'; '.join(sorted(problems))}; "
            "export the model again from its source with crossrank export, which writes standard operators only"
        )
    return found


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _typed_values(node: onnx.NodeProto, opset: int) -> list[str]:
    """Return the names of the values whose dtype the table restricts.

    These are the outputs; the first input where the operator decides the dtype of the output (Equal, Shape); both for a
    Cast.
    """
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    output = schema.outputs[0].type_str
    allowed = next((len(c.allowed_type_strs) for c in schema.type_constraints if c.type_param_str == output), 1)
    if node.op_type == "Cast":
        return [node.input[0], *node.output]
    return list(node.output) if allowed > 1 else [node.input[0]]


def _computed_axes(model: onnx.ModelProto) -> list[str]:
    known = {init.name for init in model.graph.initializer}
    known |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    return [
        f"{node.op_type} with axes computed at run time ({node.name or node.output[0]})"
        for node in model.graph.node
        if (index := _CONSTANT_INPUT.get(node.op_type)) is not None
        and len(node.input) > index
        and node.input[index] not in known | {""}
    ]
