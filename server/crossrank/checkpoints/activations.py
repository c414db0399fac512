"""Express transformers' activations as ONNX operators, by the names that config.json gives them.

Source: activations.py of https://github.com/huggingface/transformers, v4.57.6 (`ACT2FN`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from crossrank.checkpoints.emitter import Emitter

# Appends the nodes of an activation: takes the emitter and the input's name, returns the output's name.
Emit = Callable[[Emitter, str], str]


def _gelu(emit: Emitter, x: str) -> str:
    """Append x (1 + erf(x / sqrt 2)) / 2, in the form that runtimes recognize as GELU."""
    erf = emit.op("Erf", emit.op("Div", x, emit.scalar(math.sqrt(2))))
    return emit.op("Mul", emit.op("Mul", x, emit.op("Add", erf, emit.scalar(1))), emit.scalar(0.5))


def _gelu_by_tanh(emit: Emitter, x: str) -> str:
    """Append x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    cube = emit.op("Mul", emit.op("Mul", x, x), x)
    inner = emit.op("Add", x, emit.op("Mul", cube, emit.scalar(0.044715)))
    tanh = emit.op("Tanh", emit.op("Mul", inner, emit.scalar(math.sqrt(2 / math.pi))))
    return emit.op("Mul", emit.op("Mul", x, emit.op("Add", tanh, emit.scalar(1))), emit.scalar(0.5))


def _silu(emit: Emitter, x: str) -> str:
    return emit.op("Mul", x, emit.op("Sigmoid", x))


def _quick_gelu(emit: Emitter, x: str) -> str:
    return emit.op("Mul", x, emit.op("Sigmoid", emit.op("Mul", x, emit.scalar(1.702))))


ACTIVATIONS: dict[str, Emit] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_by_tanh,
    "gelu_fast": _gelu_by_tanh,
    "gelu_pytorch_tanh": _gelu_by_tanh,
    "quick_gelu": _quick_gelu,
    "relu": lambda emit, x: emit.op("Relu", x),
    "silu": _silu,
    "swish": _silu,
    "tanh": lambda emit, x: emit.op("Tanh", x),
}
ERF_GELU = ("gelu", "gelu_python")
"""Names of the published BERT's activation, which the native engine computes."""
