"""Which incarnation was asked to stop claiming: the table `draining` of inbound.db. The runner reads it in each claim."""

from __future__ import annotations

from schema.handles import Reader, Writer


def is_draining(db: Reader, incarnation: str) -> bool:
    """Return whether this incarnation was asked to stop claiming."""
    return db.one("SELECT 1 FROM draining WHERE incarnation = ?", (incarnation,)) is not None


def note_draining(db: Writer, incarnation: str, now: int, *, forced: bool) -> None:
    """Ask an incarnation to stop claiming. `forced`: from now on, a failure that it acks does not count."""
    db.execute("DELETE FROM draining")  # at most one incarnation is live, so other rows are a predecessor's
    db.execute("INSERT INTO draining(incarnation, since, forced) VALUES (?, ?, ?)", (incarnation, now, int(forced)))
