"""Convert safetensors to an ONNX graph and a PyTorch reference; the only module that needs torch."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import external_data
from safetensors import SafetensorError

from crossrank.checkpoints.emitter import OPSET
from crossrank.errors import ModelSourceError
from crossrank.reasons import reason_of
from crossrank_export.graph_files import INLINE_BYTES, put_back
from crossrank_export.graphs import Scorer, load_graph, score_in_batches

# Rows of an embedding table that is cut for the tracer: more than the positions of optimum's example pairs.
_TABLE_ROWS = 1024


def load_checkpoint(directory: Path, pad_token_id: int = 0) -> Any:
    """Load a sequence classifier in fp32 from safetensors, for inference.

    Args:
        directory: Directory of the model.
        pad_token_id: Id of the padding token, used where the configuration names none.

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
            # The only implementation that every architecture has, and the one with the simplest graph.
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and torch raise many types
        remedy = ": download it again" if isinstance(error, SafetensorError) else ""
        raise ModelSourceError(f"{directory} cannot be loaded by transformers ({reason_of(error)}){remedy}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelSourceError(
            f"{directory} lacks weights ({missing}), which would be random: it is not a complete cross-encoder"
        )
    stated = model.config.pad_token_id
    if stated is None or not 0 <= stated < model.config.vocab_size:
        model.config.pad_token_id = pad_token_id
    # fp32 holds every fp16 and bf16 weight of a file exactly.
    return model.float().eval()


def graph_from_checkpoint(model: Any, opset: int | None, inline_bytes: int = INLINE_BYTES) -> onnx_ir.Model:
    """Trace a loaded checkpoint with optimum, which knows the inputs of each architecture and keeps token_type_ids.

    Args:
        model: Checkpoint from `load_checkpoint`.
        opset: ONNX opset; defaults to OPSET.
        inline_bytes: Largest size of weights that the tracer writes itself. Where they take more, the graph refers to
            the weights of `model` in memory.

    Raises:
        ModelSourceError: optimum does not know the architecture, or PyTorch cannot export it to that opset.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the architectures
    from optimum.exporters.tasks import TasksManager

    try:
        configure = TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task="text-classification", library_name="transformers"
        )
    except (KeyError, ValueError) as error:  # which lists all architectures that it knows
        raise ModelSourceError(
            f"optimum does not know how to export {model.config.model_type} as a text classifier: give an ONNX graph "
            "of it (torch.onnx.export) with inputs input_ids, attention_mask and token_type_ids and the output logits"
        ) from error
    try:
        is_large = sum(parameter.nbytes for parameter in model.parameters()) > inline_bytes
        with tempfile.TemporaryDirectory(prefix="crossrank-export-") as folder, warnings.catch_warnings():
            # The tracer warns of every shape that it reads; whether that matters is what the parity check finds out.
            warnings.simplefilter("ignore")
            file = Path(folder) / "model.onnx"
            _trace(model, configure(model.config), file, opset or OPSET, with_weights=not is_large)
            # The tracer may put weights beside the file, whose folder is removed.
            graph = external_data.load_to_model(load_graph(file, None))
        if is_large:
            _attach_weights(graph, model)
        _count_columns(graph, model.config.num_labels)
        return graph
    except ModelSourceError:
        raise
    except Exception as error:
        raise ModelSourceError(
            f"{model.config.model_type} cannot be exported to ONNX opset {opset or OPSET} ({reason_of(error)})"
        ) from error


def _trace(model: Any, settings: Any, file: Path, opset: int, *, with_weights: bool) -> None:
    """Write the graph that PyTorch traces, as optimum's `export` does, but without a copy of the weights if asked.

    Source: https://github.com/huggingface/optimum-onnx (exporters/onnx/convert.py, export_pytorch)

    Args:
        model: The checkpoint.
        settings: optimum's OnnxConfig of it.
        file: File to write.
        opset: ONNX opset.
        with_weights: Whether the file holds the weights; otherwise they are inputs of the graph, under their names.
    """
    import torch

    model.config.return_dict = True
    for name, value in (settings.values_override or {}).items():
        setattr(model.config, name, value)
    dummies = settings.rename_ambiguous_inputs(settings.generate_dummy_inputs(framework="pt"))
    if getattr(model.config, "type_vocab_size", None) == 1 and "token_type_ids" in dummies:
        dummies["token_type_ids"] *= 0  # optimum makes two types
    if not with_weights:
        dummies["input_ids"] %= _TABLE_ROWS
    cut = nullcontext() if with_weights else _short_tables(model)
    with torch.no_grad(), cut, settings.patch_model_for_export(model, model_kwargs={}):
        inputs = settings.ordered_inputs(model)
        torch.onnx.export(
            model,
            (dummies,),
            str(file),
            input_names=list(inputs),
            output_names=list(settings.outputs),
            dynamic_axes={**inputs, **settings.outputs},
            export_params=with_weights,
            do_constant_folding=with_weights,
            opset_version=opset,
            dynamo=False,
        )


@contextmanager
def _short_tables(model: Any) -> Iterator[None]:
    """Cut long embedding tables while the tracer runs: shape inference makes two copies of each weight."""
    import torch

    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    whole = [(table, table.weight) for table in tables if len(table.weight) > _TABLE_ROWS]
    for table, weight in whole:
        table.weight = torch.nn.Parameter(weight.detach()[:_TABLE_ROWS])
    try:
        yield
    finally:
        for table, weight in whole:
            table.weight = weight


def _attach_weights(graph: onnx_ir.Model, model: Any) -> None:
    """Add the weights of a checkpoint to a graph that was traced without them; they are not copied."""
    arrays = {name: tensor.detach().numpy() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    names = [str(value.name) for value in graph.graph.inputs if value.name in arrays]
    put_back(graph, {name: onnx_ir.tensor(arrays[name], name=name) for name in names}, names)


def _count_columns(graph: onnx_ir.Model, num_labels: int) -> None:
    """Set the number of logits of a pair, which the tracer leaves open, in the output's shape."""
    for output in graph.graph.outputs:
        if output.shape is not None and len(output.shape) == 2 and not isinstance(output.shape[1], int):
            output.shape = onnx_ir.Shape([output.shape[0], num_labels])


def checkpoint_scorer(model: Any) -> Scorer:
    """Return a function that scores with PyTorch in fp32."""
    import torch

    # Not forward.__code__: transformers wraps forward in decorators, and signature() follows them.
    has_segments = "token_type_ids" in inspect.signature(model.forward).parameters

    def run(ids: NDArray[Any], types: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float32]:
        feeds = {"input_ids": ids, "attention_mask": mask}
        if has_segments:
            feeds["token_type_ids"] = types
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array.astype(np.int64)) for name, array in feeds.items()}
            logits: NDArray[np.float32] = model(**tensors).logits.float().numpy()
        return logits

    return lambda batch: score_in_batches(batch, model.config.pad_token_id, run)
