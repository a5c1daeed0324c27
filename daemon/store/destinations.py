"""The table `destinations` of one session: the places besides its own that its agent may write to, by name.

The host writes it before each start of a container, from the configuration. Where the configuration says nothing, the
table stays as it is: a folder that comes from another system brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from daemon.store import reply_routes
from schema.connect import Writer

OWN_PLACE: Final = "here"


@dataclass(frozen=True, slots=True)
class Place:
    """A channel and a place in it, with the name that an agent shows to people."""

    channel: str
    place: str
    display_name: str


def write(db: Writer, places: Mapping[str, Place]) -> None:
    """Make the table hold these places and no others. Nothing is written when it does already."""
    wanted = {name: (one.display_name, "channel", one.channel, one.place, None) for name, one in places.items()}
    rows = db.all("SELECT name, display_name, type, channel_type, platform_id, agent_group_id FROM destinations")
    if {row["name"]: tuple(row)[1:] for row in rows} == wanted:
        return
    with db.transaction():
        db.execute("DELETE FROM destinations")
        for name, values in wanted.items():
            db.execute("INSERT INTO destinations VALUES (?, ?, ?, ?, ?, ?)", (name, *values))


def write_with_own_place(db: Writer, places: Mapping[str, Place] | None) -> None:
    """Write the places, and the session's own as OWN_PLACE, for runners that answer only to a name.

    Without `places` the own place is written into an empty table only.
    """
    own = reply_routes.routing(db)
    here = {OWN_PLACE: Place(own.channel_type, own.platform_id, OWN_PLACE)} if own is not None else {}
    if places is not None or db.one("SELECT 1 FROM destinations") is None:
        write(db, {**here, **(places or {})})
