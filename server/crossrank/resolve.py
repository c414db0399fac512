"""Find the model that a name stands for: `builtin`, a bundle, a directory written by `save_pretrained`, or a hub id.

A model that is not a bundle is converted once, and the bundle is cached. Safetensors of known families are converted
by `checkpoints`; ONNX graphs and other families by the installed converter.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Bundle, Source, is_bundle, load_bundle, sha256_of
from crossrank.bundles.cache import BundleCache, bundle_name
from crossrank.bundles.catalog import BUILTIN_ID, canonical_model_id
from crossrank.bundles.hub import download_model, find_in_hub_cache, list_repository
from crossrank.bundles.hub_ref import HubListing, HubRef, HubUnreachable, parse_hub_ref
from crossrank.bundles.layout import CONFIG, Kind, ModelFiles, choose_files, read_object
from crossrank.bundles.model_directory import checked_files, files_of, locate, name_of
from crossrank.bundles.model_name import split_name
from crossrank.checkpoints.convert import bundle_from_checkpoint
from crossrank.checkpoints.converters import Convert, installed_converter, torch_is_installed
from crossrank.checkpoints.families import why_not_built
from crossrank.checkpoints.tokens import check_source
from crossrank.errors import BundleError, CrossrankError, ModelSourceError
from crossrank.reasons import reason_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Want:
    """Options for resolving a model.

    Attributes:
        cache: Cache of converted bundles.
        convert: Converts models that `checkpoints` does not.
        label: Index of the logit that is the score, where a model gives several.
        token: Access token for private repositories.
        endpoint: Base URL of the hub.
    """

    cache: BundleCache
    convert: Convert
    label: int | None
    token: str | bool | None
    endpoint: str | None

    def load(self, name: str) -> Bundle | None:
        """Return the cached bundle whose score is the requested label, or None."""
        bundle = self.cache.load(name)
        if bundle is not None and (self.label is None or bundle.manifest.num_labels == 1):
            return bundle
        return None if self.label is None else self.cache.load(self.key(name))

    def key(self, name: str) -> str:
        """Return the cache name of a bundle to build."""
        return name if self.label is None else f"{name}+label{self.label}"

    def build(self, name: str, write: Callable[[Path, Path], None]) -> Bundle:
        """Return the cached bundle, built first if it is absent."""
        return self.load(name) or self.cache.build(self.key(name), write)


def resolve_model(
    spec: str,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    label: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    convert: Convert | None = None,
) -> Bundle:
    """Return the verified bundle of a model, downloaded and converted first if necessary.

    Args:
        spec: `builtin`, a directory (a bundle, one written by `save_pretrained`, or one with an ONNX graph), an ONNX
            file in such a directory, or a hub id with an optional `@revision`. Old spellings of known ids are
            accepted. A prefix `NAME=` gives the bundle another id.
        cache_dir: Directory of converted bundles; defaults to `bundles.cache.default_cache_dir()`.
        offline: Use no network; HF_HUB_OFFLINE=1 in the environment has the same effect.
        label: Index of the logit that is the score, counted from 0, where a model gives several.
        revision: Commit, branch or tag on the hub; overrides the pin of known models.
        token: Access token for private and gated repositories; defaults to huggingface_hub's own (HF_TOKEN, login).
            False sends none.
        endpoint: Base URL of the hub; defaults to huggingface_hub's own (HF_ENDPOINT).
        convert: Converts ONNX graphs and safetensors of other families to a bundle; defaults to the installed
            converter.

    Raises:
        ModelSourceError: The model cannot be found, fetched or trusted.
        BundleError: The bundle does not fit its manifest or has another score than requested, or the files cannot be
            converted.
    """
    name, spec = split_name(spec)
    want = _Want(BundleCache(cache_dir), convert or installed_converter, label, token, endpoint)
    bundle = _resolve(spec, want, offline, revision)
    manifest = bundle.manifest
    if label is not None and manifest.num_labels > 1 and manifest.label != label:
        raise BundleError(
            f"{bundle.path} was exported with --label {manifest.label} of {manifest.num_labels}, not {label}: export "
            f"{manifest.source.name} with --label {label}"
        )
    if label and manifest.num_labels == 1:
        logger.warning("%s gives one logit: --label %d says nothing of it", manifest.model_id, label)
    return bundle if name is None else bundle.named(name)


def _resolve(spec: str, want: _Want, offline: bool, revision: str | None) -> Bundle:
    if canonical_model_id(spec) == BUILTIN_ID:
        return load_bundle(builtin_path())
    path = Path(spec).expanduser()
    if spec.strip() and path.exists():
        return _bundle_from_path(path, want)
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ModelSourceError(f"{spec} does not exist: give an existing directory, a hub id or `builtin`")
    ref = parse_hub_ref(spec, revision)
    if offline or is_offline():
        return _bundle_offline(ref, want)
    return _bundle_from_hub(ref, want)


def builtin_path() -> Path:
    """Return the directory of the built-in bundle, which is package data."""
    return Path(str(files("crossrank") / "bundles" / "builtin"))


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE is set, without importing huggingface_hub: a cached bundle does not need it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _bundle_from_path(path: Path, want: _Want) -> Bundle:
    """Load a bundle, or convert the files of a Hugging Face directory; their content is the cache key."""
    if is_bundle(path):
        return load_bundle(path)
    directory, graph = locate(path)
    present = files_of(directory)
    if graph is not None:
        present = [name for name in present if name == graph or not name.endswith(".onnx")]
    chosen = choose_files(
        present,
        str(directory),
        lambda name: (directory / name).read_bytes(),
        kind="onnx" if graph is not None else None,
        reads_weights=_opens,
    )
    sha256 = {name: sha256_of(directory / name) for name in checked_files(directory, chosen)}
    content = hashlib.sha256(repr(sorted(sha256.items())).encode()).hexdigest()
    source = Source(kind="directory", name=name_of(directory), revision=None, sha256=sha256)

    def write(_: Path, out: Path) -> None:
        _convert(want, path, chosen, out, source)

    return want.build(bundle_name(f"directory/{source.name}", content[:40]), write)


def _bundle_from_hub(ref: HubRef, want: _Want) -> Bundle:
    """Return a hub model from the cache if the revision is a cached commit; else ask the hub for its commit."""
    if ref.is_commit and (bundle := want.load(bundle_name(ref.model_id, ref.revision))):
        return bundle
    try:
        listing = list_repository(ref, token=want.token, endpoint=want.endpoint)
    except HubUnreachable as error:
        bundle = _load_last(want, ref)
        if bundle is None:
            raise
        logger.warning("%s; serving the cached %s", error.message, bundle.path.name)
        return bundle

    def write(scratch: Path, out: Path) -> None:
        if found := _already_downloaded(ref, listing):
            directory, _, sha256 = found
        else:
            directory = scratch
            sha256 = download_model(
                ref,
                listing,
                scratch,
                reads_weights=_opens,
                check=_check,
                token=want.token,
                endpoint=want.endpoint,
            )
        _convert_downloaded(want, directory, out, _hub_source(ref, listing.commit, sha256))

    bundle = want.build(bundle_name(ref.model_id, listing.commit), write)
    if not ref.is_commit:
        want.cache.remember(ref.model_id, ref.revision, listing.commit)
    return bundle


def _already_downloaded(ref: HubRef, listing: HubListing) -> tuple[Path, str, dict[str, str]] | None:
    """Return the files in huggingface_hub's own cache; None if they are incomplete or fail verification."""
    try:
        return find_in_hub_cache(ref, listing, reads_weights=_opens, remedy="the cached file is not used")
    except ModelSourceError as error:
        logger.warning("%s; downloading it afresh", error.message)
        return None


