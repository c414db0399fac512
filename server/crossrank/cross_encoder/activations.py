"""Apply activations to a model's logits: chosen by name, a torch module or any function of arrays."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import SetupError

_log = logging.getLogger("crossrank")

Logits = NDArray[np.float32]
ActivationFunction = Callable[[Any], Any]


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + e^-logit) in float64, without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


class Activation:
    """Function from logits to scores, applied to float32 arrays.

    Args:
        function: Takes float32 [n, 1], the logits of a classifier with one label, and returns n scores in any shape.
        name: Name shown in messages.
        takes: Type of the argument, `array` or `tensor`. If a function of arrays raises TypeError or AttributeError, it
            is called again with a tensor, provided PyTorch is imported.
    """

    def __init__(self, function: ActivationFunction, name: str, *, takes: str = "array") -> None:
        self.function = function
        self.name = name
        self._takes = takes

    @property
    def is_callers_own(self) -> bool:
        """Whether it is none of those known by name, so that it may do anything: wait, or call the encoder itself."""
        return _NAMED.get(self.name) is not self

    def __call__(self, logits: Logits) -> NDArray[Any]:
        """Return the scores [n], in the function's floating-point type; other types become float32.

        Raises:
            ValueError: The function did not return one number for each logit.
        """
        column = logits[:, None]
        if self._takes == "tensor":
            scores = _on_tensor(self.function, column)
        else:
            try:
                scores = self.function(column)
            except (TypeError, AttributeError):
                if "torch" not in sys.modules:
                    raise
                scores = _on_tensor(self.function, column)
        scores = np.asarray(scores)
        if scores.size != len(logits) or scores.dtype.kind not in "fiub":
            raise ValueError(
                f"activation_fn {self.name} returned {list(scores.shape)} of {scores.dtype} for {list(column.shape)} "
                "logits: it must return one number for each"
            )
        flat = scores.reshape(len(logits))
        return flat if flat.dtype.kind == "f" else flat.astype(np.float32)

    def __reduce__(self) -> Any:
        if _NAMED.get(self.name) is self:
            return activation_from, (self.name,)
        return _unpickled, (self.function, self.name, self._takes)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"


def _unpickled(function: ActivationFunction, name: str, takes: str) -> Activation:
    return Activation(function, name, takes=takes)


def _identity(logits: Logits) -> Logits:
    return logits


def _sigmoid(logits: Logits) -> Logits:
    scores: Logits = np.exp(_log_sigmoid(logits.astype(np.float64))).astype(np.float32)
    return scores


def _log_sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    scores: NDArray[Any] = -np.logaddexp(-logits, 0)
    return scores


_Function = Callable[[Logits], NDArray[Any]]
_FUNCTIONS: dict[str, _Function] = {
    "identity": _identity,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda logits: np.maximum(logits, 0),
    "softplus": lambda logits: np.logaddexp(logits, 0),
    "logsigmoid": _log_sigmoid,
    "softmax": np.ones_like,  # over one label
}
# Modules of torch without options, computed here without tensors.
_PLAIN_MODULES = ("Identity", "Sigmoid", "Tanh", "ReLU")


_NAMED = {name: Activation(function, name) for name, function in _FUNCTIONS.items()}


def activation_from(choice: str | ActivationFunction | Activation) -> Activation:
    """Return the activation of a caller's choice.

    Args:
        choice: A name (`identity`, `sigmoid`, `tanh`, `relu`, `softplus`, `logsigmoid`), a torch module or function, or
            a function that takes a float32 array [n, 1] and returns n numbers.

    Raises:
        ValueError: The name is unknown.
        TypeError: The choice is neither a name nor callable.
    """
    if isinstance(choice, Activation):
        return choice
    if isinstance(choice, str):
        if choice not in _NAMED:
            raise ValueError(f"activation_fn {choice!r} is not known: use one of {', '.join(_NAMED)}, or a function")
        return _NAMED[choice]
    if not callable(choice):
        raise TypeError(f"activation_fn must be a name or a function, not {type(choice).__name__}")
    name = getattr(choice, "__name__", type(choice).__name__)
    if type(choice).__module__.startswith("torch.nn.modules.") and name in _PLAIN_MODULES:
        return _NAMED[name.lower()]
    owner = getattr(choice, "__module__", None) or type(choice).__module__
    return Activation(choice, name, takes="tensor" if owner.partition(".")[0] == "torch" else "array")


def default_activation(recorded: str) -> Activation:
    """Return the activation that a model's configuration names, chosen as in sentence-transformers.

    A class outside of torch is code of the model's author and is never run: the sigmoid replaces it, with a warning.
    Source: `CrossEncoder.get_default_activation_fn`, https://github.com/huggingface/sentence-transformers

    Args:
        recorded: Name or class path from the bundle's manifest.

    Raises:
        SetupError: It is a class of torch, and PyTorch is not installed.
    """
    if recorded in _NAMED:
        return _NAMED[recorded]
    module, _, name = recorded.rpartition(".")
    if module.partition(".")[0] != "torch":
        _log.warning("the activation %s of the model is not run, as it is its author's code: scores are sigmoids", name)
        return _NAMED["sigmoid"]
    try:
        return Activation(getattr(importlib.import_module(module), name)(), name, takes="tensor")
    except ImportError:
        raise SetupError(
            f"the model's scores are {recorded} of its logits, which needs PyTorch: pip install torch, or give "
            "activation_fn, for example activation_fn='identity' for the logits"
        ) from None


def _on_tensor(function: ActivationFunction, column: NDArray[np.float32]) -> Any:
    import torch

    with torch.inference_mode():
        scores = function(torch.from_numpy(column.copy()))
    return scores.detach().cpu().numpy() if isinstance(scores, torch.Tensor) else scores
