"""An agent's request to make or change one of its schedules: what a container writes and what the host answers. Pure.

A container asks with a row of messages_out, kind `system`, whose content has the type `schedule` or `change_schedule`. The
host carries it out once, in the transaction that records the row, and puts the outcome into `schedule_requests`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, cast

from schema.frozen import frozen
from schema.json_text import UnsendableError, encode, sendable

PUT: Final = "schedule"
CHANGE: Final = "change_schedule"
TYPES: Final = frozenset({PUT, CHANGE})
MAX_TEXT: Final = 10_000
MAX_WORD: Final = 200
MAX_COUNT: Final = 1_000_000
MAX_CHECK: Final = 2000
_WORDS: Final = ("at", "cron", "timezone", "until", "catch_up")


class Action(StrEnum):
    """What is asked for."""

    PUT = "put"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RUN_NOW = "run_now"


class ScheduleRequestError(ValueError):
    """A request that breaks a rule; the text completes "it ..."."""


@frozen
class ScheduleRequest:
    """A request. The fields after `key` belong to `put`; times are text, which the host reads in the schedule's zone.

    `every_s` is seconds. `notify`: the agent does not wait for the outcome, so a refusal comes as a message that does not wake it.
    """

    action: Action
    key: str
    text: str = ""
    at: str | None = None
    every_s: float | None = None
    cron: str | None = None
    timezone: str | None = None
    until: str | None = None
    count: int | None = None
    catch_up: str | None = None
    check: str | None = None
    notify: bool = False


def is_schedule_request(kind: str, content: str) -> bool:
    """Return whether a row is meant to be a request about schedules, whatever is wrong with it."""
    if kind != "system" or "schedule" not in content:
        return False
    value = _parsed(content)
    return value is not None and value.get("type") in TYPES


def from_content(content: str) -> ScheduleRequest:
    """Return the request of a container's row. Raise ScheduleRequestError; the row is hostile input."""
    value = _parsed(content)
    if value is None:
        raise ScheduleRequestError("is not a request about a schedule")
    return from_fields(value)


def from_fields(value: Mapping[str, object]) -> ScheduleRequest:
    """Return the request of these JSON fields, of which `type` says the kind. Raise ScheduleRequestError."""
    key, notify = _text(value, "key", MAX_WORD), value.get("notify") is True
    if key is None:
        raise ScheduleRequestError("has no `key`")
    if value.get("type") == CHANGE:
        wanted = value.get("action")
        if not isinstance(wanted, str) or wanted not in tuple(Action) or wanted == Action.PUT:
            raise ScheduleRequestError("has an `action` other than pause, resume, cancel and run_now")
        return ScheduleRequest(Action(wanted), key, notify=notify)
    if value.get("type") != PUT:
        raise ScheduleRequestError("is not a request about a schedule")
    text = _text(value, "text", MAX_TEXT)
    if text is None:
        raise ScheduleRequestError("has no `text`")
    words = {name: _text(value, name, MAX_WORD) for name in _WORDS}
    check = _text(value, "check", MAX_CHECK)
    every, count = value.get("every_s"), value.get("count")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int | float) or not 0 < every < 10**9):
        raise ScheduleRequestError("has an `every_s` that is not a number of seconds")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_COUNT):
        raise ScheduleRequestError("has a `count` that is not a whole number from 1")
    every_s = float(every) if every is not None else None
    return ScheduleRequest(Action.PUT, key, text, every_s=every_s, count=count, notify=notify, check=check, **words)


def to_content(value: Mapping[str, object]) -> str:
    """Return the content of the row that asks. Raise ScheduleRequestError for fields that the host would refuse."""
    from_fields(value)
    try:
        return encode(sendable(dict(value)))
    except ValueError as error:
        raise ScheduleRequestError(str(error)) from error


def _text(value: Mapping[str, object], name: str, longest: int) -> str | None:
    found = value.get(name)
    if found is None:
        return None
    if not isinstance(found, str) or not found.strip() or "\0" in found:
        raise ScheduleRequestError(f"has a `{name}` that is not a text")
    if len(found) > longest:
        raise ScheduleRequestError(f"has a `{name}` of more than {longest} characters")
    return found


def _parsed(content: str) -> Mapping[str, object] | None:
    try:
        value = sendable(cast("object", json.loads(content)))
        return cast("dict[str, object]", value) if isinstance(value, dict) else None
    except (ValueError, RecursionError, UnsendableError):
        return None
