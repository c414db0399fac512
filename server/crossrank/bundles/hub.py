"""Download and verify files of a Hugging Face repository, or find them in huggingface_hub's own cache.

Only ONNX graphs, safetensors, tokenizers and JSON are downloaded; nothing that needs unpickling. huggingface_hub
handles the connection (endpoint `HF_ENDPOINT`, token `HF_TOKEN`, resumption, progress bar) and is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from crossrank.bundles.bundle import sha256_of
from crossrank.bundles.hub_ref import COMMIT, HubListing, HubRef, hub_errors
from crossrank.bundles.layout import ADAPTER, CONFIG, VOCABULARY, Kind, ReadsWeights, choose_files
from crossrank.bundles.model_directory import checked_files, external_locations, files_of
from crossrank.errors import ModelSourceError

_TIMEOUT_S = 10.0


def list_repository(ref: HubRef, *, token: str | bool | None = None, endpoint: str | None = None) -> HubListing:
    """Ask the hub which commit the revision points to and which files it has.

    Raises:
        HubUnreachable: The hub did not answer.
        ModelSourceError: There is no such repository or revision, or this user has no access to it.
    """
    with hub_errors(ref, endpoint):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint, token=token)
        info = api.model_info(ref.model_id, revision=ref.revision, files_metadata=True, timeout=_TIMEOUT_S)
        files = {file.rfilename: _published_sha256(file) for file in info.siblings or []}
        if info.sha is None or COMMIT.fullmatch(info.sha) is None:
            raise ModelSourceError(f"the hub named no commit for {ref.model_id}@{ref.revision}: try again later")
        return HubListing(info.sha, files)


def _published_sha256(file: Any) -> str | None:
    """Return the sha256 that the hub states for a large file; versions have `lfs` as an object or as a dict."""
    lfs = getattr(file, "lfs", None)
    value = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return value if isinstance(value, str) else None


def download_files(
    ref: HubRef,
    listing: HubListing,
    into: Path,
    names: Iterable[str],
    *,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> dict[str, str]:
    """Download files into a directory and verify each.

    Args:
        ref: The model, with its pinned hashes.
        listing: Its listing from `list_repository`.
        into: Directory to create; the caller removes it after a failure.
        names: Files to download, all of the listing.
        token: As for `list_repository`.
        endpoint: As for `list_repository`.

    Returns:
        sha256 by file name.

    Raises:
        HubUnreachable: The connection failed or broke off.
        ModelSourceError: A file is missing or has another sha256 than pinned or published.
    """
    names = list(names)
    with hub_errors(ref, endpoint):
        from huggingface_hub import hf_hub_download

        for name in names:
            hf_hub_download(
                ref.model_id,
                name,
                revision=listing.commit,
                local_dir=into,
                # Not the shared cache: `find_in_hub_cache` has searched it, and may have refused its files.
                cache_dir=into / ".cache",
                token=token,
                endpoint=endpoint,
            )
    remedy = (
        "nothing was kept; try again, and if it stays so, look at the repository, or accept its current files "
        f"with {ref.model_id}@main"
    )
    return _verify(ref, into, names, {**listing.published_sha256, **ref.sha256}, remedy)


def download_model(
    ref: HubRef,
    listing: HubListing,
    into: Path,
    *,
    kind: Kind | None = None,
    reads_weights: ReadsWeights = lambda config: True,
    more: Iterable[str] = (),
    check: Callable[[Path, Kind], object] = lambda directory, kind: None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> dict[str, str]:
    """Download the files that a bundle is made from: the small ones first, the weights only if `check` accepts those.

    Args:
        ref: The model, with its pinned hashes.
        listing: Its listing from `list_repository`.
        into: Directory to create; the caller removes it after a failure.
        kind: See `choose_files`.
        reads_weights: See `choose_files`.
        more: Further files, downloaded if the repository has them.
        check: Called with the directory of config.json and its companions, and the kind; raises an error to refuse.
        token: As for `list_repository`.
        endpoint: As for `list_repository`.

    Returns:
        sha256 by file name.

    Raises:
        HubUnreachable: The connection failed or broke off.
        ModelSourceError: A file is missing, refused by `check`, or has another sha256 than pinned or published.
    """
    fetch = partial(download_files, ref, listing, into, token=token, endpoint=endpoint)

    def read(name: str) -> bytes:
        fetch([name])
        return (into / name).read_bytes()

    files = choose_files(listing.files.keys(), ref.model_id, read, kind=kind, reads_weights=reads_weights)
    small = [name for name in files.names if name.endswith(".json") or name == VOCABULARY]
    sha256 = fetch(small)
    check(into, files.kind)
    large = [name for name in (*files.names, *files.data, *more) if name in listing.files and name not in sha256]
    sha256 |= fetch(large)
    if files.graph is not None:
        folder = PurePosixPath(files.graph).parent
        named = {(folder / location).as_posix() for location in external_locations(into / files.graph)}
        sha256 |= fetch(sorted(named & listing.files.keys() - sha256.keys()))
    return sha256


def find_in_hub_cache(
    ref: HubRef,
    listing: HubListing | None = None,
    *,
    kind: Kind | None = None,
    reads_weights: ReadsWeights = lambda config: True,
    remedy: str | None = None,
) -> tuple[Path, str, dict[str, str]] | None:
    """Find a model's files in huggingface_hub's own cache (HF_HOME), without network.

    Args:
        ref: The model.
        listing: Files that the hub has; None if it was not asked, then the cached files must do.
        kind: See `choose_files`.
        reads_weights: See `choose_files`.
        remedy: End of the error message for a file with the wrong hash; defaults to how to replace the file.

    Returns:
        (directory, commit, sha256 by file name), or None if files are missing.

    Raises:
        ModelSourceError: A file has another sha256 than pinned or published, or links outside of its repository.
    """
    from huggingface_hub import try_to_load_from_cache

    revision = listing.commit if listing else ref.revision
    found = (try_to_load_from_cache(ref.model_id, name, revision=revision) for name in (CONFIG, ADAPTER))
    first = next((path for path in found if isinstance(path, str)), None)
    if first is None:
        return None
    directory = Path(first).parent
    present = set(files_of(directory))
    try:
        files = choose_files(
            listing.files.keys() if listing else present,
            ref.model_id,
            lambda name: (directory / name).read_bytes(),
            kind=kind,
            reads_weights=reads_weights,
        )
    except ModelSourceError:
        # The cached files may be incomplete, unless weights are among them: those are downloaded last.
        if listing is None and any(name.endswith(".safetensors") for name in present):
            raise
        return None
    if not present.issuperset([*files.names, *files.data]):
        return None
    names = checked_files(directory, files)
    expected = {**(listing.published_sha256 if listing else {}), **ref.sha256}
    if remedy is None:
        remedy = f"delete {directory} and download again, or accept the current files with {ref.model_id}@main"
    return directory, directory.name, _verify(ref, directory, names, expected, remedy)


def _verify(ref: HubRef, directory: Path, names: list[str], expected: Mapping[str, str], remedy: str) -> dict[str, str]:
    """Return the sha256 of each file, by name.

    Raises:
        ModelSourceError: One differs from the expected sha256.
    """
    actual = {name: sha256_of(directory / name) for name in names}
    for name, value in actual.items():
        if name in expected and value != expected[name]:
            raise ModelSourceError(
                f"{ref.model_id}@{ref.revision}: {name} has sha256 {value}, expected {expected[name]}: {remedy}"
            )
    return actual
