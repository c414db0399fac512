"""Check a model in Triton, by its metadata and configuration, against the bundle that tokenizes for it.

A model of the same shape but another vocabulary would answer every request, wrongly: so the model's parameters must
name the bundle's model id and tokenizer, which `crossrank repository` writes into every config.pbtxt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from crossrank.bundles.bundle import TOKENIZER, Manifest
from crossrank.errors import SetupError

_REMEDY = "write the repository again from this bundle with crossrank repository, or name another --model"


@dataclass(frozen=True)
class Contract:
    """State how requests for inference must look.

    Attributes:
        version: The version that answers; Triton takes the highest.
        inputs: Names of the INT32 [rows, length] inputs.
        output: Name of the FP32 [rows, 1] output.
        buckets: Lengths in tokens to pad to, ascending.
        max_rows: Pairs in one inference at most.
        merges_lengths: Pairs of all lengths may share an inference: the model drops their padding.
        precision: The arithmetic it was set up with.
    """

    version: str
    inputs: tuple[str, ...]
    output: str
    buckets: tuple[int, ...]
    max_rows: int
    merges_lengths: bool
    precision: str


def contract_from_replies(manifest: Manifest, metadata: Any, config: Any) -> Contract:
    """Read Triton's ModelMetadataResponse and ModelConfig.

    Source: https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto

    Raises:
        SetupError: The model does not take what this bundle's tokenizer makes.
    """
    name = metadata.name
    graph = manifest.graphs[0]
    _check_tensors(
        name,
        "inputs",
        {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs},
        {tensor.name: ("INT32", [-1, -1]) for tensor in graph.inputs},
    )
    _check_tensors(
        name,
        "outputs",
        {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs},
        {graph.output.name: ("FP32", [-1, 1])},
    )
    if config.max_batch_size < 1:
        raise SetupError(f"Triton's model {name} has max_batch_size {config.max_batch_size}, not 1 or more: {_REMEDY}")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    _check_parameters(name, parameters, manifest)
    mixed_rows = _number(parameters.get("crossrank_mixed_rows", "0"))
    return Contract(
        version=max(metadata.versions, key=_number, default=""),
        inputs=tuple(tensor.name for tensor in graph.inputs),
        output=graph.output.name,
        buckets=_buckets(name, parameters.get("crossrank_buckets", ""), manifest.max_length),
        max_rows=min(mixed_rows, config.max_batch_size) if mixed_rows > 0 else config.max_batch_size,
        merges_lengths=mixed_rows > 0,
        precision=parameters.get("crossrank_precision", "unknown"),
    )


_Tensors = dict[str, tuple[str, list[int]]]


def _check_tensors(name: str, kind: str, present: _Tensors, expected: _Tensors) -> None:
    if present != expected:
        raise SetupError(
            f"Triton's model {name} has the {kind} {_shown(present)}, the bundle needs {_shown(expected)}: {_REMEDY}"
        )


def _shown(tensors: _Tensors) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(tensors.items())) or "none"


def _check_parameters(name: str, parameters: dict[str, str], manifest: Manifest) -> None:
    expected = {
        "crossrank_model_id": manifest.model_id,
        "crossrank_tokenizer_sha256": manifest.files[TOKENIZER],
        "crossrank_max_length": str(manifest.max_length),
    }
    for key, value in expected.items():
        if parameters.get(key) != value:
            raise SetupError(
                f"Triton's model {name} has the parameter {key} {parameters.get(key)!r}, "
                f"the bundle {value!r}: {_REMEDY}"
            )


def _buckets(name: str, text: str, max_length: int) -> tuple[int, ...]:
    parts = text.split(",")
    buckets = tuple(int(part) for part in parts if part.isdecimal())
    ascending = len(buckets) == len(parts) and buckets[0] > 0 and all(a < b for a, b in pairwise(buckets))
    if not ascending or buckets[-1] != max_length:
        raise SetupError(
            f"Triton's model {name} has the parameter crossrank_buckets {text!r}, not ascending lengths up to "
            f"{max_length}: {_REMEDY}"
        )
    return buckets


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1
