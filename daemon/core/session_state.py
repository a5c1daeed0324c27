"""The states of a session, as every report and list shows them. Pure."""

from __future__ import annotations

from typing import Final, Literal, get_args

SessionState = Literal["idle", "scheduled", "waiting", "backing_off", "starting", "working", "resting", "quarantined"]
SESSION_STATES: Final[tuple[SessionState, ...]] = get_args(SessionState)
