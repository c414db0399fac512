"""Inspect a model's directory on disk: its files and links, the external data of its graph, its name."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from crossrank.bundles.layout import CONFIG, ModelFiles
from crossrank.errors import ModelSourceError

# The key of TensorProto.external_data that names a file. Its length before it may be encoded in several ways.
_LOCATION = b"location"
# A repository in huggingface_hub's cache: models--OWNER--NAME/snapshots/COMMIT.
_REPOSITORY = re.compile(r"models--(?P<id>.+)")


def files_of(directory: Path) -> list[str]:
    """Return the files of a model's directory and of its folder `onnx`, as POSIX paths relative to the directory."""
    paths = [*directory.glob("*"), *directory.glob("onnx/*")]
    return sorted(path.relative_to(directory).as_posix() for path in paths if path.is_file())


def locate(path: Path) -> tuple[Path, str | None]:
    """Return a model's directory and, if `path` is an ONNX file, that file's path relative to the directory.

    Raises:
        ModelSourceError: The path does not exist, or is a file of another type.
    """
    if path.is_dir():
        return path, None
    if not path.is_file():
        raise ModelSourceError(f"{path} does not exist: give a Hugging Face directory, an ONNX file or a hub id")
    if path.suffix != ".onnx":
        raise ModelSourceError(f"{path} is not an ONNX file: give a .onnx file or a Hugging Face directory")
    parent = path.parent
    directory = parent if (parent / CONFIG).is_file() or not (parent.parent / CONFIG).is_file() else parent.parent
    return directory, path.relative_to(directory).as_posix()


def name_of(directory: Path) -> str:
    """Return a model's name: the hub id for a snapshot in huggingface_hub's cache, else the name of the directory."""
    directory = directory.resolve()
    repository = _repository(directory)
    if repository is None:
        return directory.name
    match = _REPOSITORY.fullmatch(repository.name)
    assert match is not None  # checked by _repository
    return match["id"].replace("--", "/", 1)


def checked_files(directory: Path, files: ModelFiles) -> list[str]:
    """Check the files of a model and return them, the external data of its graph included.

    Args:
        directory: Directory of the model.
        files: Files chosen from it.

    Raises:
        ModelSourceError: A file is missing, cut off or a placeholder, or links outside of the model.
    """
    names = [*files.names, *files.data]
    _refuse_foreign_links(directory, names)
    _refuse_placeholders(directory, names)
    if files.graph is not None:
        names += [name for name in _external_data(directory, files.graph) if name not in names]
    return names


def _external_data(directory: Path, graph: str) -> list[str]:
    """Return the external data files of a graph, as POSIX paths relative to the model's directory.

    Raises:
        ModelSourceError: A file is missing, cut off or a placeholder, or lies outside of the model.
    """
    locations = external_locations(directory / graph)
    names = {_inside(directory, graph, location): size for location, size in locations.items()}
    _refuse_placeholders(directory, names)
    for name, size in names.items():
        present = (directory / name).stat().st_size
        if present < size:
            raise ModelSourceError(
                f"{directory / name} has {present} bytes, {graph} reads {size} of it: download it again"
            )
    return sorted(names)


def external_locations(path: Path) -> dict[str, int]:
    """Return the external data files that a graph names, relative to its folder, with the bytes that it reads of each.

    Args:
        path: The graph. A file that is not a graph gives an empty result.
    """
    with path.open("rb") as stream:
        try:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(_LOCATION) < 0:
                    return {}
        except ValueError:  # an empty file
            return {}
    import onnx_ir

    try:
        model = onnx_ir.load(path)
    except Exception:  # protobuf and onnx_ir raise many types; whoever reads the graph next reports the error
        return {}
    tensors = [value.const_value for value in model.graph.initializers.values()]
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        attributes = node.attributes.values()
        tensors += [attribute.value for attribute in attributes if attribute.type == onnx_ir.AttributeType.TENSOR]
    ends: dict[str, int] = {}
    for tensor in tensors:
        if isinstance(tensor, onnx_ir.ExternalTensor):
            end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
            ends[str(tensor.location)] = max(end, ends.get(str(tensor.location), 0))
    return ends


def _refuse_placeholders(directory: Path, names: Iterable[str]) -> None:
    """Refuse placeholders: pointers of Git LFS, web pages, empty files.

    Raises:
        ModelSourceError: A file is a placeholder; the message names the first and says how to get the file.
    """
    for name in names:
        with (directory / name).open("rb") as stream:
            start = stream.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise ModelSourceError(
                f"{directory / name} is a pointer of Git LFS, not the file: run `git lfs pull` there, or `hf download`"
            )
        if not start.strip():
            raise ModelSourceError(f"{directory / name} is empty: download it again")
        if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            raise ModelSourceError(f"{directory / name} is a web page, not the file: download it again")


def _refuse_foreign_links(directory: Path, names: list[str]) -> None:
    """Refuse files of a hub snapshot that link outside of their repository.

    Raises:
        ModelSourceError: A file does; the message names the first.
    """
    repository = _repository(directory.resolve())
    if repository is None:
        return
    for name in names:
        target = (directory / name).resolve()
        if not target.is_relative_to(repository):
            raise ModelSourceError(
                f"{directory}: {name} is a link to {target}, outside of its repository in the hub's cache: remove it "
                "and download the model again"
            )


def _inside(directory: Path, graph: str, location: str) -> str:
    """Return the path of a graph's external data, relative to the model's directory.

    Raises:
        ModelSourceError: The file is missing, or lies outside of the model.
    """
    where = f"{directory / graph}: its external data {location!r}"
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or "\\" in location or ".." in parts:
        raise ModelSourceError(f"{where} lies outside of the model: only files beside the graph are read")
    path = PurePosixPath(graph).parent / location
    file = directory / path
    if not file.is_file():
        raise ModelSourceError(f"{where} is not there: download the whole model, {path} included")
    # If the graph itself is a link, its owner made it: the data may lie beside the link's target.
    roots = (_repository(directory.resolve()) or directory.resolve(), (directory / graph).resolve().parent)
    if not any(file.resolve().is_relative_to(root) for root in roots):
        raise ModelSourceError(
            f"{where} is a link to {file.resolve()}, outside of the model: put the file itself there"
        )
    return path.as_posix()


def _repository(directory: Path) -> Path | None:
    """Return the repository in huggingface_hub's cache that a directory is a snapshot of, or None."""
    parents = directory.parents
    if len(parents) < 2 or parents[0].name != "snapshots" or _REPOSITORY.fullmatch(parents[1].name) is None:
        return None
    return parents[1]
