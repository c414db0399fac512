"""From safetensors to an ONNX graph and a PyTorch reference; the only module that needs torch."""

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

# Of a table that is cut for the tracer: more than optimum's pairs have positions.
_TABLE_ROWS = 1024


def load_checkpoint(directory: Path, pad_token_id: int = 0) -> Any:
    """Load a sequence classifier in fp32 from safetensors, for inference.

    Args:
        directory: The model's.
        pad_token_id: Fills shorter pairs where its configuration has nothing for that.

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
    # Whatever type the file has: fp32 holds every fp16 and bf16 weight exactly.
    return model.float().eval()


def graph_from_checkpoint(model: Any, opset: int | None, inline_bytes: int = INLINE_BYTES) -> onnx_ir.Model:
    """Trace a loaded checkpoint as optimum describes it, who knows each architecture's inputs and keeps token_type_ids.

    Args:
        model: From `load_checkpoint`.
        opset: ONNX opset, OPSET if None.
        inline_bytes: Weights that go through the tracer's file. Of larger ones the graph holds those of `model`.

    Raises:
        ModelSourceError: optimum does not know the architecture, or PyTorch cannot export it to that opset.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the architectures
    from optimum.exporters.tasks import TasksManager

    try:
        configure = TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task="text-classification", library_name="transformers"
        )
    except (KeyError, ValueError) as error:  # which lists all that it does know
        raise ModelSourceError(
            f"optimum does not know how to export {model.config.model_type} as a text classifier: give an ONNX graph "
            "of it (torch.onnx.export) with inputs input_ids, attention_mask and token_type_ids and the output logits"
        ) from error
    try:
        is_large = sum(parameter.nbytes for parameter in model.parameters()) > inline_bytes
        with tempfile.TemporaryDirectory(prefix="crossrank-export-") as folder, warnings.catch_warnings():
            # The tracer warns of every shape that it reads; the parity check is what tells whether it mattered.
            warnings.simplefilter("ignore")
            file = Path(folder) / "model.onnx"
            _trace(model, configure(model.config), file, opset or OPSET, with_weights=not is_large)
            # The tracer puts weights beside the file by a bound of its own, and the folder goes.
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
    """Write the graph that PyTorch's tracer sees, as optimum's `export` does, which always copies the weights.

    Source: https://github.com/huggingface/optimum-onnx (exporters/onnx/convert.py, export_pytorch)

    Args:
        model: A checkpoint.
        settings: optimum's OnnxConfig of it.
        file: Where the graph goes.
        opset: ONNX opset.
        with_weights: Whether the file holds the weights; else they are inputs of the graph, by their names.
    """
    import torch

    model.config.return_dict = True
    for name, value in (settings.values_override or {}).items():
        setattr(model.config, name, value)
    dummies = settings.rename_ambiguous_inputs(settings.generate_dummy_inputs(framework="pt"))
    if getattr(model.config, "type_vocab_size", None) == 1 and "token_type_ids" in dummies:
        dummies["token_type_ids"] *= 0  # optimum's are of two types
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
    """Cut long embedding tables while the tracer runs, which makes two copies of each weight that it infers from."""
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
    """Give a graph that was traced without them the checkpoint's own weights, in the memory where they are."""
    arrays = {name: tensor.detach().numpy() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    names = [str(value.name) for value in graph.graph.inputs if value.name in arrays]
    put_back(graph, {name: onnx_ir.tensor(arrays[name], name=name) for name in names}, names)


def _count_columns(graph: onnx_ir.Model, num_labels: int) -> None:
    """Say how many logits a pair has, which the tracer leaves open."""
    for output in graph.graph.outputs:
        if output.shape is not None and len(output.shape) == 2 and not isinstance(output.shape[1], int):
            output.shape = onnx_ir.Shape([output.shape[0], num_labels])


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

    return lambda batch: score_in_batches(batch, model.config.pad_token_id, run)
