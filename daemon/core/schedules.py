"""Computes when a schedule is due: once, at regular intervals, or by a cron expression. Pure.

Instants are epoch milliseconds. A cron expression uses the wall clock of the schedule's zone, so "09:00" stays 09:00
across daylight-saving changes: a skipped time fires right after the change, a repeated one fires once. `every` counts
elapsed time from its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from cronsim import CronSim, CronSimError

from daemon.core.errors import ScheduleError
from daemon.core.zones import find_zone, zone
from schema.frozen import frozen

# An occurrence later than this counts as missed, not delayed: the daemon was down, or the machine was asleep.
MISSED_MS: Final = 5 * 60_000
# `catch_up = "all"` fires at most this many occurrences in one transaction; the next batch follows at once.
BATCH: Final = 50
# A record dated further ahead than this was made by a clock that was set back since.
CLOCK_SLACK_MS: Final = 60_000
MIN_EVERY_MS: Final = 1000
MAX_EVERY_MS: Final = 366 * 86_400_000
LAST_INSTANT: Final = 253_402_300_799_999  # the end of the year 9999
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class CatchUp(StrEnum):
    """What happens to occurrences that were missed."""

    SKIP = "skip"  # drop them
    LATEST = "latest"  # fire the last one
    ALL = "all"  # fire each one, in order


@frozen
class Times:
    """A schedule's times: exactly one of `at`, `every_ms` and `cron`. `every_ms` counts from `start`.

    Nothing fires after `until`, or after `count` occurrences.
    """

    at: int | None = None
    every_ms: int | None = None
    cron: str | None = None
    timezone: str = "UTC"
    start: int = 0
    until: int | None = None
    count: int | None = None
    catch_up: CatchUp = CatchUp.SKIP

    def as_json(self) -> dict[str, Any]:
        """Return the form in which it is stored."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Times:
        """Read the stored form."""
        return replace(cls(**value), catch_up=CatchUp(value.get("catch_up", CatchUp.SKIP)))

    @property
    def words(self) -> str:
        """The rule for people, such as `every 90m` or `0 9 * * 1 (Europe/Vienna)`."""
        if self.cron is not None:
            return f"{self.cron} ({self.timezone})"
        return f"every {_span(self.every_ms)}" if self.every_ms is not None else "once"


@frozen
class Firing:
    """What a schedule does now: the instants to fire, whether others were missed, and the next instant (None if it has ended)."""

    due: tuple[int, ...]
    missed: bool
    next_at: int | None


def check_key(key: str) -> str:
    """Return the key. Raise ScheduleError for one that is not a plain name."""
    if _KEY.match(key) is None:
        raise ScheduleError(
            f"{key!r:.80} cannot name a schedule.", hint="Use up to 64 letters, digits, '.', '_' and '-'."
        )
    return key


def check(times: Times, now: int) -> None:
    """Raise ScheduleError for times that contradict each other, or that can never fire."""
    check_form(times)
    if next_after(times, now) is None:
        raise ScheduleError(
            "it would never fire: its time is past, or no date matches.", hint="Name a time in the future."
        )


def check_form(times: Times) -> None:
    """Raise ScheduleError for times that contradict each other, and for a cron expression that matches no date."""
    given = [name for name in ("at", "every_ms", "cron") if getattr(times, name) is not None]
    if len(given) != 1:
        raise ScheduleError("a schedule has exactly one of at, every and cron.")
    zone_of(times.timezone)
    if times.every_ms is not None and not MIN_EVERY_MS <= times.every_ms <= MAX_EVERY_MS:
        raise ScheduleError("every must be between 1 second and 366 days.")
    if times.until is not None and not 0 <= times.until <= LAST_INSTANT:
        raise ScheduleError("until must be in the years 1970 to 9999.", hint="Leave it out for no end.")
    if times.count is not None and times.count < 1:
        raise ScheduleError("count must be at least 1.")
    if times.cron is not None:
        _check_cron(times.cron, times.timezone)


def zone_of(name: str) -> tzinfo:
    """Return the zone of that name. Raise ScheduleError."""
    try:
        return zone(name)
    except ValueError as error:
        raise ScheduleError(f"timezone {name!r:.80} {error}.", hint="Use a name like Europe/Vienna, or UTC.") from error


def lost_zone(times: Times) -> str | None:
    """Return the zone of a cron expression if this machine does not have it any more: then its next occurrence is not known."""
    return times.timezone if times.cron is not None and find_zone(times.timezone) is None else None


def _check_cron(cron: str, timezone: str) -> None:
    if len(cron.split()) != 5:
        raise ScheduleError(
            f"cron {cron!r:.80} does not have five fields.",
            hint="Write minute, hour, day of month, month, day of week: `0 9 * * 1-5` is 09:00 on weekdays.",
        )
    try:
        next(CronSim(cron, datetime(2000, 1, 1, tzinfo=zone(timezone))))
    except StopIteration:
        raise ScheduleError(f"cron {cron!r:.80} matches no date.", hint="Correct its day and month.") from None
    except CronSimError as error:
        raise ScheduleError(
            f"cron {cron!r:.80} is not valid: {error}.", hint="`0 9 * * 1-5` is 09:00 on weekdays."
        ) from error


