"""SQL over `conversations` in central.db: which generation of a session is the current one."""

from __future__ import annotations

from dataclasses import dataclass

from schema.handles import Reader, Writer


@dataclass(frozen=True, slots=True)
class Generation:
    """A session's current generation, counted from 1, and when it began (epoch milliseconds)."""

    number: int = 1
    begun_at: int = 0


def generations(db: Reader) -> dict[tuple[str, str], Generation]:
    """Return the current generation of each session that was started over, by (agent, session)."""
    return {
        (row["agent"], row["session"]): Generation(int(row["generation"]), int(row["begun_at"]))
        for row in db.all("SELECT * FROM conversations")
    }


def begin(db: Writer, key: tuple[str, str], by: str, now: int) -> None:
    """Begin the next generation. The same event, asked again, begins nothing."""
    with db.transaction():
        db.execute(
            "INSERT INTO conversations(agent, session, generation, begun_at, begun_by) VALUES (?, ?, 2, ?, ?)"
            " ON CONFLICT(agent, session) DO UPDATE SET generation = generation + 1, begun_at = excluded.begun_at,"
            " begun_by = excluded.begun_by WHERE begun_by <> excluded.begun_by",
            (*key, now, by),
        )
