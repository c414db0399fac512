"""Choose the files of a model on disk that an export reads."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from crossrank.bundles.bundle import Source, sha256_of
from crossrank.bundles.layout import Kind, choose_files
from crossrank.bundles.model_directory import checked_files, files_of, locate, name_of
from crossrank.checkpoints.converters import torch_is_installed
from crossrank.checkpoints.families import is_own_class
from crossrank.errors import ModelSourceError


@dataclass(frozen=True)
class SourceFiles:
    """A model's files on disk.

    Attributes:
        directory: Directory with config.json and tokenizer.json.
        kind: Kind of the weights, `safetensors` or `onnx`.
        graph: The ONNX file, where kind is `onnx`.
        source: Source for the manifest.
    """

    directory: Path
    kind: Kind
    graph: Path | None
    source: Source


def find_source(path: Path, *, kind: Kind | None = None, source: Source | None = None) -> SourceFiles:
    """Return the files that are read of a directory, or beside an ONNX file.

    Safetensors are preferred where the extra `export` is installed, as PyTorch is then the reference for parity;
    otherwise the ONNX graph of the directory is.

    Args:
        path: A Hugging Face directory, or an ONNX file beside (or one folder below) its config.json.
        kind: `safetensors` or `onnx` to read that only; None chooses.
        source: Source for the manifest; defaults to one derived from the path.

    Raises:
        ModelSourceError: A file is missing, or lies outside the directory.
    """
    directory, given = locate(path)
    names = files_of(directory)
    if given is not None:
        # Of several graphs there, only the given one.
        names = [name for name in names if name == given or not name.endswith((".onnx", ".safetensors"))]
        kind = "onnx"
    torch = kind != "onnx" and torch_is_installed()
    files = choose_files(
        names,
        str(directory),
        lambda name: (directory / name).read_bytes(),
        kind=kind,
        reads_weights=lambda config: torch,
    )
    if files.graph is None and not torch:
        raise ModelSourceError(
            f"{directory} has safetensors, which need PyTorch to become a graph: pip install 'crossrank[export]', or "
            "give a directory that has onnx/model.onnx"
        )
    read = checked_files(directory, files)
    record = source or Source(
        kind="directory" if given is None else "onnx",
        name=name_of(directory),
        revision=None,
        sha256={name: sha256_of(directory / name) for name in read},
    )
    return SourceFiles(directory, files.kind, directory / files.graph if files.graph else None, record)


def is_class_of_transformers(model_type: str, name: str) -> bool:
    """Return whether transformers itself has the cross-encoder class of a family, without code from the model."""
    if importlib.util.find_spec("transformers") is None:
        return is_own_class(model_type, name)
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model_type) == name
