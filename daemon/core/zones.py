"""Time zones by name. UTC needs no time zone database, because small images have none."""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

_UTC_NAMES: Final = frozenset({"UTC", "Etc/UTC", "Etc/UCT", "UCT", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal"})
_INSTALL: Final = (
    "this machine has no time zone database: install it (`apt-get install tzdata`, `apk add tzdata`, or `pip install"
    " tzdata` into clawbus's own environment), or use UTC"
)


def zone(name: str) -> tzinfo:
    """Return the zone of that name. Raise ValueError that says what to use or to install instead."""
    found = find_zone(name)
    if found is not None:
        return found
    if not available_timezones():
        raise ValueError(_INSTALL)
    raise ValueError("is not a time zone of this machine; use a name like Europe/Vienna, or UTC")


def find_zone(name: str) -> tzinfo | None:
    """Return the zone of that name; None if this machine has none."""
    if name in _UTC_NAMES:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
