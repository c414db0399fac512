"""Compute with the encoder of `crossrank.native`: weights by role in place of a graph, and no padding."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.agreement import TOLERANCE
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.lent import Lent
from crossrank.errors import BundleError, EngineFailure, SetupError
from crossrank.native.library import Kernel, NativeContext, NativeError, NativeModel
from crossrank.native.weights import Shape, read_weights
from crossrank.packed import PairBatch, offsets_of

_TEST_LENGTHS = (1, 3, 17, 33, 64, 97)
_TEST_SEED = 0


def precision_of(kernel: Kernel) -> Literal["fp32", "bf16"]:
    """Return the precision of a kernel's products."""
    return "bf16" if kernel in ("avx512_bf16", "amx", "amx_emulated") else "fp32"


class KernelFault(SetupError):
    """One kernel cannot serve; another may."""


class NativeEngine(EmbeddedEngine):
    """Score packed pairs with a kernel made for this CPU.

    Before a kernel serves, its logits of a few pairs are compared with those of the portable one: no machine that built
    this project had every instruction set.

    Args:
        bundle: The model, with weights by role.
        kernel: One that this CPU runs.
        threads: Inferences at the same time; defaults to the available cores.

    Raises:
        BundleError: The bundle's weights are missing or do not fit its manifest.
        KernelFault: The kernel is not usable here, or disagrees with the portable one.
    """

    name = "native"
    pads = False

    def __init__(self, bundle: Bundle, kernel: Kernel, threads: int | None = None) -> None:
        record = bundle.manifest.weights
        if record is None:
            raise BundleError(f"{bundle.path} holds no weights by role, which engine native reads: use another engine")
        super().__init__(bundle, record.file, precision_of(kernel), threads)
        # About ten milliseconds of work of a TinyBERT-L2: a smaller batch costs more calls, a larger one makes urgent
        # requests wait.
        self.batch_tokens = 8192 if self.precision == "bf16" else 2048
        shape, weights = read_weights(bundle.path, record, bundle.manifest.architecture)
        if self._max_length > shape.positions:
            raise BundleError(
                f"{bundle.path}: max_length {self._max_length} is over the {shape.positions} positions of its weights: "
                "export the model with a smaller --max-length, or use another --engine"
            )
        try:
            self._model = NativeModel(kernel, shape, weights)
            self._contexts = Lent(partial(NativeContext, self._model))
            if kernel != "portable":
                self._test_kernel(kernel, NativeModel("portable", shape, weights), shape)
        except NativeError as error:
            raise KernelFault(f"engine native cannot load {bundle.path}: {error}") from error

    def _test_kernel(self, kernel: Kernel, portable: NativeModel, shape: Shape) -> None:
        generator = np.random.default_rng(_TEST_SEED)
        lengths = [min(length, shape.positions) for length in _TEST_LENGTHS]
        offsets = offsets_of(lengths)
        ids = generator.integers(0, shape.vocab_size, offsets[-1], np.int32)
        types = generator.integers(0, shape.segments, offsets[-1], np.int32)
        own, expected = (NativeContext(model).score(ids, types, offsets) for model in (self._model, portable))
        limit = TOLERANCE[self.precision] * max(1.0, float(np.abs(expected).max()))
        delta = float(np.abs(own - expected).max())
        if not delta <= limit:
            raise KernelFault(
                f"kernel {kernel} of engine native gives logits {delta:.3g} off the portable kernel's on this CPU "
                f"(limit {limit:.3g}): report this, and use --engine openvino or onnxruntime"
            )

    def infer(self, batch: PairBatch) -> NDArray[np.float32]:
        """See EmbeddedEngine.infer."""
        try:
            with self._contexts.one() as context:
                return context.score(batch.input_ids, batch.token_type_ids, batch.offsets)
        except NativeError as error:
            raise EngineFailure(f"native failed: {error}") from error
