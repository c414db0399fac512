"""Parse ids of models on the Hugging Face hub, and turn errors of the hub into one sentence each."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from crossrank.bundles.catalog import canonical_model_id, catalog_model
from crossrank.errors import ModelSourceError
from crossrank.reasons import reason_of

DEFAULT_REVISION = "main"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM}


class HubUnreachable(ModelSourceError):
    """The hub did not answer; a cached model may serve instead."""


@dataclass(frozen=True)
class HubRef:
    """A model on the hub, at a revision.

    Attributes:
        model_id: `owner/name`.
        revision: A commit, branch or tag.
        sha256: Expected sha256 of pinned files, by name.
    """

    model_id: str
    revision: str
    sha256: Mapping[str, str]

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a full commit hash, which always names the same files."""
        return COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True)
class HubListing:
    """Files of a repository at one commit.

    Attributes:
        commit: Full commit hash.
        files: sha256 by file name; None where the hub publishes none (small files).
    """

    commit: str
    files: Mapping[str, str | None]

    @property
    def published_sha256(self) -> dict[str, str]:
        """Hashes that the hub publishes, by file name."""
        return {name: value for name, value in self.files.items() if value is not None}


def parse_hub_ref(spec: str, revision: str | None = None) -> HubRef:
    """Parse `owner/name` or `owner/name@revision`. A pinned model has its pin unless another revision is named.

    Raises:
        ModelSourceError: The text is not a hub id, or the revision is malformed.
    """
    text, _, inline = spec.strip().partition("@")
    model_id = canonical_model_id(text)
    revision = revision or inline or None
    malformed = _HUB_ID.fullmatch(model_id) is None or ".." in model_id or "--" in model_id
    if malformed or (spec.strip().endswith("@")):
        raise ModelSourceError(
            f"{spec!r} names no model: give builtin, a bundle directory, a directory as save_pretrained "
            "writes it or with an ONNX graph, or a hub id OWNER/NAME[@REVISION]; `crossrank models` lists what is known"
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


@contextmanager
def hub_errors(ref: HubRef, endpoint: str | None) -> Iterator[None]:
    """Turn errors of huggingface_hub, and of requests or httpx beneath it, into one sentence each.

    Raises:
        HubUnreachable: The hub did not answer, or failed.
        ModelSourceError: The hub refused the request or lacks the file, or the disk cannot be written.
    """
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
    # Before EntryNotFoundError, its base class: huggingface_hub raises it where the hub did not answer.
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        raise _refused(name, cause) or _unreachable(name, endpoint, cause) from error
    except errors.EntryNotFoundError as error:
        raise ModelSourceError(f"{name} lists a file that the hub does not have: {reason_of(error)}") from error
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
    """Return the error for an HTTP status; None if there was no response."""
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
    """Return the operating system's message, such as "Connection refused", if one is among the error's causes."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, OSError) and isinstance(step.strerror, str):
            return step.strerror
        step = step.__cause__ or step.__context__
    return reason_of(error)
