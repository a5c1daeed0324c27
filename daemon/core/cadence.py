"""Whether an agent's completed turns keep up with its schedules. Pure; times are epoch milliseconds."""

from __future__ import annotations

from daemon.core.schedules import Times, next_after


def due_by(times: Times, last_completed: int) -> int | None:
    """Return when the occurrence after `last_completed` has to be completed: before the one after it comes.

    None if fewer than two occurrences are left, because then there is no cadence to compare with.
    """
    following = next_after(times, last_completed)
    return next_after(times, following) if following is not None else None


def is_behind(times: Times, last_completed: int, now: int) -> bool:
    """Return whether a whole cadence has passed without the completed turn that it should have brought."""
    limit = due_by(times, last_completed)
    return limit is not None and now >= limit
