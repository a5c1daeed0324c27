"""The tables agent_usage and agent_refills of central.db: what agents used in each day, and when an operator refilled a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple

from daemon.core.budgets import AgentDay
from schema.frozen import frozen
from schema.handles import Reader, Writer

_COLUMNS = "day, agent, turns, tokens, cost"
Key = tuple[str, str]  # (day, agent)


@frozen
class AgentUsage:
    """What was used, and what had been used when the budget was refilled last, by day and agent."""

    days: dict[Key, AgentDay]
    refills: dict[Key, AgentDay]

    def left_to_count(self, day: str, agent: str) -> AgentDay:
        """Return what counts towards an agent's daily budget."""
        key = (day, agent)
        return self.days.get(key, AgentDay(day, agent)).since(self.refills.get(key))


def read(db: Reader | Writer, first_day: str) -> AgentUsage:
    """Return both tables from a day on; nothing where an older file has no such tables."""
    if not db.columns("agent_usage"):
        return AgentUsage({}, {})
    return AgentUsage(_rows(db, "agent_usage", first_day), _rows(db, "agent_refills", first_day))


def write(db: Writer, days: Iterable[AgentDay], before: str) -> None:
    """Put whole totals in the place of earlier ones, so that a repetition counts nothing twice. Remove days before `before`."""
    with db.transaction():
        for one in days:
            db.execute(f"INSERT OR REPLACE INTO agent_usage({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", astuple(one))
        for table in ("agent_usage", "agent_refills"):
            db.execute(f"DELETE FROM {table} WHERE day < ?", (before,))


def refill(db: Writer, day: str, agent: str, at: int, by: str, reason: str | None) -> AgentDay:
    """Let the agent's daily budget begin again, and return what had been used. Call inside a transaction."""
    row = db.one(f"SELECT {_COLUMNS} FROM agent_usage WHERE day = ? AND agent = ?", (day, agent))
    used = AgentDay(*row) if row is not None else AgentDay(day, agent)
    db.execute(
        f"INSERT OR REPLACE INTO agent_refills({_COLUMNS}, at, by, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*astuple(used), at, by, reason),
    )
    return used


def _rows(db: Reader | Writer, table: str, first_day: str) -> dict[Key, AgentDay]:
    found = [AgentDay(*row) for row in db.all(f"SELECT {_COLUMNS} FROM {table} WHERE day >= ?", (first_day,))]
    return {(one.day, one.agent): one for one in found}
