"""Download a model of the hub for an export: safetensors where PyTorch is installed, else its ONNX graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from crossrank.bundles.bundle import Source
from crossrank.bundles.hub import download_model, find_in_hub_cache, list_repository
from crossrank.bundles.hub_ref import HubUnreachable, parse_hub_ref
from crossrank.bundles.layout import CARD, Kind
from crossrank.checkpoints.converters import torch_is_installed
from crossrank.checkpoints.tokens import check_source
from crossrank_export.sources import SourceFiles, find_source, is_class_of_transformers


def fetch_source(spec: str, into: Path, kind: Kind | None) -> SourceFiles:
    """Download and verify the files that an export reads; where the hub does not answer, take them from its cache.

    Args:
        spec: `owner/name` or `owner/name@revision`.
        into: Empty directory for the files.
        kind: `safetensors` or `onnx` to read that only; None chooses.

    Raises:
        ModelSourceError: The model cannot be found, fetched, trusted or exported.
    """
    ref = parse_hub_ref(spec)
    torch = torch_is_installed()

    def reads_weights(_: object) -> bool:
        return torch

    try:
        listing = list_repository(ref)
    except HubUnreachable:
        found = find_in_hub_cache(ref, kind=kind, reads_weights=reads_weights)
        if found is None:
            raise
        directory, commit, sha256 = found
    else:
        directory, commit = into, listing.commit
        check = partial(check_source, is_known_class=is_class_of_transformers)
        sha256 = download_model(ref, listing, into, kind=kind, reads_weights=reads_weights, more=[CARD], check=check)
    source = Source(kind="hub", name=ref.model_id, revision=commit, sha256=sha256)
    return find_source(directory, kind=kind, source=source)
