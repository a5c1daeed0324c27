"""What an agent may ask for with schedules of its own. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from daemon.core.errors import ScheduleError
from daemon.core.schedules import Times, next_after, upcoming

# A cron expression's shortest interval is looked for among so many of its next occurrences.
_LOOKED_AT: Final = 50


@dataclass(frozen=True, slots=True)
class ScheduleLimits:
    """The limits of one agent's sessions: how many schedules each may have, and how close together occurrences may be.

    `timezone` applies where the agent names none.
    """

    most: int = 20
    shortest_ms: int = 60_000
    timezone: str = "UTC"


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


def _shortest(times: Times, now: int) -> int | None:
    if times.every_ms is not None:
        return times.every_ms
    if times.cron is None:
        return None
    found = upcoming(times, next_after(times, now), 0, _LOOKED_AT)
    return min((later - earlier for earlier, later in pairwise(found)), default=None)
