"""Files of a Hugging Face repository: fetching them, trusting them, finding them in huggingface_hub's own cache.

Only ONNX graphs, safetensors, tokenizers and JSON are ever fetched; nothing that needs unpickling. huggingface_hub does
the talking (endpoint `HF_ENDPOINT`, token `HF_TOKEN`, resumption, progress bar) and is imported only when needed.
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
    """Ask the hub which commit the revision means and which files it has.

    Raises:
        HubUnreachable: No answer.
        ModelSourceError: There is no such repository or revision, or it is not open to this user.
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
    """Return the sha256 the hub states for a large file; `lfs` is an object or a dict by version."""
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
    """Download files into a directory and check each.

    Args:
        ref: The model, with its pinned hashes.
        listing: What `list_repository` answered for it.
        into: Directory to create; the caller removes it after a failure.
        names: Files to fetch, of those listed.
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
                # Not the shared cache, which `find_in_hub_cache` has looked through: what it refused stays out.
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
    """Download what a bundle is made from: the small files first, then the weights if those pass.

    Args:
        ref: The model, with its pinned hashes.
        listing: What `list_repository` answered for it.
        into: Directory to create; the caller removes it after a failure.
        kind: See `choose_files`.
        reads_weights: See `choose_files`.
        more: Further files, if they are there.
        check: Called with the directory of config.json and its companions; raises what it refuses.
        token: As for `list_repository`.
        endpoint: As for `list_repository`.

    Returns:
        sha256 by file name.

    Raises:
        HubUnreachable: The connection failed or broke off.
        ModelSourceError: Something is missing, refused, or not what is pinned or published.
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
    """Look for the files in huggingface_hub's own cache (HF_HOME), without any network.

    Args:
        ref: The model.
        listing: What the hub has, where it could be asked; else what lies in the cache has to do.
        kind: See `choose_files`.
        reads_weights: See `choose_files`.
        remedy: The end of the message for a file with the wrong hash; by default it says how to replace it.

    Returns:
        (directory, commit, sha256 by file name), or None where files are missing there.

    Raises:
        ModelSourceError: The files are there and one differs from what is pinned or published, or links elsewhere.
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
        # What lies there may be incomplete; weights are not, as they come last.
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
    """Return the sha256 of each file, or raise ModelSourceError where one differs from what is expected."""
    actual = {name: sha256_of(directory / name) for name in names}
    for name, value in actual.items():
        if name in expected and value != expected[name]:
            raise ModelSourceError(
                f"{ref.model_id}@{ref.revision}: {name} has sha256 {value}, expected {expected[name]}: {remedy}"
            )
    return actual
