"""The two pyproject.toml files, read."""

from __future__ import annotations

import sys
from typing import Any

from packaging.requirements import Requirement

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CLIENT: dict[str, Any] = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(project: dict[str, Any], *extras: str) -> list[Requirement]:
    """Return what a distribution requires, with those of its extras that are named here and that it has."""
    optional = project["project"]["optional-dependencies"]
    lines = project["project"]["dependencies"] + [line for extra in extras for line in optional.get(extra, ())]
    return [Requirement(line) for line in lines]
