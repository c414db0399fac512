"""From safetensors to an ONNX graph and a PyTorch reference; the only module that needs torch."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossrank_export.graphs import Scorer, load_graph, score_in_batches
from crossrank_server.errors import ModelSourceError
from crossrank_server.reasons import reason_of

if TYPE_CHECKING:
    import onnx_ir

# The first opset with LayerNormalization as one operator; TensorRT 10.4 reads up to 20.
DEFAULT_OPSET = 17


def load_checkpoint(directory: Path) -> Any:
    """Load a sequence classifier in fp32 from safetensors, for inference.

    Raises:
        ModelSourceError: The files do not make a complete sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            directory,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # The one attention every architecture has, and the one whose graph is the plainest.
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and torch raise trees of their own
        raise ModelSourceError(f"{directory} cannot be loaded by transformers ({reason_of(error)})") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelSourceError(
            f"{directory} lacks weights ({missing}), which would be random: it is not a complete cross-encoder"
        )
    # Whatever type the file has: fp32 holds every fp16 and bf16 weight exactly.
    return model.float().eval()


def graph_from_checkpoint(model: Any, opset: int | None) -> onnx_ir.Model:
    """Export a loaded checkpoint through optimum, which knows each architecture's inputs and keeps token_type_ids.

    Raises:
        ModelSourceError: optimum does not know the architecture, or PyTorch cannot export it to that opset.
    """
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager

    try:
        configure = TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task="text-classification", library_name="transformers"
        )
        with tempfile.TemporaryDirectory(prefix="crossrank-export-") as folder, warnings.catch_warnings():
            # The tracer warns of every shape that it reads; the parity check is what tells whether it mattered.
            warnings.simplefilter("ignore")
            file = Path(folder) / "model.onnx"
            export(model, configure(model.config), file, opset=opset or DEFAULT_OPSET, device="cpu")
            return _in_memory(load_graph(file, None))
    except ModelSourceError:
        raise
    except Exception as error:
        raise ModelSourceError(
            f"{model.config.model_type} cannot be exported to ONNX opset {opset or DEFAULT_OPSET} ({reason_of(error)})"
        ) from error


def checkpoint_scorer(model: Any) -> Scorer:
    """Return a function that scores with PyTorch in fp32."""
    import torch

    # Not forward.__code__: transformers wraps forward in decorators, through which signature() sees.
    has_segments = "token_type_ids" in inspect.signature(model.forward).parameters

    def run(ids: NDArray[Any], types: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float32]:
        feeds = {"input_ids": ids, "attention_mask": mask}
        if has_segments:
            feeds["token_type_ids"] = types
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array.astype(np.int64)) for name, array in feeds.items()}
            logits: NDArray[np.float32] = model(**tensors).logits.float().numpy()
        return logits

    pad_token_id = model.config.pad_token_id or 0
    return lambda batch: score_in_batches(batch, pad_token_id, run)


def _in_memory(model: onnx_ir.Model) -> onnx_ir.Model:
    """Read external tensors before the folder they lie in goes away."""
    from onnx_ir import external_data

    return external_data.load_to_model(model)
