"""Write a Triton model repository.

OUT/<model>/config.pbtxt           the engine model: token ids to logits
OUT/<model>/1/model.py, bundle/    target cpu
OUT/<model>/1/model.onnx           target onnxruntime-gpu, and the file of its weights where they lie outside
OUT/<model>/1/model.sm70...plan    target tensorrt
OUT/<model>_rerank/config.pbtxt    the text model: a query and documents to scores
OUT/<model>_rerank/1/model.py, bundle/   its bundle holds the manifest and the tokenizer only
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import MANIFEST, TOKENIZER, Bundle
from crossrank.errors import SetupError
from crossrank_export.triton.spec import RepositorySpec

CONFIG = "config.pbtxt"


def write_repository(bundle: Bundle, spec: RepositorySpec, out: Path, version: int = 1) -> list[Path]:
    """Write the engine model and the text model; other models and other versions in `out` stay as they are.

    A version appears whole or not at all, so that a Triton that polls `out` never loads half of one.

    Args:
        bundle: The model.
        spec: Parameters of the repository, from `make_spec`.
        out: Directory of the repository, which may hold other models.
        version: Number of this version; Triton serves the highest.

    Returns:
        Directories of the models.

    Raises:
        SetupError: `out` cannot be written, or Triton's client library is not installed.
    """
    try:
        from crossrank_export.triton.config import engine_config, text_config
    except ModuleNotFoundError as error:
        raise SetupError(
            f"{error.name} is not installed, which writes Triton's configuration: pip install 'crossrank[triton]'"
        ) from None

    models = [_write_model(out, engine_config(spec, bundle.manifest), version, _engine_files(bundle, spec))]
    text = out / spec.text_name
    if spec.text_instances:
        models.append(_write_model(out, text_config(spec, bundle.manifest), version, _text_files(bundle)))
    elif text.exists():
        raise SetupError(f"{text} is there from an earlier repository with a text model: remove it first")
    return models


def _engine_files(bundle: Bundle, spec: RepositorySpec) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        if spec.target == "cpu":
            _write_python_model(directory, "engine.py", bundle, [MANIFEST, *bundle.manifest.files])
        elif spec.target == "onnxruntime-gpu":
            from crossrank_export.triton.graph import write_int32_inputs

            if spec.graph.data_file is not None:
                shutil.copyfile(bundle.file(spec.graph.data_file), directory / spec.graph.data_file)
            write_int32_inputs(bundle.file(spec.graph.file), directory / "model.onnx")
        else:
            assert spec.plan is not None  # make_spec always sets it for this target; for mypy
            shutil.copyfile(bundle.file(spec.plan["file"]), directory / spec.plan["file"])

    return write


def _text_files(bundle: Bundle) -> Callable[[Path], None]:
    return lambda directory: _write_python_model(directory, "rerank.py", bundle, [MANIFEST, TOKENIZER])


def _write_python_model(directory: Path, source: str, bundle: Bundle, names: Iterable[str]) -> None:
    code = files("crossrank_export.triton.models").joinpath(source).read_text(encoding="utf-8")
    (directory / "model.py").write_text(code, encoding="utf-8")
    (directory / "bundle").mkdir()
    for name in names:
        shutil.copyfile(bundle.file(name), directory / "bundle" / name)


def _write_model(out: Path, config: Any, version: int, write_files: Callable[[Path], None]) -> Path:
    """Write the version directory of a model and its configuration, and move both into place."""
    from crossrank_export.triton.config import text_from_config

    model = out / str(config.name)
    try:
        model.mkdir(parents=True, exist_ok=True)
        # Beside the repository: Triton takes every directory in it for a model.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            partial = Path(folder) / "version"
            partial.mkdir()
            write_files(partial)
            (Path(folder) / CONFIG).write_text(text_from_config(config), encoding="utf-8")
            place = model / str(version)
            if place.exists():
                place.rename(Path(folder) / "old")
            partial.rename(place)
            (Path(folder) / CONFIG).replace(model / CONFIG)
    except OSError as error:
        raise SetupError(f"{out} cannot be written ({error}): give another --out") from error
    return model
