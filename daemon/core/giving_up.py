"""Decides when something that is tried again and again has been tried for long enough. Pure."""

from __future__ import annotations

from typing import Final

_OWN: Final = 3_600_000  # milliseconds


def tried_long_enough(now: int, since: int, trying_since: int, long_enough: int) -> bool:
    """Return whether to give up what was tried first at `since` (epoch milliseconds), after `long_enough` milliseconds.

    Nobody tried while no daemon ran or the machine slept. So a daemon that could try only since `trying_since` gives
    nothing up before it has tried for an hour itself, or for `long_enough` if that is shorter.
    """
    return now - since > long_enough and now - trying_since > min(long_enough, _OWN)
