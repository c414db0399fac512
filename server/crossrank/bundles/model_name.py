"""Check the names by which requests select models."""

from __future__ import annotations

import re
from pathlib import Path

from crossrank.errors import ModelSourceError

_NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,199}", re.ASCII)


def split_name(spec: str) -> tuple[str | None, str]:
    """Split `NAME=MODEL` into name and model. The name is None if there is none, or if the whole text is a path.

    Raises:
        ModelSourceError: The name is malformed.
    """
    name, equals, rest = spec.partition("=")
    if not equals or Path(spec).expanduser().exists():
        return None, spec
    return checked_name(name), rest


def checked_name(name: str) -> str:
    """Return the name if requests can select a model by it.

    Raises:
        ModelSourceError: The name is malformed.
    """
    if _NAME.fullmatch(name) is None:
        raise ModelSourceError(
            f"{name[:200]!r} is no name for a model: give up to 200 letters, digits and any of . _ : / @ + -, "
            "beginning with a letter or a digit"
        )
    return name
