"""Where models come from: `builtin`, a bundle, a Hugging Face directory with ONNX, or the hub.

What is not a bundle yet is converted once by the export package, without torch, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from crossrank_server.bundle import Bundle, Source, is_bundle, load_bundle, sha256_of
from crossrank_server.bundle_cache import BundleCache, bundle_name
from crossrank_server.catalog import BUILTIN_ID, canonical_model_id
from crossrank_server.errors import BundleError, CrossrankError, ModelSourceError
from crossrank_server.hub_download import (
    HubListing,
    HubRef,
    HubUnreachable,
    download_files,
    find_in_hub_cache,
    list_repository,
    parse_hub_ref,
    select_files,
)

logger = logging.getLogger(__name__)

# (source directory, bundle directory to create, where it came from); raises CrossrankError if it cannot.
Convert = Callable[[Path, Path, Source], None]


def resolve_model(
    spec: str,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    convert: Convert | None = None,
) -> Bundle:
    """Return the verified bundle that a model's name stands for, fetching and converting it if need be.

    Args:
        spec: `builtin`, a directory (a bundle, or Hugging Face files with an ONNX graph), or a hub id with an
            optional `@revision`; old spellings of known ids are accepted.
        cache_dir: Where converted bundles are kept; `bundle_cache.default_cache_dir()` if omitted.
        offline: Use no network; the environment variable HF_HUB_OFFLINE=1 says the same.
        revision: Commit, branch or tag on the hub; overrides the pin of known models.
        token: For private and gated repositories; huggingface_hub's own (HF_TOKEN, login) if omitted.
        endpoint: Base URL of the hub; huggingface_hub's own (HF_ENDPOINT) if omitted.
        convert: Makes a bundle from the files; the export package's torch-free path if omitted.

    Raises:
        ModelSourceError: The model cannot be found, fetched or trusted.
        BundleError: The bundle does not fit its manifest, or the files cannot be made into one.
    """
    if canonical_model_id(spec) == BUILTIN_ID:
        return load_bundle(builtin_path())
    cache = BundleCache(cache_dir)
    convert = convert or _convert
    directory = Path(spec).expanduser()
    if spec.strip() and directory.is_dir():
        return _bundle_from_directory(directory, cache, convert)
    if directory.is_file():
        raise ModelSourceError(f"{spec} is a file: give the directory that holds it")
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ModelSourceError(f"{spec} does not exist: give an existing directory, a hub id or `builtin`")
    ref = parse_hub_ref(spec, revision)
    if offline or is_offline():
        return _bundle_offline(ref, cache, convert)
    return _bundle_from_hub(ref, cache, convert, token, endpoint)


def builtin_path() -> Path:
    """Return the directory of the built-in bundle, which is package data."""
    return Path(str(files("crossrank_server") / "builtin"))


def is_offline() -> bool:
    """Read HF_HUB_OFFLINE as huggingface_hub does, without importing it: a cached bundle needs none of it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _bundle_from_directory(directory: Path, cache: BundleCache, convert: Convert) -> Bundle:
    """Load a bundle, or convert Hugging Face files; the cache key is their content."""
    if is_bundle(directory):
        return load_bundle(directory)
    paths = [*directory.glob("*"), *directory.glob("onnx/*")]
    present = [path.relative_to(directory).as_posix() for path in paths if path.is_file()]
    sha256 = {name: sha256_of(directory / name) for name in select_files(present, str(directory))}
    content = hashlib.sha256(repr(sorted(sha256.items())).encode()).hexdigest()
    name = directory.resolve().name
    source = Source(kind="directory", name=name, revision=None, sha256=sha256)

    def write(_: Path, out: Path) -> None:
        _convert_checked(convert, directory, out, source)

    key = bundle_name(f"directory/{name}", content[:40])
    return cache.load(key) or cache.build(key, write)


def _bundle_from_hub(
    ref: HubRef, cache: BundleCache, convert: Convert, token: str | None, endpoint: str | None
) -> Bundle:
    """Serve from the cache where the commit is known, else ask the hub; a branch is asked for each time."""
    if ref.is_commit and (bundle := cache.load(bundle_name(ref.model_id, ref.revision))):
        return bundle
    try:
        listing = list_repository(ref, token=token, endpoint=endpoint)
    except HubUnreachable as error:
        bundle = _load_last(cache, ref)
        if bundle is None:
            raise
        logger.warning("%s; serving the cached %s", error.message, bundle.path.name)
        return bundle

    def write(scratch: Path, out: Path) -> None:
        if found := _already_downloaded(ref, listing):
            directory, _, sha256 = found
        else:
            directory = scratch
            sha256 = download_files(ref, listing, scratch, token=token, endpoint=endpoint)
        _convert_checked(convert, directory, out, _hub_source(ref, listing.commit, sha256))

    key = bundle_name(ref.model_id, listing.commit)
    bundle = cache.load(key) or cache.build(key, write)
    if not ref.is_commit:
        cache.remember(ref.model_id, ref.revision, listing.commit)
    return bundle


def _already_downloaded(ref: HubRef, listing: HubListing) -> tuple[Path, str, dict[str, str]] | None:
    """Return the files from huggingface_hub's own cache, unless they are incomplete or not to be trusted."""
    try:
        return find_in_hub_cache(ref, listing)
    except ModelSourceError as error:
        logger.warning("%s; downloading it afresh", error.message.partition(": delete")[0])
        return None


def _bundle_offline(ref: HubRef, cache: BundleCache, convert: Convert) -> Bundle:
    """Serve from our cache, or convert what huggingface_hub's own cache holds; no network."""
    if bundle := _load_last(cache, ref):
        return bundle
    found = find_in_hub_cache(ref)
    if found is None:
        raise ModelSourceError(
            f"{ref.model_id}@{ref.revision} is not cached and offline mode is on: run once without --offline and "
            "HF_HUB_OFFLINE, or give a local directory or `builtin`"
        )
    directory, commit, sha256 = found

    def write(_: Path, out: Path) -> None:
        _convert_checked(convert, directory, out, _hub_source(ref, commit, sha256))

    return cache.build(bundle_name(ref.model_id, commit), write)


def _load_last(cache: BundleCache, ref: HubRef) -> Bundle | None:
    """Return the cached bundle of the commit that the revision is, or last meant."""
    commit = ref.revision if ref.is_commit else cache.recall(ref.model_id, ref.revision)
    return cache.load(bundle_name(ref.model_id, commit)) if commit else None


def _hub_source(ref: HubRef, commit: str, sha256: dict[str, str]) -> Source:
    return Source(kind="hub", name=ref.model_id, revision=commit, sha256=sha256)


def _convert_checked(convert: Convert, directory: Path, out: Path, source: Source) -> None:
    """Convert; what the graph tools raise on a damaged file becomes one sentence."""
    try:
        convert(directory, out, source)
    except CrossrankError as error:
        if source.kind != "hub":
            raise
        # The user knows the model by its id; the directory was ours and is gone by now.
        raise type(error)(error.message.replace(str(directory), source.name)) from error
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise BundleError(
            f"{source.name}: its ONNX graph cannot be converted ({type(error).__name__}: {first_line[:200]})"
        ) from error


def _convert(directory: Path, out: Path, source: Source) -> None:
    """Run the export package's torch-free path; imported here, as serving a bundle needs none of it."""
    from crossrank_export.pipeline import bundle_from_onnx

    bundle_from_onnx(directory, out, source=source)
