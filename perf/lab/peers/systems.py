"""The systems that `make bench-peers` compares with: their names, environments and ways to call them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossrank.errors import SetupError

# Files of a Hugging Face directory that its ONNX export needs too.
_COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class PeerSystem:
    """A system, called in one way.

    Attributes:
        name: Name for --peer and in reports.
        environment: `.venv-peer-NAME` holds it, made from perf/lab/peers/environments/NAME.txt by make peers.
        worker: NAME of the `worker/with_NAME.py` that calls it; empty where it is reached over HTTP.
        options: Options for that worker.
        needs_onnx: Whether it loads an ONNX file instead of the checkpoint.
    """

    name: str
    environment: str
    worker: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    needs_onnx: bool = False

    def python(self, environments: Path) -> Path:
        """Return the Python interpreter of its environment."""
        return environments / f".venv-peer-{self.environment}" / "bin" / "python"


_SENTENCE_TRANSFORMERS = [
    PeerSystem(f"sentence-transformers-{name}", "sentence-transformers", "sentence_transformers", {"backend": name})
    for name in ("torch", "torch-bf16", "onnx", "openvino")
]
INFINITY_HTTP = "infinity-http"
PEERS = {
    peer.name: peer
    for peer in (
        *_SENTENCE_TRANSFORMERS,
        PeerSystem("flashrank", "flashrank", "flashrank", needs_onnx=True),
        PeerSystem("fastembed", "fastembed", "fastembed", needs_onnx=True),
        PeerSystem("infinity", "infinity", "infinity"),
        PeerSystem(INFINITY_HTTP, "infinity"),
    )
}


def check_environments(peers: Sequence[PeerSystem], environments: Path) -> None:
    """Check that every environment is there, before minutes are spent measuring.

    Raises:
        SetupError: One is missing.
    """
    missing = sorted({peer.environment for peer in peers if not os.access(peer.python(environments), os.X_OK)})
    if missing:
        raise SetupError(
            f"no environment in {environments} for {', '.join(missing)}: make peers prepares them, or choose others "
            "with --peer"
        )


def export_plain_onnx(checkpoint: Path, directory: Path) -> Path:
    """Write model.onnx as optimum exports it, without the passes of crossrank, and the tokenizer's files beside it.

    Raises:
        SetupError: PyTorch is not installed here.
        ModelSourceError: The checkpoint cannot be exported.
    """
    try:
        import torch  # noqa: F401 - checked here, for a clear message
    except ImportError:
        raise SetupError(
            "flashrank and fastembed load an ONNX file, whose export needs PyTorch: pip install 'crossrank[export]', "
            "or leave them out with --peer"
        ) from None
    from crossrank_export.convert import graph_from_checkpoint, load_checkpoint
    from crossrank_export.graph_files import save_graph

    save_graph(graph_from_checkpoint(load_checkpoint(checkpoint), None), directory / "model.onnx")
    for name in _COMPANIONS:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, directory / name)
    return directory
