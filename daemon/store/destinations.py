"""The table `destinations` of one session: the places and agents besides its own place that its agent may write to.

The host writes it before each start of a container, from the configuration and the routes. Rows without a `source` were
brought by a folder of another system: they stay until the configuration lists this agent's destinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daemon.core.destinations import AGENT_CHANNEL, OWN_PLACE, DestinationSource, NamedPlace
from daemon.store import reply_routes
from schema.handles import Reader, Writer

_COLUMNS: Final = "name, display_name, type, channel_type, platform_id, agent_group_id, source"
_Row = tuple[str, str, str, str | None, str | None, str | None, str]


def write(
    db: Writer, places: Sequence[NamedPlace], *, own_place: bool, keep_brought: bool
) -> frozenset[tuple[str, str]]:
    """Make the host's rows of the table be these places. Return (channel, place) of those that it takes away.

    Nothing is written when they are already.

    The session's own place comes first, as OWN_PLACE, if there are other places or `own_place` asks for it, as runners do
    that answer only to a name. `keep_brought`: leave rows that another system wrote.
    """
    brought = db.all("SELECT name FROM destinations WHERE source IS NULL") if keep_brought else []
    kept = {str(row["name"]) for row in brought}
    wanted = [_row(one) for one in places]
    if (own_place and not kept) or wanted:
        wanted = [*_own(db), *wanted]
    rows = {one[0]: one for one in wanted if one[0] not in kept}
    here = db.all(f"SELECT {_COLUMNS} FROM destinations")
    if {row["name"]: tuple(row) for row in here if row["name"] not in kept} == rows:
        return frozenset()
    before = granted(db)
    with db.transaction():
        db.execute("DELETE FROM destinations WHERE source IS NOT NULL OR ?", (not keep_brought,))
        for values in rows.values():
            db.execute(f"INSERT INTO destinations({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return before - granted(db)


def granted(db: Reader) -> frozenset[tuple[str, str]]:
    """Return (channel, place) of each destination in the table: where the session may write, as its container sees it."""
    return frozenset(_addresses(db, ""))


def not_derived(db: Reader) -> frozenset[tuple[str, str]]:
    """Return those of `granted` that no configuration and no route can take away: brought ones, and the own place."""
    return frozenset(_addresses(db, " WHERE source IS NULL OR source = 'own'"))


def _addresses(db: Reader, where: str) -> list[tuple[str, str]]:
    rows = db.all(f"SELECT type, channel_type, platform_id, agent_group_id FROM destinations{where}")
    found = [
        (AGENT_CHANNEL, row["agent_group_id"])
        if row["type"] == "agent" and row["channel_type"] is None
        else (row["channel_type"], row["platform_id"])
        for row in rows
    ]
    return [(channel, place) for channel, place in found if channel and place]


def _row(one: NamedPlace) -> _Row:
    if one.channel == AGENT_CHANNEL:
        return one.name, one.display_name, "agent", None, None, one.place, one.source.value
    return one.name, one.display_name, "channel", one.channel, one.place, None, one.source.value


def _own(db: Reader) -> list[_Row]:
    own = reply_routes.routing(db)
    if own is None:
        return []
    return [_row(NamedPlace(OWN_PLACE, own.channel_type, own.platform_id, OWN_PLACE, DestinationSource.OWN))]