def next_after(times: Times, instant: int) -> int | None:
    """Return the first occurrence after an instant, or None if none is left. Raise ScheduleError if its zone is gone."""
    if times.at is not None:
        found = times.at if times.at > instant else None
    elif times.every_ms is not None:
        found = times.start + max(1, (instant - times.start) // times.every_ms + 1) * times.every_ms
    else:
        found = next_cron(times.cron or "", instant, times.timezone)
    over = found is None or found > LAST_INSTANT or (times.until is not None and found > times.until)
    return None if over else found


def last_until(times: Times, instant: int) -> int | None:
    """Return the last occurrence at or before an instant, or None if there was none."""
    if times.until is not None:
        instant = min(instant, times.until)
    if times.at is not None:
        return times.at if times.at <= instant else None
    if times.every_ms is not None:
        number = (instant - times.start) // times.every_ms
        return times.start + number * times.every_ms if number > 0 else None
    # Backwards CronSim excludes the minute it starts from, if it starts at its very beginning.
    return _cron(times.cron or "", instant - instant % 60_000 + 60_000, times.timezone, reverse=True)


def fire(times: Times, next_at: int, now: int, sent: int, waited: int = 0) -> Firing:
    """Return what a schedule whose next occurrence is `next_at` does now, after `sent` occurrences: nothing before `next_at`.

    An occurrence is missed if it is too late. `waited` milliseconds of its lateness do not count.
    """
    if next_at > now:
        return Firing((), missed=False, next_at=next_at)
    left = None if times.count is None else max(0, times.count - sent)
    if times.catch_up is CatchUp.ALL:
        due = tuple(islice(_from(times, next_at, now), BATCH if left is None else min(BATCH, left)))
        missed = False
    else:
        latest = last_until(times, now)
        latest = next_at if latest is None or latest < next_at else latest
        wanted = times.catch_up is CatchUp.LATEST or now - waited - latest <= MISSED_MS
        due = (latest,) if wanted and left != 0 else ()
        missed = latest != next_at or not wanted
    if left is not None and len(due) >= left:
        return Firing(due, missed, None)
    return Firing(due, missed, next_after(times, due[-1] if times.catch_up is CatchUp.ALL and due else now))


def in_step(firings: Mapping[str, Firing], now: int) -> dict[str, Firing]:
    """Cut the firings of one session's schedules, by key, so that all their occurrences can be stored in the order of time.

    A schedule may have more occurrences to make up than one firing holds. Then no other schedule fires beyond the last one
    that it holds; the rest of all comes with the next firing.
    """
    ends = [one.due[-1] for one in firings.values() if one.due and one.next_at is not None and one.next_at <= now]
    end = min(ends, default=now)
    found: dict[str, Firing] = {}
    for key, one in firings.items():
        due = tuple(instant for instant in one.due if instant <= end)
        if len(due) == len(one.due):
            found[key] = one
        elif due:
            found[key] = replace(one, due=due, next_at=one.due[len(due)])
    return found


def set_back(times: Times, next_at: int, now: int) -> tuple[Times, int] | None:
    """Return the times and the next instant of a schedule that a clock since set back has put off; None if it is not put off.

    `every` may count from an instant of that clock, so it begins again.
    """
    if times.at is not None or next_at <= now:
        return None
    if times.every_ms is not None and times.start > now:
        times = replace(times, start=now)
    soonest = next_after(times, now)
    return (times, soonest) if soonest is not None and soonest < next_at else None


def _from(times: Times, first: int, last: int) -> Iterator[int]:
    at: int | None = first
    while at is not None and at <= last:
        yield at
        at = next_after(times, at)


def upcoming(times: Times, next_at: int | None, sent: int, limit: int) -> tuple[int, ...]:
    """Return the next occurrences from `next_at` on, up to `limit` and to `times.count`, of which `sent` have been."""
    left = limit if times.count is None else min(limit, max(0, times.count - sent))
    found: list[int] = []
    while next_at is not None and len(found) < left:
        found.append(next_at)
        next_at = next_after(times, next_at)
    return tuple(found)


def next_cron(expression: str, after: int, timezone: str) -> int | None:
    """Return the first time of a cron expression after an instant, or None if it never comes."""
    return _cron(expression, after, timezone, reverse=False)


def _cron(expression: str, instant: int, timezone: str, *, reverse: bool) -> int | None:
    start = (_EPOCH + timedelta(milliseconds=instant)).astimezone(zone_of(timezone))
    try:
        found = next(CronSim(expression, start, reverse=reverse))
    except (CronSimError, StopIteration, OverflowError):
        return None
    return int((found - _EPOCH) / timedelta(milliseconds=1))


def local_instant(text: str, timezone: str) -> int:
    """Return the instant of ISO 8601 text; without an offset it is a wall-clock time of the zone. Raise ScheduleError.

    For a wall-clock time that occurs twice, return the first. For one that is skipped, keep the offset from before the gap.
    """
    where = zone_of(timezone)
    try:
        found = datetime.fromisoformat(text)
        instant = found if found.tzinfo is not None else found.replace(tzinfo=where)
        return int((instant - _EPOCH) / timedelta(milliseconds=1))
    except (ValueError, OverflowError) as error:
        raise ScheduleError(
            f"{text!r:.80} is not a time.", hint="Write a time such as 2026-12-24T18:00 or 2026-12-24T17:00Z."
        ) from error


def _span(milliseconds: int) -> str:
    seconds = milliseconds / 1000
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:g}{unit}"
    return f"{seconds:g}s"
