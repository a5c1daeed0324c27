"""An agent's requests about its own schedules: carried out once, within its limits, and never on another's schedule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.config.models import Delivery
from daemon.core.schedule_limits import ScheduleLimits
from daemon.core.schedules import Times
from daemon.engine import schedule_requests, schedule_steps
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.store import deliveries, schedules
from daemon.store.dead_letters import Operator
from daemon.store.schedule_requests import KEPT
from daemon.store.schedules import Scheduled, ScheduleRow, ScheduleState
from schema.rows import Address
from tests.support.session_world import NOW, SessionWorld

HOUR = 3_600_000
HOME = Address("local", "me")
MEANS = DeliveryContext(
    {}, Delivery(), 20_000, held=frozenset(), under_way=frozenset(), jitter=0.5, schedules=ScheduleLimits(most=2)
)
ANNA = Operator("anna", "a test")


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    world = SessionWorld(tmp_path / "s")
    world.accept("m1")
    return world


def poll(world: SessionWorld, means: DeliveryContext = MEANS) -> Collected:
    return collect(world.files, replace(means, unconfirmed=set()), None, world)


def ask(world: SessionWorld, row_id: str, **fields: object) -> Any:
    """Write a request as a container does, have the host poll, and return the outcome."""
    content = json.dumps({"type": "schedule", "key": "k", "text": "go", **fields})
    world.say(row_id, in_reply_to="m1", kind="system", content=content)
    poll(world)
    return outcome(world, row_id)


def outcome(world: SessionWorld, row_id: str) -> Any:
    found = world.read("SELECT outcome FROM schedule_requests WHERE id = ?", (row_id,))
    return json.loads(found[0]["outcome"]) if found else None


def row(world: SessionWorld, key: str = "k") -> ScheduleRow | None:
    with world.files.inbound() as db:
        return schedules.find(db, key)


def stored(world: SessionWorld) -> ScheduleRow:
    found = row(world)
    assert found is not None
    return found


def operators(world: SessionWorld, key: str) -> None:
    with world.files.inbound() as db, db.transaction():
        schedule_steps.put(db, key, Scheduled(Times(every_ms=HOUR), '{"text":"x"}', HOME), ANNA, world.now)


def test_a_request_makes_a_schedule_whose_answers_go_where_the_message_came_from(world: SessionWorld) -> None:
    made = ask(world, "s1", every_s=3600, count=3)
    assert (made["ok"], made["was"], len(made["upcoming"])) == (True, "added", 3)
    found = stored(world)
    assert (found.origin, found.what.address, found.next_at) == ("agent", HOME, NOW + HOUR)
    assert world.read("SELECT status FROM delivered WHERE message_out_id = 's1'") == [{"status": "carried_out"}]
    assert world.read("SELECT * FROM delivery_attempts") == []
    assert poll(world).more is False
    changed = ask(world, "s2", cron="0 9 * * *", timezone="Europe/Vienna")
    assert (changed["was"], stored(world).what.times.cron) == ("changed", "0 9 * * *")


def test_the_session_is_swept_for_a_new_schedule(world: SessionWorld) -> None:
    world.say("s1", in_reply_to="m1", kind="system", content='{"type":"schedule","key":"k","text":"x","at":"in 2h"}')
    assert poll(world).later is True


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"every_s": 5}, "SCHEDULE_INVALID"),
        ({"cron": "61 9 * * *"}, "SCHEDULE_INVALID"),
        ({"at": "soon"}, "SCHEDULE_INVALID"),
        ({"at": "2020-01-01"}, "SCHEDULE_INVALID"),
        ({"at": "9:00", "timezone": "../../etc/passwd"}, "SCHEDULE_INVALID"),
        ({"cron": "0 9 * * *", "timezone": "Vienna"}, "SCHEDULE_INVALID"),
        ({"cron": "0 9 * * *", "timezone": "../../etc/passwd"}, "SCHEDULE_INVALID"),
        ({"cron": "9" * 190 + " 9 * * *"}, "SCHEDULE_INVALID"),
        ({"every_s": 3600, "until": "in 999999999 d"}, "SCHEDULE_INVALID"),
        ({"at": "in 999999999 d"}, "SCHEDULE_INVALID"),
        ({"at": "9:00", "every_s": 3600}, "SCHEDULE_INVALID"),
        ({"every_s": 3600, "catch_up": "never"}, "SCHEDULE_INVALID"),
        ({"every_s": 3600, "key": "../k"}, "SCHEDULE_INVALID"),
        ({"every_s": 3600, "key": "theirs"}, "SCHEDULE_INVALID"),
        ({"type": "change_schedule", "key": "theirs", "action": "cancel"}, "SCHEDULE_INVALID"),
        ({"type": "change_schedule", "key": "gone", "action": "pause"}, "UNKNOWN_SCHEDULE"),
        ({"every_s": "often"}, "BAD_SCHEDULE"),
    ],
)
def test_what_may_not_be_is_an_outcome_and_changes_nothing(
    world: SessionWorld, fields: dict[str, object], code: str
) -> None:
    operators(world, "theirs")
    with world.files.inbound() as db:
        before = schedules.all_(db)
    refused = ask(world, "s1", **fields)
    assert (refused["ok"], refused["error"]["code"]) == (False, code)
    assert refused["error"]["fix"]
    with world.files.inbound() as db:
        assert schedules.all_(db) == before
    assert world.read("SELECT * FROM delivery_attempts") == [], "it is no dead letter"
    assert world.read("SELECT id FROM messages_in") == [{"id": "m1"}]


def test_a_program_that_does_not_wait_is_told_by_a_message_that_does_not_wake_it(world: SessionWorld) -> None:
    ask(world, "s1", every_s=1, notify=True)
    told = world.read("SELECT trigger, content FROM messages_in WHERE id LIKE 'refused:%'")
    assert [(one["trigger"], json.loads(one["content"])["type"]) for one in told] == [(0, "schedule_refused")]


def test_the_number_is_limited_and_a_change_costs_nothing(world: SessionWorld) -> None:
    for number, key in enumerate(("a", "b")):
        assert ask(world, f"s{number}", key=key, every_s=3600)["ok"]
    assert "the limit is 2" in ask(world, "s3", key="c", every_s=3600)["error"]["message"]
    assert ask(world, "s4", key="a", every_s=7200)["was"] == "changed"
    assert ask(world, "s5", type="change_schedule", key="b", action="cancel")["ok"]
    assert ask(world, "s6", key="c", every_s=3600)["ok"]
    poll(world, replace(MEANS, schedules=ScheduleLimits(most=0)))
    operators(world, "theirs")
    assert ask(world, "s7", key="a", every_s=3600)["ok"], "an operator's does not count"


def test_a_cron_expression_is_held_to_the_shortest_interval(world: SessionWorld) -> None:
    often = replace(MEANS, schedules=ScheduleLimits(shortest_ms=HOUR))
    world.say(
        "s1", in_reply_to="m1", kind="system", content='{"type":"schedule","key":"k","text":"x","cron":"0,5 9 * * *"}'
    )
    poll(world, often)
    assert "300 s apart" in outcome(world, "s1")["error"]["message"]


def test_the_rate_of_what_is_due_soon_is_limited(world: SessionWorld) -> None:
    world.now += 1000  # between two minutes, for the cron expression
    soon: list[dict[str, object]] = [
        {"at": "in 5s"},
        {"type": "change_schedule", "key": "long", "action": "run_now"},
        {"cron": "* * * * *"},
    ]
    assert ask(world, "s0", key="long", every_s=3600)["ok"]
    for number, fields in enumerate(soon):
        assert ask(world, f"a{number}", **fields)["ok"] is (number < 2), "two in two minutes: the limit of MEANS"
    refused = ask(world, "a3", at="in 5s")["error"]
    assert "asked 2 times in 120 s for something sooner than 60 s" in refused["message"]
    assert refused["fix"] == "Choose a time at least 60 s from now, or ask again in 120 s."
    assert ask(world, "a4", at="in 2m")["ok"], "what is due later is bounded by its number"
    world.now += 121_000
    assert ask(world, "a5", at="in 5s")["ok"]


def test_other_requests_do_not_make_the_host_forget_what_it_counts(world: SessionWorld) -> None:
    means = replace(MEANS, schedules=ScheduleLimits(most=1))
    content = '{"type":"schedule","key":"k","text":"x","at":"in 1s"}'
    world.say("s1", in_reply_to="m1", kind="system", content=content)
    poll(world, means)
    assert outcome(world, "s1")["ok"]
    for number in range(KEPT + 1):
        world.say(f"bad{number}", in_reply_to="m1", kind="system", content='{"type":"schedule","key":"b","text":"x"}')
    world.say("s2", in_reply_to="m1", kind="system", content=content)
    while poll(world, means).more:
        pass
    assert not outcome(world, "s2")["ok"]
    assert world.read("SELECT count(*) AS n FROM schedule_requests") == [{"n": KEPT + 1}]


def test_an_operator_s_pause_stands(world: SessionWorld) -> None:
    ask(world, "s1", every_s=3600)
    assert ask(world, "s2", type="change_schedule", action="pause")["was"] == "active"
    assert ask(world, "s3", type="change_schedule", action="resume")["was"] == "paused"
    with world.files.inbound() as db, db.transaction():
        schedule_steps.pause(db, "k", ANNA, world.now)
    for number, fields in enumerate(({"type": "change_schedule", "action": "resume"}, {"every_s": 7200})):
        assert "not by you" in ask(world, f"t{number}", **fields)["error"]["message"]
    assert stored(world).state is ScheduleState.PAUSED


def test_it_can_be_run_now_but_not_on_top_of_itself(world: SessionWorld) -> None:
    ask(world, "s1", every_s=3600)
    sent = ask(world, "s2", type="change_schedule", action="run_now")["message_id"]
    assert world.read("SELECT kind FROM messages_in WHERE id = ?", (sent,)) == [{"kind": "task"}]
    world.now += 1
    assert "not finished" in ask(world, "s3", type="change_schedule", action="run_now")["error"]["message"]


def test_a_place_that_the_session_may_not_write_to_is_a_dead_letter(world: SessionWorld) -> None:
    content = '{"type":"schedule","key":"k","text":"x","every_s":3600}'
    world.say("s1", in_reply_to="m1", kind="system", content=content, to=Address("local", "boss"))
    assert [one.reason for one in poll(world).dead_lettered] == ["UNAUTHORISED_DESTINATION"]
    assert row(world) is None


@pytest.mark.parametrize("step", [(schedules, "put"), (schedule_requests, "note_outcome"), (deliveries, "carried_out")])
def test_a_death_at_any_step_leaves_the_request_to_be_carried_out_once(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    content = '{"type":"schedule","key":"k","text":"x","at":"in 2h"}'
    world.say("s1", in_reply_to="m1", kind="system", content=content)
    real = getattr(*step)
    for after in (False, True):

        def dies(*given: object, after: bool = after, **named: object) -> object:
            if after:
                real(*given, **named)
            raise SystemError("killed")

        with monkeypatch.context() as patched:
            patched.setattr(*step, dies)
            with pytest.raises(SystemError):
                poll(world)
        assert (row(world), outcome(world, "s1")) == (None, None)
    poll(world)
    made = row(world)
    world.now += HOUR
    poll(world)
    assert row(world) == made
    assert outcome(world, "s1")["was"] == "added"
