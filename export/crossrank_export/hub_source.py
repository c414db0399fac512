"""A model of the hub as an export source: safetensors where PyTorch is installed, else its ONNX graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from crossrank_export.sources import CARD, Kind, SourceFiles, find_source, torch_is_installed
from crossrank_server.bundle import Source
from crossrank_server.errors import ModelSourceError
from crossrank_server.hub_download import (
    OPTIONAL,
    REQUIRED,
    HubUnreachable,
    download_files,
    find_in_hub_cache,
    list_repository,
    parse_hub_ref,
    select_files,
)

_SAFETENSORS = (".safetensors", ".safetensors.index.json")


def fetch_source(spec: str, into: Path, kind: Kind | None) -> SourceFiles:
    """Download what an export reads, verified; where the hub does not answer, its own cache may hold the ONNX graph.

    Args:
        spec: `owner/name`, perhaps with `@revision`.
        into: An empty directory for the files.
        kind: Insist on safetensors or ONNX.

    Raises:
        ModelSourceError: The model cannot be found, fetched, trusted or exported.
    """
    ref = parse_hub_ref(spec)
    try:
        listing = list_repository(ref)
    except HubUnreachable:
        found = find_in_hub_cache(ref)
        if found is None:
            raise
        directory, commit, sha256 = found
        source = Source(kind="hub", name=ref.model_id, revision=commit, sha256=sha256)
        return find_source(directory, kind=kind or "onnx", source=source)
    weights = sorted(name for name in listing.files if name.startswith("model") and name.endswith(_SAFETENSORS))
    if kind is None:
        kind = "safetensors" if weights and torch_is_installed() else "onnx"
    names = (
        _checkpoint_files(listing.files, weights, ref.model_id)
        if kind == "safetensors"
        else select_files(listing.files, ref.model_id)
    )
    card = [CARD] if CARD in listing.files else []
    sha256 = download_files(ref, listing, into, names=[*names, *card])
    source = Source(kind="hub", name=ref.model_id, revision=listing.commit, sha256=sha256)
    return find_source(into, kind=kind, source=source)


def _checkpoint_files(present: Iterable[str], weights: list[str], where: str) -> list[str]:
    """Return the files of a checkpoint that are there; `find_source` says what is missing of them."""
    if not weights:
        raise ModelSourceError(f"{where} has no safetensors: omit --from safetensors to read its ONNX graph")
    return [*(name for name in (*REQUIRED, *OPTIONAL) if name in set(present)), *weights]
