"""Calls of a CrossEncoder, sentence-transformers' or crossrank's, as Python expressions, and what came back as JSON."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import torch

_encoders = {}


def load(library: str, model: str, options: dict) -> str:
    """Open a model, once, and return its key."""
    key = repr((library, model, sorted(options.items())))
    if key not in _encoders:
        _encoders[key] = importlib.import_module(library).CrossEncoder(model, **options)
    return key


def call(encoder: str, expression: str, texts: dict) -> object:
    """Evaluate an expression of `encoder`, `np`, `torch` and the texts; return a description of its value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return described(eval(expression, {"encoder": _encoders[encoder], "np": np, "torch": torch, **texts}))


def described(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return {"tensor": str(value.dtype), "shape": list(value.shape), "values": value.flatten().tolist()}
    if isinstance(value, np.ndarray):
        return {"array": str(value.dtype), "shape": list(value.shape), "values": value.flatten().tolist()}
    if isinstance(value, np.generic):
        return {"scalar": str(value.dtype), "shape": [], "values": [value.item()]}
    if isinstance(value, list):
        return {"list": [described(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[key, described(each)] for key, each in value.items()]}
    return {"plain": type(value).__name__, "value": value}
