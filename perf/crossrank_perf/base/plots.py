"""Common style of all plots; drawn without a display and without pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Distinguishable for most colour-blind readers.
BETTER = "#0072b2"
WORSE = "#d55e00"
NEUTRAL = "#555555"
# Four ordered colours, such as for percentiles.
SHADES = ("#7fb8d8", "#0072b2", "#e69f00", "#d55e00")

_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "font.size": 9,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",  # text stays text: searchable, and smaller
    "svg.hashsalt": "crossrank",
}


def new_figure(rows: int = 1, *, width_in: float = 9.0, row_height_in: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure in the common style and its `rows` plots, one above the other."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width_in, row_height_in * rows), layout="constrained")
        axes = figure.subplots(rows, 1, squeeze=False)
    return figure, list(axes[:, 0])


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the suffix (.png, .svg); equal figures give equal bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context(_STYLE):
        figure.savefig(path, dpi=150, metadata=metadata)
