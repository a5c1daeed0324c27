"""SQL over the routing tables of central.db: stored routes, where agents were mentioned, and refused events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.core.routing import Directory, Route, RoutingTable
from daemon.store.people import read_people
from schema.frozen import frozen
from schema.handles import Reader, Writer

MAX_REFUSED: Final = 5_000  # rows of refused_events; the ones that happened longest ago go first
MAX_MENTIONED: Final = 100_000
_MAX_WHY: Final = 500


@frozen
class StoredRoute:
    """A row of `routes`. `keys` are those of a [[routes]] table, unchecked."""

    name: str
    keys: Mapping[str, Any]
    added_at: int
    added_by: str
    reason: str | None


@frozen
class RefusedKind:
    """What makes two refusals the same row."""

    channel: str
    place: str
    sender: str
    agent: str
    route: str
    reason: str


@dataclass(slots=True)
class RefusedCount:
    """How often that happened since it was last written, and when."""

    why: str
    first_at: int
    last_at: int
    times: int = 0


def stored_routes(db: Reader) -> list[StoredRoute]:
    """Return every stored route, by name."""
    return [
        StoredRoute(row["name"], json.loads(row["keys"]), row["added_at"], row["added_by"], row["reason"])
        for row in db.all("SELECT * FROM routes ORDER BY name")
    ]


def read_directory(
    db: Reader, configured: Iterable[Route], read: Callable[[Mapping[str, Any]], Route]
) -> tuple[Directory, list[str]]:
    """Return what decides about events, and the names of stored routes that `read` raises ValueError for."""
    found = [*configured]
    unusable: list[str] = []
    for one in stored_routes(db):
        try:
            found.append(read(one.keys))
        except ValueError:
            unusable.append(one.name)
    return Directory(RoutingTable(found), read_people(db), mentioned(db)), unusable


def directory_of(configured: Iterable[Route]) -> Directory:
    """Return what decides before there is a central.db."""
    return Directory(RoutingTable(configured))


def add_route(db: Writer, route: StoredRoute) -> bool:
    """Store a route. Return False if there is one of that name."""
    with db.transaction():
        if db.one("SELECT 1 FROM routes WHERE name = ?", (route.name,)) is not None:
            return False
        db.execute(
            "INSERT INTO routes(name, keys, added_at, added_by, reason) VALUES (?, ?, ?, ?, ?)",
            (route.name, json.dumps(dict(route.keys)), route.added_at, route.added_by, route.reason),
        )
    return True


def remove_route(db: Writer, name: str) -> bool:
    """Delete a stored route. Return False if there is none of that name."""
    with db.transaction():
        known = db.one("SELECT 1 FROM routes WHERE name = ?", (name,)) is not None
        db.execute("DELETE FROM routes WHERE name = ?", (name,))
    return known


Mentioned = tuple[str, str, str, str]
"""(agent, channel, place, thread); the thread is empty where the place has none."""


def mentioned(db: Reader) -> set[Mentioned]:
    """Return where agents with a mention-sticky route were mentioned, the newest MAX_MENTIONED."""
    rows = db.all("SELECT agent, channel, place, thread FROM mentioned ORDER BY at DESC LIMIT ?", (MAX_MENTIONED,))
    return {(row["agent"], row["channel"], row["place"], row["thread"]) for row in rows}


def note_mentioned(db: Writer, at: Mentioned, now_ms: int) -> None:
    """Record that an agent was mentioned there."""
    with db.transaction():
        db.execute("INSERT OR REPLACE INTO mentioned(agent, channel, place, thread, at) VALUES (?, ?, ?, ?, ?)",
                   (*at, now_ms))  # fmt: skip


def prune_mentioned(db: Writer, most: int = MAX_MENTIONED) -> int:
    """Forget the oldest rows beyond `most`; return how many there were."""
    row = db.one("SELECT at FROM mentioned ORDER BY at DESC LIMIT 1 OFFSET ?", (most,))
    if row is None:
        return 0
    with db.transaction():
        return db.execute("DELETE FROM mentioned WHERE at <= ?", (row["at"],))


def note_refused(db: Writer, counted: Iterable[tuple[RefusedKind, RefusedCount]]) -> None:
    """Add refusals to the table, and drop the oldest rows beyond MAX_REFUSED."""
    with db.transaction():
        for kind, count in counted:
            db.execute(
                "INSERT INTO refused_events(channel, place, sender, agent, route, reason, why, times, first_at, last_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT(channel, place, sender, agent, route, reason) DO UPDATE SET"
                " times = times + excluded.times, why = excluded.why, last_at = max(last_at, excluded.last_at)",
                (kind.channel, kind.place, kind.sender, kind.agent, kind.route, kind.reason, count.why[:_MAX_WHY],
                 count.times, count.first_at, count.last_at),
            )  # fmt: skip
        db.execute(
            "DELETE FROM refused_events WHERE last_at < (SELECT last_at FROM refused_events ORDER BY last_at DESC"
            " LIMIT 1 OFFSET ?)",
            (MAX_REFUSED,),
        )


def refused_events(db: Reader, limit: int) -> Sequence[Mapping[str, Any]]:
    """Return the refusals that happened last, newest first."""
    return [dict(row) for row in db.all("SELECT * FROM refused_events ORDER BY last_at DESC LIMIT ?", (limit,))]
