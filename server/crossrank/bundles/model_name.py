"""Names that requests give models."""

from __future__ import annotations

import re
from pathlib import Path

from crossrank.errors import ModelSourceError

_NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,199}", re.ASCII)


def split_name(spec: str) -> tuple[str | None, str]:
    """Return the name and the rest of `NAME=MODEL`; no name where there is none, or where that is a path.

    Raises:
        ModelSourceError: The name is not one.
    """
    name, equals, rest = spec.partition("=")
    if not equals or Path(spec).expanduser().exists():
        return None, spec
    return checked_name(name), rest


def checked_name(name: str) -> str:
    """Return a name that requests can give a model.

    Raises:
        ModelSourceError: It is none.
    """
    if _NAME.fullmatch(name) is None:
        raise ModelSourceError(
            f"{name[:200]!r} is no name for a model: give up to 200 letters, digits and any of . _ : / @ + -, "
            "beginning with a letter or a digit"
        )
    return name
