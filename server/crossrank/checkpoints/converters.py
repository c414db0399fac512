"""What makes bundles of models that the library does not open itself, and whether that is installed.

Another distribution, or `crossrank_export` beside this package, offers a function by an entry point:

    [project.entry-points."crossrank.converters"]
    export = "crossrank_export.pipeline:bundle_from_files"
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from crossrank.bundles.bundle import Source
from crossrank.errors import ModelSourceError
from crossrank.reasons import reason_of

GROUP = "crossrank.converters"

# (model directory or ONNX file, bundle directory to create, where it came from and which files are read, which of
# several logits is the score); raises CrossrankError if it cannot.
Convert = Callable[[Path, Path, Source, "int | None"], None]


def installed_converter(path: Path, out: Path, source: Source, label: int | None) -> None:
    """Convert with the first converter that is installed, by name.

    Raises:
        ModelSourceError: None is installed, or it cannot be imported.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    if not found:
        raise ModelSourceError(
            f"{source.name} must be converted, and no converter is installed (entry point {GROUP}): "
            "pip install 'crossrank[export]'"
        )
    try:
        convert = cast(Convert, found[0].load())
    except Exception as error:  # a broken installation raises anything
        raise ModelSourceError(
            f"{source.name} must be converted, and the converter {found[0].value} cannot be imported "
            f"({reason_of(error)}): pip install 'crossrank[export]'"
        ) from error
    convert(path, out, source, label)


def torch_is_installed() -> bool:
    """Tell whether what converts safetensors of any family is there, without importing it."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "optimum"))
