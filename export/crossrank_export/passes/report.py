"""What a pass says of itself; the exporter writes it to the bundle's manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PassReport:
    """The outcome of one graph pass.

    Attributes:
        name: The pass, in the words of the manifest: `first_token`, `merge_qkv` ...
        applied: Whether the graph was changed.
        detail: One sentence: what was changed, or why nothing was.
    """

    name: str
    applied: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self)
