"""Requests about schedules: hostile input is refused in words, never with a crash."""

from __future__ import annotations

import json

import pytest

from schema.schedule_requests import (
    MAX_TEXT,
    Action,
    ScheduleRequest,
    ScheduleRequestError,
    from_content,
    is_schedule_request,
    to_content,
)


def test_a_request_is_read_as_it_was_written() -> None:
    content = to_content({"type": "schedule", "key": "k", "text": "go", "every_s": 90, "count": 3, "catch_up": "all"})
    assert is_schedule_request("system", content)
    assert from_content(content) == ScheduleRequest(Action.PUT, "k", "go", every_s=90.0, count=3, catch_up="all")
    change = to_content({"type": "change_schedule", "key": "k", "action": "pause", "notify": True})
    assert from_content(change) == ScheduleRequest(Action.PAUSE, "k", notify=True)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("chat", '{"type": "schedule"}'),
        ("system", '{"type": "question", "text": "schedule"}'),
        ("system", '["schedule"]'),
        ("system", "schedule"),
        ("system", '{"action": "schedule_task", "prompt": "x"}'),
        ("system", "[" * 100_000 + "schedule"),
    ],
)
def test_other_rows_are_no_requests(kind: str, content: str) -> None:
    assert not is_schedule_request(kind, content)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "has no `key`"),
        ({"key": 3}, "`key`"),
        ({"key": "k" * 201}, "more than 200"),
        ({"key": "k"}, "has no `text`"),
        ({"key": "k", "text": " "}, "`text`"),
        ({"key": "k", "text": "x" * (MAX_TEXT + 1)}, "more than"),
        ({"key": "k", "text": "x", "every_s": True}, "every_s"),
        ({"key": "k", "text": "x", "every_s": 1e300}, "every_s"),
        ({"key": "k", "text": "x", "every_s": -1}, "every_s"),
        ({"key": "k", "text": "x", "count": 0}, "count"),
        ({"key": "k", "text": "x", "count": 10**100}, "count"),
        ({"key": "k", "text": "x", "cron": "0" * 201}, "`cron`"),
        ({"key": "k", "type": "change_schedule", "action": "put"}, "`action`"),
        ({"key": "k", "type": "change_schedule", "action": ["pause"]}, "`action`"),
        ({"key": "k", "type": "other"}, "not a request"),
    ],
)
def test_what_breaks_a_rule_is_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ScheduleRequestError, match=words):
        from_content(json.dumps({"type": "schedule", **fields}))
