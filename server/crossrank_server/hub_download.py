"""Files of a Hugging Face repository: which ones are needed, fetching them, trusting them.

Only ONNX graphs, tokenizers and JSON are ever fetched; nothing that needs unpickling. huggingface_hub does the
talking (endpoint `HF_ENDPOINT`, token `HF_TOKEN`, resumption, progress bar) and is imported only when needed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crossrank_server.bundle import sha256_of
from crossrank_server.catalog import canonical_model_id, catalog_model
from crossrank_server.errors import ModelSourceError

DEFAULT_REVISION = "main"
GRAPHS = ("onnx/model.onnx", "model.onnx")
REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM}
_TIMEOUT_S = 10.0


class HubUnreachable(ModelSourceError):
    """The hub did not answer; what is cached may serve instead."""


@dataclass(frozen=True)
class HubRef:
    """A model on the hub, at a revision.

    Attributes:
        model_id: `owner/name`.
        revision: A commit, branch or tag.
        sha256: What pinned files must hash to.
    """

    model_id: str
    revision: str
    sha256: Mapping[str, str]

    @property
    def is_commit(self) -> bool:
        """Tell whether the revision is a full commit, which never changes its meaning."""
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True)
class HubListing:
    """A repository at one commit: sha256 by file name, None where the hub publishes none (small files)."""

    commit: str
    files: Mapping[str, str | None]

    @property
    def published_sha256(self) -> dict[str, str]:
        """The hashes the hub does publish."""
        return {name: value for name, value in self.files.items() if value is not None}


def parse_hub_ref(spec: str, revision: str | None = None) -> HubRef:
    """Read `owner/name` or `owner/name@revision`; a pinned model's pin holds unless another revision is named.

    Raises:
        ModelSourceError: The text has not the form of a hub id.
    """
    text, _, inline = spec.strip().partition("@")
    model_id = canonical_model_id(text)
    revision = revision or inline or None
    malformed = _HUB_ID.fullmatch(model_id) is None or ".." in model_id or "--" in model_id
    if malformed or (spec.strip().endswith("@")):
        raise ModelSourceError(
            f"{spec!r} names no model: give builtin, a bundle directory, a Hugging Face directory with an ONNX "
            "graph, or a hub id OWNER/NAME[@REVISION]; `crossrank models` lists what is known"
        )
    if revision is not None and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise ModelSourceError(
            f"{revision!r} is not a revision: give a commit, branch or tag of {model_id}, such as {model_id}@main"
        )
    entry = catalog_model(model_id)
    pin = entry.pin if entry else None
    if pin is not None and revision in (None, pin.revision):
        return HubRef(model_id, pin.revision, pin.sha256)
    return HubRef(model_id, revision or DEFAULT_REVISION, {})


def select_files(names: Iterable[str], where: str) -> list[str]:
    """Return the files needed out of those there: config, tokenizer, ONNX graph and its external data.

    Args:
        names: POSIX paths relative to the repository or directory.
        where: The hub id or directory, for messages.

    Raises:
        ModelSourceError: Something is missing; the message says what and what to do.
    """
    present = set(names)
    graph = next((name for name in GRAPHS if name in present), None)
    if graph is None:
        raise ModelSourceError(_why_no_graph(present, where))
    for name in REQUIRED:
        if name not in present:
            hint = "save a fast tokenizer there" if name == "tokenizer.json" else "the shape is read from it"
            raise ModelSourceError(f"{where} has no {name}, so it cannot be served: {hint}")
    external = {name for name in present if name.startswith(graph) and "/" not in name[len(graph) :]}
    return [*REQUIRED, *(name for name in OPTIONAL if name in present), *sorted(external)]


def _why_no_graph(present: set[str], where: str) -> str:
    """Say what to do about a model without an ONNX graph, judging by what it has instead."""
    if any(name.endswith(".safetensors") for name in present):
        return (
            f"{where} has safetensors but no ONNX graph ({' or '.join(GRAPHS)}): run "
            f"`pip install 'crossrank[export]' && crossrank export {where} --out BUNDLE`, "
            "then `crossrank serve --model BUNDLE`"
        )
    pickles = sorted(name for name in present if _is_pickle(name))
    if pickles:
        return (
            f"{where} has only pickled weights ({pickles[0]}), which can run any code when loaded and are never "
            "read here: ask its owner for safetensors or ONNX, or convert it where you trust it"
        )
    return f"{where} has no ONNX graph: looked for {' and '.join(GRAPHS)}"


def _is_pickle(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in {".pt", ".pth", ".ckpt", ".pkl"} or path.name.startswith("pytorch_model")


def list_repository(ref: HubRef, *, token: str | None = None, endpoint: str | None = None) -> HubListing:
    """Ask the hub which commit the revision means and which files it has.

    Raises:
        HubUnreachable: No answer.
        ModelSourceError: There is no such repository or revision, or it is not open to this user.
    """
    with _hub_errors(ref, endpoint):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint, token=token)
        info = api.model_info(ref.model_id, revision=ref.revision, files_metadata=True, timeout=_TIMEOUT_S)
        files = {file.rfilename: _published_sha256(file) for file in info.siblings or []}
        if info.sha is None or _COMMIT.fullmatch(info.sha) is None:
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
    *,
    names: list[str] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> dict[str, str]:
    """Download files into a directory and check each.

    Args:
        ref: The model, with its pinned hashes.
        listing: What `list_repository` answered for it.
        into: Directory to create; the caller removes it after a failure.
        names: Files to fetch; what `select_files` chooses if omitted.
        token: As for `list_repository`.
        endpoint: As for `list_repository`.

    Returns:
        sha256 by file name.

    Raises:
        HubUnreachable: The connection failed or broke off.
        ModelSourceError: A file is missing or has another sha256 than pinned or published.
    """
    names = names or select_files(listing.files, ref.model_id)
    with _hub_errors(ref, endpoint):
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


def find_in_hub_cache(ref: HubRef, listing: HubListing | None = None) -> tuple[Path, str, dict[str, str]] | None:
    """Look for the files in huggingface_hub's own cache (HF_HOME), without any network.

    Args:
        ref: The model.
        listing: What the hub has, where it could be asked; else what lies in the cache has to do.

    Returns:
        (directory, commit, sha256 by file name), or None where files are missing there.

    Raises:
        ModelSourceError: The files are there and one differs from what is pinned or published.
    """
    from huggingface_hub import try_to_load_from_cache

    revision = listing.commit if listing else ref.revision
    config = try_to_load_from_cache(ref.model_id, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    try:
        names = select_files(listing.files if listing else present, ref.model_id)
    except ModelSourceError:
        return None
    if not present.issuperset(names):
        return None
    expected = {**(listing.published_sha256 if listing else {}), **ref.sha256}
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


@contextmanager
def _hub_errors(ref: HubRef, endpoint: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises (requests or httpx underneath, by version) into one sentence."""
    from huggingface_hub import errors

    name = f"{ref.model_id}@{ref.revision}"
    try:
        yield
    except ModelSourceError:
        raise
    except errors.GatedRepoError as error:
        raise ModelSourceError(
            f"{ref.model_id} is gated: accept its terms at https://huggingface.co/{ref.model_id} and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelSourceError(
            f"{ref.model_id} is not on the hub, or is private: check the id (`crossrank models` lists known "
            "ones), or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelSourceError(
            f"{ref.model_id} has no revision {ref.revision}: give a commit, branch or tag it has, such as "
            f"{ref.model_id}@main"
        ) from error
    # Before EntryNotFoundError, its base: huggingface_hub's word for "the hub did not answer".
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        raise _refused(name, cause) or _unreachable(name, endpoint, cause) from error
    except errors.EntryNotFoundError as error:
        raise ModelSourceError(f"{name} lists a file that the hub does not have: {_first_line(error)}") from error
    except errors.HfHubHTTPError as error:
        raise _refused(name, error) or _unreachable(name, endpoint, error) from error
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise ModelSourceError(
                f"{name} cannot be written to {error.filename or 'the cache'}: {os.strerror(error.errno)}; "
                "free or name another place with CROSSRANK_CACHE_DIR"
            ) from error
        raise _unreachable(name, endpoint, error) from error
    except Exception as error:  # huggingface_hub 1 and 2 pass on errors of httpx and hf_xet
        raise _unreachable(name, endpoint, error) from error


def _refused(name: str, error: BaseException) -> ModelSourceError | None:
    """Describe an HTTP error status; None where there was no answer at all."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return None
    if status in (401, 403):
        return ModelSourceError(f"the hub refused {name} (HTTP {status}): set HF_TOKEN to a token that may read it")
    return HubUnreachable(f"the hub failed on {name} (HTTP {status}): try again later")


def _unreachable(name: str, endpoint: str | None, error: BaseException) -> HubUnreachable:
    from huggingface_hub import constants

    return HubUnreachable(
        f"{name} could not be fetched from {endpoint or constants.ENDPOINT} ({_reason(error)}): check the "
        "network, or give a local directory or `builtin`, which need none"
    )


def _reason(error: BaseException) -> str:
    """Say what the operating system said, such as "Connection refused", where anything down the chain did."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, OSError) and isinstance(step.strerror, str):
            return step.strerror
        step = step.__cause__ or step.__context__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
