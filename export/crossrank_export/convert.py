"""From safetensors to an ONNX graph and a PyTorch reference; the only module that needs torch."""

from __future__ import annotations

import inspect
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


def graph_from_checkpoint(model: Any, opset: int | None, folder: Path) -> onnx_ir.Model:
    """Trace a loaded checkpoint as optimum describes it, who knows each architecture's inputs and keeps token_type_ids.

    Args:
        model: From `load_checkpoint`.
        opset: ONNX opset, DEFAULT_OPSET if None.
        folder: An empty directory that outlives the graph: weights of more than 2 GB are read from there.

    Raises:
        ModelSourceError: optimum does not know the architecture, or PyTorch cannot export it to that opset.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the architectures
    from optimum.exporters.tasks import TasksManager

    try:
        configure = TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task="text-classification", library_name="transformers"
        )
        file = folder / "model.onnx"
        with warnings.catch_warnings():
            # The tracer warns of every shape that it reads; the parity check is what tells whether it mattered.
            warnings.simplefilter("ignore")
            _trace(model, configure(model.config), file, opset or DEFAULT_OPSET)
        graph = load_graph(file, None)
        _name_columns(graph, model.config.num_labels)
        return graph
    except ModelSourceError:
        raise
    except Exception as error:
        raise ModelSourceError(
            f"{model.config.model_type} cannot be exported to ONNX opset {opset or DEFAULT_OPSET} ({reason_of(error)})"
        ) from error


def _trace(model: Any, settings: Any, file: Path, opset: int) -> None:
    """Write the graph that PyTorch's tracer sees.

    optimum's own `export` does the same, and then reads a graph of more than 2 GB into memory twice.
    Source: https://github.com/huggingface/optimum-onnx (exporters/onnx/convert.py, export_pytorch)

    Args:
        model: A checkpoint.
        settings: optimum's OnnxConfig of it.
        file: Where the graph goes; weights beside it, a file each, where protobuf cannot hold them.
        opset: ONNX opset.
    """
    import torch

    model.config.return_dict = True
    for name, value in (settings.values_override or {}).items():
        setattr(model.config, name, value)
    dummies = settings.rename_ambiguous_inputs(settings.generate_dummy_inputs(framework="pt"))
    with torch.no_grad(), settings.patch_model_for_export(model, model_kwargs={}):
        inputs = settings.ordered_inputs(model)
        torch.onnx.export(
            model,
            (dummies,),
            str(file),
            input_names=list(inputs),
            output_names=list(settings.outputs),
            dynamic_axes={**inputs, **settings.outputs},
            do_constant_folding=True,
            opset_version=opset,
            dynamo=False,
        )


def _name_columns(graph: onnx_ir.Model, num_labels: int) -> None:
    """Say how many logits a pair has, which the tracer leaves open."""
    import onnx_ir

    for output in graph.graph.outputs:
        if output.shape is not None and len(output.shape) == 2 and not isinstance(output.shape[1], int):
            output.shape = onnx_ir.Shape([output.shape[0], num_labels])


def checkpoint_scorer(model: Any) -> Scorer:
    """Return a function that scores with PyTorch in fp32."""
    import torch

    # Not forward.__code__: transformers wraps forward in decorators, through which signature() sees. A table of one
    # segment is read at its one row, whatever the tokenizer says.
    takes_segments = "token_type_ids" in inspect.signature(model.forward).parameters
    has_segments = takes_segments and (getattr(model.config, "type_vocab_size", None) or 0) > 1

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
