"""Returns the colour of a state. The console prints colours on terminals only, and none if NO_COLOR is set. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_COLUMNS: Final = frozenset({"state", "status"})
_STYLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("running", "working", "up", "completed", "processing"), "green"),
        **dict.fromkeys(("starting", "waiting", "resting", "pending", "queued"), "cyan"),
        **dict.fromkeys(("backing_off", "retrying", "released", "orphaned", "in_doubt", "degraded"), "yellow"),
        **dict.fromkeys(("quarantined", "failed", "dead", "missing"), "red"),
        **dict.fromkeys(("idle", "scheduled", "cancelled"), "dim"),
    }
)


def state_style(column: str, cell: str) -> str:
    """Return the style of a cell: that of the state it names, in a column of states; else none. What is stale is yellow."""
    if column not in _COLUMNS:
        return ""
    word = cell.partition(" ")[0].rstrip(",;:")
    return "yellow" if word in _STYLES and "stale" in cell.lower() else _STYLES.get(word, "")
