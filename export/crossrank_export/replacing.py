"""Replace a bundle by a new one in one step, and nothing that is not a bundle."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossrank.bundles.bundle import MANIFEST, Manifest
from crossrank.errors import SetupError

# Files that `crossrank engine` and an interrupted write leave in a bundle beside its own.
_TIMINGS = ".cache"
_PARTIAL = ".partial"


def refuse_occupied(out: Path) -> None:
    """Check that a directory may be replaced: it is absent, empty, or a bundle without other files.

    Raises:
        SetupError: It is not; the message says what would be lost.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        own = {MANIFEST, *Manifest.model_validate_json((out / MANIFEST).read_bytes()).files}
    except (OSError, ValueError):
        raise SetupError(f"{out} exists and is not a bundle: it would be overwritten, so give another --out") from None
    strange = sorted(
        path.name
        for path in out.iterdir()
        if (path.name not in own and not path.name.endswith((_TIMINGS, _PARTIAL))) or not path.is_file()
    )
    if strange:
        raise SetupError(
            f"{out} holds {strange[0]}, which is no part of the bundle there and would be lost: move it, or give "
            "another --out"
        )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a directory beside `out` that takes its place if the block succeeds, and is removed if it fails.

    Raises:
        SetupError: `out` cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_PARTIAL, dir=out.parent))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        partial, old = scratch / "new", scratch / "old"
        partial.mkdir()
        yield partial
        _swap(partial, out, old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(partial: Path, out: Path, old: Path) -> None:
    """Move `out` aside and `partial` to its place; if that fails, `out` stays as it was."""
    try:
        if out.exists():
            out.rename(old)  # fails where `out` is a mount point, before anything is lost
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> SetupError:
    return SetupError(f"{out} cannot be written ({os.strerror(error.errno or 0)}): give another --out")
