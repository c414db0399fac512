"""Find the model that a name stands for: `builtin`, a bundle, a directory as `save_pretrained` writes it, or the hub.

What is not a bundle yet becomes one once and is kept in the cache. Safetensors of known families are opened here
(`checkpoints`); ONNX graphs and other families go through the converter that is installed.
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
    """How a model is resolved.

    Attributes:
        cache: Where converted bundles are kept.
        convert: Makes one of what is not opened here.
        label: Which logit is the score, where a model gives several.
        token: For private repositories.
        endpoint: Base URL of the hub.
    """

    cache: BundleCache
    convert: Convert
    label: int | None
    token: str | bool | None
    endpoint: str | None

    def load(self, name: str) -> Bundle | None:
        """Return the cached bundle with the score that is asked for."""
        bundle = self.cache.load(name)
        if bundle is not None and (self.label is None or bundle.manifest.num_labels == 1):
            return bundle
        return None if self.label is None else self.cache.load(self.key(name))

    def key(self, name: str) -> str:
        """Return the name in the cache of a bundle to be made."""
        return name if self.label is None else f"{name}+label{self.label}"

    def build(self, name: str, write: Callable[[Path, Path], None]) -> Bundle:
        """Return the cached bundle, or make it."""
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
    """Return the verified bundle that a model's name stands for, fetching and converting it if need be.

    Args:
        spec: `builtin`, a directory (a bundle, or what `save_pretrained` writes, or one with an ONNX graph), an ONNX
            file in one, or a hub id with an optional `@revision`; old spellings of known ids are accepted. `NAME=`
            before it gives the bundle another id.
        cache_dir: Where converted bundles are kept; `bundles.cache.default_cache_dir()` if omitted.
        offline: Use no network; the environment variable HF_HUB_OFFLINE=1 says the same.
        label: Which logit is the score, counted from 0, where a model gives several.
        revision: Commit, branch or tag on the hub; overrides the pin of known models.
        token: For private and gated repositories; huggingface_hub's own (HF_TOKEN, login) if omitted, none if False.
        endpoint: Base URL of the hub; huggingface_hub's own (HF_ENDPOINT) if omitted.
        convert: Makes a bundle of files that are not opened here, ONNX graphs and safetensors of other families;
            defaults to the converter that is installed.

    Raises:
        ModelSourceError: The model cannot be found, fetched or trusted.
        BundleError: The bundle does not fit its manifest, has another score than asked for, or the files cannot be made
            into one.
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
    """Read HF_HUB_OFFLINE as huggingface_hub does, without importing it: a cached bundle needs none of it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _bundle_from_path(path: Path, want: _Want) -> Bundle:
    """Load a bundle, or convert Hugging Face files; the cache key is their content."""
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
    """Serve from the cache where the commit is known, else ask the hub; a branch is asked for each time."""
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
    """Return the files from huggingface_hub's own cache, unless they are incomplete or not to be trusted."""
    try:
        return find_in_hub_cache(ref, listing, reads_weights=_opens, remedy="the cached file is not used")
    except ModelSourceError as error:
        logger.warning("%s; downloading it afresh", error.message)
        return None


def _bundle_offline(ref: HubRef, want: _Want) -> Bundle:
    """Serve from our cache, or convert what huggingface_hub's own cache holds; no network."""
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
    """Return the cached bundle of the commit that the revision is, or last meant."""
    commit = ref.revision if ref.is_commit else want.cache.recall(ref.model_id, ref.revision)
    return want.load(bundle_name(ref.model_id, commit)) if commit else None


def _hub_source(ref: HubRef, commit: str, sha256: dict[str, str]) -> Source:
    return Source(kind="hub", name=ref.model_id, revision=commit, sha256=sha256)


def _opens(config: dict[str, Any]) -> bool:
    """Tell whether safetensors with that config.json are opened here; then they come before a graph.

    Training again into a directory writes new safetensors and leaves an older graph as it was.
    """
    return why_not_built(config) is None


def _check(directory: Path, kind: Kind) -> None:
    """Refuse a model by its small files, before its weights are fetched or read.

    Raises:
        ModelSourceError: It gives no score for a pair, its tokenizer is not read, or it needs what is not installed.
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
    """Convert the files of a hub model, which have been checked; its messages name it by its id."""
    names = list(source.sha256)
    graph = next((name for name in names if name.endswith(".onnx")), None)
    files = ModelFiles("safetensors" if graph is None else "onnx", graph, names, [])
    try:
        _convert(want, directory, files, out, source)
    except CrossrankError as error:
        # The user knows the model by its id; the directory was ours and is gone by now.
        raise type(error)(error.message.replace(str(directory), source.name)) from error


def _convert(want: _Want, path: Path, files: ModelFiles, out: Path, source: Source) -> None:
    """Write the bundle of a model's files.

    Raises:
        CrossrankError: It cannot be made; what tools raise on a damaged file becomes one sentence.
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
