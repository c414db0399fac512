"""Find the installed converter for models that the library does not convert itself.

A converter is a function that a distribution registers as an entry point, as this one does for `crossrank_export`:

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

# (model directory or ONNX file, bundle directory to create, origin with the files to read, index of the logit that is
# the score); raises CrossrankError on failure.
Convert = Callable[[Path, Path, Source, "int | None"], None]


def installed_converter(path: Path, out: Path, source: Source, label: int | None) -> None:
    """Convert a model with the installed converter, the first by name if there are several.

    Args:
        path: Directory of the model, or an ONNX file.
        out: Bundle directory to create.
        source: Origin of the model, with the files to read.
        label: Index of the logit that is the score, where the model gives several.

    Raises:
        ModelSourceError: No converter is installed, or it cannot be imported.
        CrossrankError: The conversion failed.
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
    """Tell whether the packages that convert safetensors of any family are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "optimum"))
