"""[schedules.KEY]: messages that are sent to an agent at given times, and the mistakes that the types do not catch."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from daemon.config.table import check_path
from daemon.core.answer_place import check_address
from daemon.core.errors import MessageError, ScheduleError
from daemon.core.schedules import CatchUp, Times, check_form, check_key, local_instant
from schema.errors import InvalidNameError
from schema.ids import check_session
from schema.rows import Address


class ScheduleTable(BaseModel):
    """[schedules.KEY]: a message that is sent to an agent at given times: one of `at`, `every_s` and `cron`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    agent: str
    session: str | None = None
    text: str = Field(min_length=1)
    at: str | None = None
    every_s: float | None = Field(default=None, ge=1, le=366 * 86_400)
    cron: str | None = None
    timezone: str | None = None
    catch_up: CatchUp = CatchUp.SKIP
    until: str | None = None
    count: int | None = Field(default=None, ge=1)
    channel: str = "local"
    place: str | None = None
    thread: str | None = None
    check: str | None = Field(default=None, min_length=1, max_length=2000)

    @field_validator("check")
    @classmethod
    def _command(cls, value: str | None) -> str | None:
        if value is not None:
            check_path(value)
        return value

    def times(self, default_zone: str) -> Times:
        """Return its times. Raise ScheduleError for text that is not a time or a zone."""
        zone_name = self.timezone or default_zone
        return Times(
            at=local_instant(self.at, zone_name) if self.at is not None else None,
            every_ms=round(self.every_s * 1000) if self.every_s is not None else None,
            cron=self.cron,
            timezone=zone_name,
            until=local_instant(self.until, zone_name) if self.until is not None else None,
            count=self.count,
            catch_up=self.catch_up,
        )

    def session_name(self, key: str) -> str:
        """Return the session's name: by default `schedule-KEY`, which no chat uses."""
        return self.session or f"schedule-{key}"


def schedule_faults(
    tables: Mapping[str, ScheduleTable], timezone: str, agents: Container[str], channels: Container[str]
) -> Iterator[str]:
    """Yield a sentence for each mistake in the tables: its key, what is wrong and, where it is not obvious, the fix."""
    for key, one in tables.items():
        try:
            check_key(key)
            check_session(one.session_name(key))
            check_form(one.times(timezone))
        except (ScheduleError, InvalidNameError) as error:
            yield f"schedules.{key}: {str(error).rstrip('.')}; {error.hint.rstrip('.')}"
        if one.agent not in agents:
            yield f"schedules.{key}.agent: no agent {one.agent!r} is configured"
        try:
            check_address(Address(one.channel, one.place or key, one.thread))
        except MessageError as error:
            yield f"schedules.{key}.place: {str(error).rstrip('.')}; {error.hint.rstrip('.')}"
        if one.channel not in channels:
            yield f"schedules.{key}.channel: no channel {one.channel!r} is configured"
