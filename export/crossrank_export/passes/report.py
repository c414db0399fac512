"""The report of a graph pass, which the exporter writes to the bundle's manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PassReport:
    """The outcome of one graph pass.

    Attributes:
        name: Name of the pass in the manifest: `first_token`, `merge_qkv` ...
        applied: Whether the graph was changed.
        detail: A sentence: what was changed, or why nothing was.
    """

    name: str
    applied: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self)
