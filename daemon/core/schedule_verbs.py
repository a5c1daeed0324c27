"""The operator's verbs about schedules."""

from __future__ import annotations

from typing import ClassVar, Final

from daemon.core.verb import MAX_ID, RowVerb, check_length
from schema.frozen import frozen

_MAX_TEXT: Final = 65_536
_MAX_CHECK: Final = 2000


@frozen
class PutSchedule(RowVerb):
    """Add or change the schedule `id`: {key, was: added|changed|unchanged, next_at, state}. Makes the session if there is none.

    Instants are epoch milliseconds. `channel`, `place` and `thread` say where the answers go.
    `check` is a shell command in the container that decides whether the agent is woken.
    """

    route: ClassVar[str] = "/v1/schedules/put"
    wait_s: ClassVar[float] = 0.0

    text: str = ""
    at: int | None = None
    every_ms: int | None = None
    cron: str | None = None
    timezone: str = "UTC"
    until: int | None = None
    count: int | None = None
    catch_up: str = "skip"
    channel: str = "local"
    place: str = "cli"
    thread: str | None = None
    check: str | None = None

    def __post_init__(self) -> None:
        """Check the lengths, too; the times are checked against the clock when they are stored."""
        RowVerb.__post_init__(self)
        check_length("text", self.text, _MAX_TEXT)
        if self.check is not None:
            check_length("check", self.check, _MAX_CHECK)
        for name in ("cron", "timezone", "catch_up", "channel", "place", "thread"):
            value = getattr(self, name)
            if value is not None:
                check_length(name, value, MAX_ID)


@frozen
class PauseSchedule(RowVerb):
    """Fire no occurrence of a schedule until it is resumed: {key, was}."""

    route: ClassVar[str] = "/v1/schedules/pause"
    wait_s: ClassVar[float] = 0.0


@frozen
class ResumeSchedule(RowVerb):
    """Go on with a schedule's next occurrence: {key, was, next_at}."""

    route: ClassVar[str] = "/v1/schedules/resume"
    wait_s: ClassVar[float] = 0.0


@frozen
class CancelSchedule(RowVerb):
    """Delete a schedule: {key, was}."""

    route: ClassVar[str] = "/v1/schedules/cancel"
    wait_s: ClassVar[float] = 0.0


@frozen
class RunSchedule(RowVerb):
    """Send a schedule's message now, beside its occurrences: {key, message_id}."""

    route: ClassVar[str] = "/v1/schedules/run"
    wait_s: ClassVar[float] = 0.0
