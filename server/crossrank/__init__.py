"""Cross-encoder rerankers in your own process: texts in, scores out, no torch.

    from crossrank import CrossEncoder

`cross_encoder` (what users call) -> `bundles` (models on disk) -> `text` (texts to token ids) -> `scheduling` (many
callers, full batches) -> `engines` (token ids to logits), with `native`, our own C++, below; `packed` is what they hand
to each other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime, from 1.29 on, starts a thread when it is imported, which reports to Microsoft; and a forked process
# waits for that thread when it ends, forever. ONNX Runtime reads this when it is imported; 0 brings the reports back.
# Source: onnxruntime/core/platform/posix/telemetry.cc, https://github.com/microsoft/onnxruntime
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from crossrank.cross_encoder import CrossEncoder, Prediction

__all__ = ["CrossEncoder", "Prediction"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import crossrank` alone costs next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import crossrank.cross_encoder

    return getattr(crossrank.cross_encoder, name)
