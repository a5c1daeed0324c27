"""The life of one message as a table: its own history, its session's incarnations, and the kill. Pure but for the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from rich import box
from rich.table import Table

from schema.instants import from_text

# What the history calls it -> what a reader of the demo calls it. What is not here is shown under its own name.
_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "accepted": "accepted",
        "claimed": "claimed",
        "retry_scheduled": "reset, next try",
        "answered": "answered",
        "completed": "settled",
        "delivered": "delivered",
    }
)
# What causes what, for events of the same millisecond.
_CAUSES: Final = (
    "accepted",
    "spawned",
    "killed (SIGKILL)",
    "exit confirmed",
    "reset, next try",
    "respawned",
    "claimed",
)
# Told by other rows already.
_LEFT_OUT: Final = frozenset({"attempt_orphaned", "attempt_completed", "acked_completed", "delivery_intended"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `at` is epoch milliseconds."""

    at: int
    event: str
    detail: str


def rows_of(
    life: Sequence[Mapping[str, Any]], incarnations: Sequence[Mapping[str, Any]], killed_at: int, killed: str
) -> list[Row]:
    """Everything in time order. `killed` is the incarnation that was killed at `killed_at` (epoch ms)."""
    rows = [_life_row(event) for event in life if event["event"] not in _LEFT_OUT and event["at"] is not None]
    rows.append(Row(killed_at, "killed (SIGKILL)", f"container {short(killed)}"))
    start = min((row.at for row in rows), default=killed_at)
    end = max((row.at for row in rows), default=killed_at)
    spawned = 0
    for one in sorted(incarnations, key=lambda item: int(item["created_at"])):
        if start <= one["created_at"] <= end:
            spawned += 1
            rows.append(
                Row(one["created_at"], "spawned" if spawned == 1 else "respawned", f"container {short(one['id'])}")
            )
        if one["ended_at"] is not None and start <= one["ended_at"] <= end:
            rows.append(Row(one["ended_at"], "exit confirmed", f"container {short(one['id'])}, {_exit(one)}"))
    return sorted(rows, key=lambda row: (row.at, _CAUSES.index(row.event) if row.event in _CAUSES else len(_CAUSES)))


def check_story(rows: Sequence[Row]) -> list[str]:
    """What a message that was killed once must have lived through and did not; empty when the story is whole."""
    events = [row.event for row in rows]
    wanted = ("accepted", "spawned", "claimed", "killed (SIGKILL)", "exit confirmed", "reset, next try")
    wanted += ("respawned", "answered", "delivered")
    missing = [event for event in wanted if event not in events]
    if events.count("claimed") < 2:
        missing.append("claimed again")
    return missing


def table_of(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("after", justify="right")
    table.add_column("what")
    table.add_column("which", overflow="fold")
    for row in rows:
        table.add_row(f"{(row.at - rows[0].at) / 1000:.3f} s", row.event, row.detail)
    return table


def short(incarnation: str) -> str:
    """The end of an incarnation's id: the beginning is its time, and alike for all of one demo."""
    return f"..{incarnation[-6:]}"


def _life_row(event: Mapping[str, Any]) -> Row:
    detail: Mapping[str, Any] = event.get("detail") or {}
    parts: list[str] = []
    if detail.get("incarnation") and detail.get("tries") is None:
        parts.append(f"container {short(str(detail['incarnation']))}")
    if detail.get("from"):
        parts.append(f"from {detail['from']}")
    if detail.get("tries") is not None:
        parts.append(f"try {detail['tries']} used")
    again = from_text(detail.get("process_after"))
    if again is not None:
        parts.append(f"the next after {(again - int(event['at'])) / 1000:g} s")
    if detail.get("text"):
        parts.append(f'"{detail["text"]}"')
    return Row(int(event["at"]), _NAMES.get(event["event"], str(event["event"])), ", ".join(parts))


def _exit(incarnation: Mapping[str, Any]) -> str:
    code, reason = incarnation.get("exit_code"), incarnation.get("end_reason")
    return f"code {'unknown' if code is None else code} ({reason})"
