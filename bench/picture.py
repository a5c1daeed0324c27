"""The picture of a run: latency distribution, cost against history, cost against sessions, the memory curve.

It draws what the results hold and computes nothing. A panel whose benchmark was not run is left out.
"""

# matplotlib's stubs leave the type of further keyword arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from bench.figures import Curve, Result


@dataclass(frozen=True, slots=True)
class Panel:
    """How one panel is drawn. `symlog`: logarithmic, with room for zero."""

    title: str
    x: str
    y: str
    x_scale: str = "linear"
    y_scale: str = "linear"
    markers: bool = False


PANELS: Final[Mapping[str, Panel]] = MappingProxyType(
    {
        "latency": Panel("How long a message takes", "milliseconds", "share of messages that took no longer", "log"),
        "messages": Panel("A drain, by how much waits", "answers that wait", "rows a second", "log", markers=True),
        "history": Panel("One look, by what is done in the session", "messages of history", "milliseconds", "log",
                         markers=True),
        "sessions": Panel("A daemon, by its idle sessions", "sessions", "see the legend", "symlog", "symlog", markers=True),
        "locks": Panel("Retention: how long a step holds a file", "milliseconds", "share of steps that took no longer", "log"),
        "memory": Panel("Memory under the busy sessions' load", "seconds", "resident MB"),
    }
)  # fmt: skip
_WIDTH: Final = 6.4
_HEIGHT: Final = 4.2


def collected(results: Mapping[str, Result]) -> dict[str, list[Curve]]:
    """Every result's curves by panel, in the panels' order."""
    return {
        panel: curves
        for panel in PANELS
        if (curves := [curve for result in results.values() for curve in result.curves.get(panel, ())])
    }


def draw(results: Mapping[str, Result], title: str, path: Path) -> bool:
    """Write the picture (the suffix names the format: .svg, .png). False when there is nothing to draw."""
    panels = collected(results)
    if not panels:
        return False
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    canvas = Canvas(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.4), layout="constrained")
    for place, (name, curves) in enumerate(panels.items(), start=1):
        _panel(canvas.add_subplot(rows, columns, place), PANELS[name], curves)
    canvas.suptitle(title, fontsize=8, color="dimgray")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text; no date and fixed ids: the same run draws the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench"}):
        canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return True


def _panel(axes: Axes, panel: Panel, curves: Sequence[Curve]) -> None:
    for curve in curves:
        x, y = zip(*curve.points, strict=True)
        axes.plot(x, y, marker="o" if panel.markers else None, label=curve.label)
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale=panel.x_scale, yscale=panel.y_scale)
    axes.set_ylim(bottom=0 if panel.y_scale != "log" else None)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
