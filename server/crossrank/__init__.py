"""Rerank texts with cross-encoders in your own process, without PyTorch.

    from crossrank import CrossEncoder

A call runs from `cross_encoder` (the public class) through `bundles` (models on disk), `text` (texts to token ids) and
`scheduling` (batches across callers) to `engines` (token ids to logits). `native` holds the C++ code that they use;
`packed` defines the arrays that they exchange.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.29 and later starts a thread on import that sends telemetry to Microsoft. A forked process waits for
# that thread forever when it ends. ONNX Runtime reads this variable on import; set it to 0 to turn telemetry on.
# Source: onnxruntime/core/platform/posix/telemetry.cc, https://github.com/microsoft/onnxruntime
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from crossrank.cross_encoder import CrossEncoder, Prediction

__all__ = ["CrossEncoder", "Prediction"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import crossrank` alone stays fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import crossrank.cross_encoder

    return getattr(crossrank.cross_encoder, name)
