"""What an agent may ask for with schedules of its own. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from daemon.core.errors import ScheduleError
from daemon.core.schedules import Times, next_after, upcoming
from schema.frozen import frozen

# The number of next occurrences among which a cron expression's shortest interval is searched.
_LOOKED_AT: Final = 50


@frozen
class ScheduleLimits:
    """The limits of one agent's sessions: how many schedules each may have, and how close together occurrences may be.

    What is due sooner than `shortest_ms` from now is bounded too: `most` such requests in `window_ms`. Without that an agent
    could wake itself in a loop, each turn asking for the next. `timezone` applies where the agent names none.
    """

    most: int = 20
    shortest_ms: int = 60_000
    timezone: str = "UTC"

    @property
    def window_ms(self) -> int:
        """Return the time in which requests for soon are counted: one in each shortest interval, on average."""
        return max(self.most, 1) * self.shortest_ms


def check_limits(times: Times, there: int, limits: ScheduleLimits, now: int) -> None:
    """Raise ScheduleError if the schedule exceeds the limits. `there`: how many others the agent has in the session."""
    if there >= limits.most:
        raise ScheduleError(
            f"this session has {there} schedules of its agent; the limit is {limits.most} (agents.NAME.max_schedules).",
            hint="Cancel one first, or use the key of one that is there." if limits.most else "Ask the operator.",
        )
    shortest = _shortest(times, now)
    if shortest is not None and shortest < limits.shortest_ms:
        raise ScheduleError(
            f"its occurrences are {shortest / 1000:g} s apart; the shortest interval is {limits.shortest_ms / 1000:g} s"
            " (agents.NAME.min_schedule_s).",
            hint="Choose a longer interval.",
        )


def is_soon(times: Times, limits: ScheduleLimits, now: int) -> bool:
    """Return whether the first occurrence is due before the shortest interval is over."""
    first = times.at if times.at is not None else next_after(times, now) if times.cron is not None else None
    return first is not None and first - now < limits.shortest_ms


def check_soon(asked: int, oldest: int | None, limits: ScheduleLimits, now: int) -> None:
    """Raise ScheduleError if the agent has asked for too much too soon: `asked` times in the window, `oldest` its first."""
    if asked < max(limits.most, 1):
        return
    again = max((oldest or now) + limits.window_ms - now, 1000)
    raise ScheduleError(
        f"this session's agent asked {asked} times in {limits.window_ms / 1000:g} s for something sooner than"
        f" {limits.shortest_ms / 1000:g} s; that is the limit (agents.NAME.max_schedules and min_schedule_s).",
        hint=f"Choose a time at least {limits.shortest_ms / 1000:g} s from now, or ask again in {again / 1000:.0f} s.",
    )


def _shortest(times: Times, now: int) -> int | None:
    if times.every_ms is not None:
        return times.every_ms
    if times.cron is None:
        return None
    found = upcoming(times, next_after(times, now), 0, _LOOKED_AT)
    return min((later - earlier for earlier, later in pairwise(found)), default=None)
