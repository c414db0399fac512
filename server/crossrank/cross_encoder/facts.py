"""Expose an open model: its properties, its settings, and how to close it."""

from __future__ import annotations

import asyncio
import operator
from typing import TYPE_CHECKING, TypeVar

from crossrank.cross_encoder.activations import Activation, ActivationFunction, activation_from, default_activation
from crossrank.cross_encoder.config import ModelConfig, config_from_manifest
from crossrank.cross_encoder.handle import ModelHandle
from crossrank.engines.names import GPU_ENGINES

if TYPE_CHECKING:
    from crossrank.bundles.bundle import Manifest

Opened = TypeVar("Opened", bound="OpenedModel")


class OpenedModel:
    """Open a model, expose its properties and settings, and close it.

    Args:
        handle: Opens and holds the model.
        activation: Function from logits to scores; None is the one that the model's configuration names.
        max_length: Maximum tokens of a pair; None is the model's window.

    Raises:
        ValueError: `max_length` is not in the model's range.
        CrossrankError: The model cannot be opened, see `Opening.open`.
    """

    def __init__(self, handle: ModelHandle, activation: Activation | None, max_length: int | None) -> None:
        self._handle = handle
        self._activation = activation
        self._max_length: int | None = None
        handle.model()
        if max_length is not None:
            self.max_length = max_length

    @property
    def model_id(self) -> str:
        """Id of the model."""
        return self._manifest.model_id

    @property
    def config(self) -> ModelConfig:
        """Facts of the model under the names that transformers has for them."""
        return config_from_manifest(self._manifest)

    @property
    def num_labels(self) -> int:
        """Scores of a pair, always 1."""
        return 1

    @property
    def engine(self) -> str:
        """Engine in use: `native`, `openvino`, `onnxruntime`, `cuda` or `tensorrt`."""
        return self._handle.model().engine.name

    @property
    def precision(self) -> str:
        """Precision in use: `fp32`, `bf16` ..."""
        return self._handle.model().engine.precision

    @property
    def device(self) -> str:
        """Device in use: `cuda` or `cpu`."""
        return "cuda" if self._handle.model().engine.name in GPU_ENGINES else "cpu"

    @property
    def max_length(self) -> int:
        """Maximum tokens of a pair, special tokens included; can be set up to the model's window."""
        window = self._manifest.max_length
        return window if self._max_length is None else min(self._max_length, window)

    @max_length.setter
    def max_length(self, tokens: int) -> None:
        manifest = self._manifest
        # At least one token of each text.
        least = manifest.pair_template.special_tokens + 2
        if not least <= operator.index(tokens) <= manifest.max_length:
            raise ValueError(
                f"max_length is {tokens}; {manifest.model_id} takes {least} to {manifest.max_length} tokens a pair, "
                f"{least - 2} of them special: give a number in that range, or None"
            )
        self._max_length = operator.index(tokens)

    max_seq_length = max_length

    @property
    def activation_fn(self) -> Activation:
        """Function from logits to scores; can be set, see the argument `activation_fn`."""
        if self._activation is None:
            self._activation = default_activation(self._manifest.activation)
        return self._activation

    @activation_fn.setter
    def activation_fn(self, choice: str | ActivationFunction) -> None:
        self._activation = activation_from(choice)

    def close(self) -> None:
        """Wait for running calls, then release threads and memory. Calling it twice is harmless."""
        self._handle.close()

    async def aopen(self) -> None:
        """Open the model without blocking the event loop, if it is not open in this process (forked or unpickled).

        Raises:
            RuntimeError: The model is closed.
            CrossrankError: The model cannot be opened, see `Opening.open`.
        """
        if not self._handle.is_open:
            await asyncio.get_running_loop().run_in_executor(None, self._handle.model)

    async def aclose(self) -> None:
        """Close without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self: Opened) -> Opened:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def _manifest(self) -> Manifest:
        return self._handle.model().bundle.manifest