def _bundle_offline(ref: HubRef, want: _Want) -> Bundle:
    """Return a hub model from our cache, or convert its files in huggingface_hub's own cache, without network."""
    if bundle := _load_last(want, ref):
        return bundle
    found = find_in_hub_cache(ref, reads_weights=_opens)
    if found is None:
        raise ModelSourceError(
            f"{ref.model_id}@{ref.revision} is not cached and offline mode is on: run once without --offline and "
            "HF_HUB_OFFLINE, or give a local directory or `builtin`"
        )
    directory, commit, sha256 = found

    def write(_: Path, out: Path) -> None:
        _convert_downloaded(want, directory, out, _hub_source(ref, commit, sha256))

    return want.build(bundle_name(ref.model_id, commit), write)


def _load_last(want: _Want, ref: HubRef) -> Bundle | None:
    """Return the cached bundle of the revision's commit; of a branch or tag, the commit that it last pointed to."""
    commit = ref.revision if ref.is_commit else want.cache.recall(ref.model_id, ref.revision)
    return want.load(bundle_name(ref.model_id, commit)) if commit else None


def _hub_source(ref: HubRef, commit: str, sha256: dict[str, str]) -> Source:
    return Source(kind="hub", name=ref.model_id, revision=commit, sha256=sha256)


def _opens(config: dict[str, Any]) -> bool:
    """Tell whether `checkpoints` converts safetensors with this config.json; they are then preferred to an ONNX graph.

    Training into the same directory again writes new safetensors, but leaves an older ONNX graph unchanged.
    """
    return why_not_built(config) is None


def _check(directory: Path, kind: Kind) -> None:
    """Refuse an unsuitable model by its small files, before its weights are downloaded or read.

    Raises:
        ModelSourceError: It gives no score for a pair, its tokenizer cannot be read, or a needed package is not
            installed.
    """
    check_source(directory, kind)
    reason = why_not_built(_config(directory)) if kind == "safetensors" else None
    if reason is not None and not torch_is_installed():
        raise ModelSourceError(
            f"{directory}: {reason}, so that its safetensors need PyTorch to become a graph: "
            "pip install 'crossrank[export]', or give a model that has onnx/model.onnx"
        )


def _config(directory: Path) -> dict[str, Any]:
    return read_object(CONFIG, str(directory), lambda name: (directory / name).read_bytes())


def _convert_downloaded(want: _Want, directory: Path, out: Path, source: Source) -> None:
    """Convert the verified files of a hub model; errors name the model by its id."""
    names = list(source.sha256)
    graph = next((name for name in names if name.endswith(".onnx")), None)
    files = ModelFiles("safetensors" if graph is None else "onnx", graph, names, [])
    try:
        _convert(want, directory, files, out, source)
    except CrossrankError as error:
        # The user knows the model by its id; the directory may be temporary and deleted by now.
        raise type(error)(error.message.replace(str(directory), source.name)) from error


def _convert(want: _Want, path: Path, files: ModelFiles, out: Path, source: Source) -> None:
    """Convert a model's files to a bundle.

    Raises:
        CrossrankError: The conversion failed. Errors of other libraries are shortened to one sentence.
    """
    logger.info("%s: making a bundle of its %s, which is done once", source.name, files.kind)
    try:
        if files.kind == "safetensors" and _opens(_config(path)):
            weights = [name for name in files.names if name.endswith(".safetensors")]
            bundle_from_checkpoint(path, weights, out, source, want.label)
            return
        if files.kind == "safetensors" and not torch_is_installed():
            _check(path, files.kind)
        want.convert(path, out, source, want.label)
    except CrossrankError:
        raise
    except Exception as error:
        raise BundleError(f"{source.name} cannot be converted ({reason_of(error)})") from error
