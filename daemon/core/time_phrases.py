"""Reads a time as people write it: `2026-12-24T18:00`, `18:00`, `tomorrow 9:00`, `in 2h`. Pure.

Every form names exactly one instant, given the clock and a zone. A time without a day is the next one that the zone's
clock shows; weekday names are not accepted, because "monday" on a Monday is not clear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

from daemon.core.errors import ScheduleError
from daemon.core.schedules import LAST_INSTANT, local_instant, zone_of

FORMS: Final = "2026-12-24T18:00, 2026-12-24T17:00Z, 18:00, tomorrow 9:00 or in 2h"
_CLOCK: Final = re.compile(r"(?:(today|tomorrow)[ T])?([01]?\d|2[0-3]):([0-5]\d)\Z", re.ASCII | re.IGNORECASE)
_IN: Final = re.compile(r"in (\d{1,9}) ?(s|min|m|h|d)\Z", re.ASCII | re.IGNORECASE)
_UNIT_MS: Final[Mapping[str, int]] = MappingProxyType(
    {"s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)


def instant_of(text: str, timezone: str, now: int) -> int:
    """Return the instant that the text names, in epoch milliseconds. Raise ScheduleError.

    `now` is epoch milliseconds. A time of day, and ISO 8601 text without an offset, are wall-clock times of the zone.
    """
    said, where = " ".join(text.split()), zone_of(timezone)
    later = _IN.match(said)
    if later is not None:
        return now + int(later.group(1)) * _UNIT_MS[later.group(2).lower()]
    clock = _CLOCK.match(said)
    if clock is None:
        return _iso(said, timezone)
    day, minute = (clock.group(1) or "").lower(), f"{int(clock.group(2)):02d}:{clock.group(3)}"
    today = (_EPOCH + timedelta(milliseconds=now)).astimezone(where).date()
    found = local_instant(f"{today + _DAY if day == 'tomorrow' else today}T{minute}", timezone)
    if not day and found <= now:
        return local_instant(f"{today + _DAY}T{minute}", timezone)
    return found


def future_instant(text: str, timezone: str, now: int) -> int:
    """Return the instant that the text names. Raise ScheduleError if it is not after `now`, or after the year 9999."""
    found = instant_of(text, timezone, now)
    if now < found <= LAST_INSTANT:
        return found
    raise ScheduleError(
        f"{text!r:.80} is {'past' if found <= now else 'too far ahead'}.",
        hint=f"Name a time in the future: {FORMS}.",
    )


def _iso(text: str, timezone: str) -> int:
    try:
        return local_instant(text, timezone)
    except ScheduleError as error:
        raise ScheduleError(str(error), hint=f"Write a time such as {FORMS}.") from error
