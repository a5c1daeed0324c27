"""The table egress_usage of central.db: what agents used at the gate, by day and route."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields

from daemon.core.egress_usage import UsageRow
from schema.handles import Reader, Writer

_COLUMNS = tuple(field.name for field in fields(UsageRow))


def read_days(db: Reader | Writer, first_day: str, agent: str | None = None) -> list[UsageRow]:
    """Return the rows from a day on, oldest first; nothing where an older file has no such table."""
    if not db.columns("egress_usage"):
        return []
    of_agent = "" if agent is None else " AND agent = ?"
    rows = db.all(
        f"SELECT {', '.join(_COLUMNS)} FROM egress_usage WHERE day >= ?{of_agent} ORDER BY day, agent, route",
        (first_day,) if agent is None else (first_day, agent),
    )
    return [UsageRow(*row) for row in rows]


def write(db: Writer, rows: Iterable[UsageRow], before: str) -> None:
    """Put rows in the place of earlier ones, so that a repetition counts nothing twice; take away days before `before`."""
    marks = ", ".join("?" * len(_COLUMNS))
    for row in rows:
        db.execute(f"INSERT OR REPLACE INTO egress_usage({', '.join(_COLUMNS)}) VALUES ({marks})", astuple(row))
    db.execute("DELETE FROM egress_usage WHERE day < ?", (before,))
