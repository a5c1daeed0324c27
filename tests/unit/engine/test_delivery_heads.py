"""An answer that keeps failing, one whose fate is unknown, and one that is due in a thousand years: on real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules, HeadRule, Reason
from daemon.core.errors import NotDeadLetterError
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.engine.sweep_steps import next_work
from daemon.store import deliveries
from daemon.store.dead_letters import dead_letter
from schema.errors import HostileFileError
from schema.rows import Address
from tests.support.invariants import check_session
from tests.support.session_world import HOME, NOW, SessionWorld

AWAY = Address("plain", "away")
RULE = HeadRule(attempts=3, seconds=300.0)
SECOND = 1000
DAY = 86_400 * SECOND


def means(rule: HeadRule = RULE, **config: Any) -> DeliveryContext:
    channels = {
        "local": ChannelRules(deduplicates=True, hold_in_doubt=False, head=rule),
        "plain": ChannelRules(deduplicates=False, hold_in_doubt=False, head=rule),
    }
    return DeliveryContext(channels, Delivery(**config), 10_000, held=frozenset(), under_way=frozenset(), jitter=0.5)


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "s")
    made.accept("m1")
    made.allow("plain", "away")
    return made


class Receiver:
    """Takes what it is sent but for `poison`, and nothing at all while it is `down`."""

    def __init__(self, world: SessionWorld, poison: tuple[str, ...] = (), rule: HeadRule = RULE) -> None:
        self.world = world
        self.poison = frozenset(poison)
        self.means = means(rule)
        self.down = False
        self.paced = False  # a limit of our own lets nothing go
        self.taken: list[str] = []
        self.tried: list[str] = []

    def round(self) -> bool:
        """One look and its sends, as delivery does it: in order, and none behind a failure. Whether there were any."""
        found = collect(self.world.files, self.means, None, self.world)
        stopped: set[str] = set()
        outcomes: list[Outcome] = []
        for send in found.sends:
            identity, key = send.candidate.row.id, send.address.key
            if key in stopped:
                outcomes.append(Outcome(send, sent=False))
                continue
            self.tried.append(identity)
            if self.paced:
                stopped.add(key)
                error = "more than its limit allows"
                outcomes.append(
                    Outcome(send, sent=True, error_code="DELIVERY_TRANSIENT", error=error, retry_after_s=30, paced=True)
                )
            elif self.down or identity in self.poison:
                stopped.add(key)
                outcomes.append(Outcome(send, sent=True, error_code="DELIVERY_TRANSIENT", error="answered 500"))
            else:
                self.taken.append(identity)
                outcomes.append(Outcome(send, sent=True))
        record_outcomes(self.world.files, outcomes, self.means, self.world.now)
        return bool(found.sends)

    def run(self, seconds: int) -> None:
        """Let time pass: from each send that is due to the next, as the daemon's sweep does, and at least a second."""
        end = self.world.now + seconds * SECOND
        while self.world.now < end:
            while self.round():
                pass
            with self.world.files.inbound() as db:
                due = deliveries.next_attempt_at(db)
            later = self.world.now + SECOND
            self.world.now = end if due is None else min(max(due, later), end)


def rows(world: SessionWorld) -> dict[str, dict[str, Any]]:
    return {row["message_out_id"]: row for row in world.read("SELECT * FROM delivery_attempts")}


def test_what_waits_for_a_limit_of_our_own_keeps_its_place_and_is_never_given_up(world: SessionWorld) -> None:
    """Messages between agents that wrote more than agent_messages.per_minute passed each other."""
    for number in range(1, 4):
        world.say(f"o{number}")
    receiver = Receiver(world)
    receiver.means = means(HeadRule(attempts=3, seconds=60.0), retry_for_s=3600.0)
    receiver.paced = True
    receiver.run(2 * 3600)
    assert set(receiver.tried) == {"o1"}
    assert rows(world)["o1"]["attempts"] == 0, "that is no attempt"
    assert world.events("o1") == ["delivery_waits"]
    receiver.paced = False
    receiver.run(60)
    assert receiver.taken == ["o1", "o2", "o3"]
    check_session(world.root, at_rest=True)


def test_the_time_for_retries_begins_after_the_wait_for_a_limit_of_our_own(world: SessionWorld) -> None:
    world.say("o1")
    receiver = Receiver(world)
    receiver.means = means(retry_for_s=3600.0)
    receiver.paced = True
    receiver.run(2 * 3600)
    receiver.paced, receiver.down = False, True
    receiver.run(20)
    assert rows(world)["o1"]["state"] == "retrying"


@pytest.mark.parametrize("place", [HOME, AWAY])
def test_an_answer_that_always_fails_is_set_aside_and_the_later_ones_arrive_in_order(
    world: SessionWorld, place: Address
) -> None:
    for number in range(1, 6):
        world.say(f"o{number}", to=place)
    receiver = Receiver(world, poison=("o1",))
    receiver.run(60)
    assert receiver.taken == ["o2", "o3", "o4", "o5"]
    assert receiver.tried[:4] == ["o1", "o1", "o1", "o2"]
    assert {name: row["state"] for name, row in rows(world).items()} == {"o1": "retrying"}
    assert world.events("o1").count("delivery_passed") == 1
    world.say("o6", to=place)
    receiver.run(1)
    assert receiver.taken[-1] == "o6"
    check_session(world.root)


def test_several_answers_that_always_fail_are_set_aside_too(world: SessionWorld) -> None:
    for number in range(1, 9):
        world.say(f"o{number}")
    receiver = Receiver(world, poison=("o1", "o2", "o5"))
    receiver.run(900)
    assert sorted(receiver.taken) == ["o3", "o4", "o6", "o7", "o8"]


def test_a_receiver_that_takes_nothing_gets_everything_in_order_once_it_is_back(world: SessionWorld) -> None:
    for number in range(1, 7):
        world.say(f"o{number}")
    receiver = Receiver(world)
    receiver.down = True
    receiver.run(1200)
    assert receiver.tried.count("o1") >= 5
    assert receiver.tried.count("o1") >= receiver.tried.count("o2") > 0
    receiver.down = False
    world.say("o7")
    receiver.run(1800)
    assert receiver.taken == [f"o{number}" for number in range(1, 8)]


def test_with_strict_order_nothing_passes(world: SessionWorld) -> None:
    world.say("o1")
    world.say("o2")
    receiver = Receiver(world, poison=("o1",), rule=HeadRule(attempts=3, seconds=None))
    receiver.run(900)
    assert receiver.taken == []
    assert set(receiver.tried) == {"o1"}


def test_the_age_of_the_first_failure_counts_as_the_number_of_attempts_does(world: SessionWorld) -> None:
    world.say("o1")
    world.say("o2")
    receiver = Receiver(world, poison=("o1",), rule=HeadRule(attempts=100, seconds=60))
    receiver.run(30)
    assert receiver.taken == []
    receiver.run(60)
    assert receiver.taken == ["o2"]


def test_what_waits_behind_an_answer_that_was_set_aside_is_work_for_now(world: SessionWorld) -> None:
    world.say("o1")
    world.say("o2")
    receiver = Receiver(world, poison=("o1",))
    receiver.run(10)
    world.change("UPDATE delivery_attempts SET passed = 2 WHERE message_out_id = 'o1'")
    with world.files.inbound() as db:
        assert deliveries.next_attempt_at(db) == 0


# In doubt


def test_each_send_again_in_doubt_is_declared_and_counted(world: SessionWorld) -> None:
    world.say("o1", to=AWAY)
    used = means()
    looks = [collect(world.files, used, None, world).sends for _ in range(3)]
    assert [send.in_doubt for (send,) in looks] == [False, True, True]
    (send,) = looks[-1]
    assert world.events("o1") == ["delivery_in_doubt", "delivery_in_doubt"]
    assert rows(world)["o1"]["doubts"] == 2
    history = world.read("SELECT detail FROM message_history WHERE message_id = 'o1' ORDER BY id")
    assert [json.loads(row["detail"])["attempt"] for row in history] == [2, 3]
    assert "may have it twice" in json.loads(history[0]["detail"])["sent_again"]
    record_outcomes(world.files, [Outcome(send, sent=True)], used, world.now)
    assert rows(world) == {}


def test_a_time_out_after_the_request_was_sent_is_in_doubt_too(world: SessionWorld) -> None:
    world.say("o1")
    (send,) = collect(world.files, means(), None, world).sends
    outcome = Outcome(send, sent=True, error_code="DELIVERY_TRANSIENT", error="no answer", in_doubt=True)
    record_outcomes(world.files, [outcome], means(), world.now)
    assert rows(world)["o1"]["doubts"] == 1
    (row,) = world.read("SELECT detail FROM message_history WHERE message_id = 'o1'")
    assert json.loads(row["detail"])["in_doubt"] is True


# Times and numbers


def test_a_row_that_is_due_in_a_thousand_years_is_refused(world: SessionWorld) -> None:
    world.say("near", deliver_after=NOW + 365 * DAY)
    world.say("far", deliver_after=NOW + 367 * DAY)
    found = collect(world.files, means(), None, world)
    assert [(dead.candidate.row.id, dead.reason) for dead in found.dead_lettered] == [("far", Reason.TOO_FAR_AHEAD)]
    assert rows(world)["near"]["state"] == "queued"


def test_a_row_may_wait_for_longer_than_it_may_be_retried(world: SessionWorld) -> None:
    """Its time for retries begins when it is due."""
    world.say("o1", deliver_after=NOW + 3 * DAY)
    collect(world.files, means(), None, world)
    world.now = NOW + 3 * DAY
    (send,) = collect(world.files, means(), None, world).sends
    outcome = Outcome(send, sent=True, error_code="DELIVERY_TRANSIENT", error="no answer")
    assert record_outcomes(world.files, [outcome], means(), world.now) == []


def test_more_scheduled_rows_than_the_limit_are_refused(world: SessionWorld) -> None:
    for number in range(5):
        world.say(f"o{number}", deliver_after=NOW + DAY)
    few = means(max_scheduled_answers=3)
    found = collect(world.files, few, None, world)
    assert [(dead.candidate.row.id, dead.reason) for dead in found.dead_lettered] == [
        ("o3", Reason.TOO_MANY_SCHEDULED), ("o4", Reason.TOO_MANY_SCHEDULED),
    ]  # fmt: skip
    world.say("o5", deliver_after=NOW + DAY)
    assert [dead.candidate.row.id for dead in collect(world.files, few, None, world).dead_lettered] == ["o5"]


def test_more_open_rows_than_the_limit_wait_in_the_containers_file_and_none_is_lost(world: SessionWorld) -> None:
    for number in range(20):
        world.say(f"o{number}", to=AWAY)
    few = means(max_open_answers=5)
    taken: list[str] = []
    for _ in range(100):
        found: Collected = collect(world.files, few, None, world)
        assert len(rows(world)) <= 5
        taken += [send.candidate.row.id for send in found.sends]
        record_outcomes(world.files, [Outcome(send, sent=True) for send in found.sends], few, NOW)
    assert taken == [f"o{number}" for number in range(20)]


def test_what_a_channel_refuses_never_puts_the_session_in_quarantine_and_is_bounded(world: SessionWorld) -> None:
    few = means(max_dead_letters=3)
    for number in range(8):
        world.say(f"o{number}", to=AWAY)
        (send,) = collect(world.files, few, None, world).sends
        refused = Outcome(send, sent=True, error_code="DELIVERY_PERMANENT", error="answered 404", permanent=True)
        record_outcomes(world.files, [refused], few, NOW)
    world.say("bad", to=Address("plain", "elsewhere"))
    assert [dead.reason for dead in collect(world.files, few, None, world).dead_lettered] == [Reason.UNAUTHORISED]
    closed = world.read("SELECT id, outcome, by, reason FROM dead_letters_closed ORDER BY id")
    assert [row["id"] for row in closed] == [f"o{number}" for number in range(5)]
    assert {(row["outcome"], row["by"], row["reason"]) for row in closed} == {
        ("expired", "clawbus", "delivery.max_dead_letters")
    }
    with world.files.inbound() as db, pytest.raises(NotDeadLetterError, match="o0 was expired by clawbus"):
        dead_letter(db, "o0")
    for number in range(4):
        world.say(f"bad{number}", to=Address("plain", "elsewhere"))
        if number < 3:
            collect(world.files, few, None, world)
    with pytest.raises(HostileFileError, match="max_dead_letters"):
        collect(world.files, few, None, world)


def test_an_answer_that_nobody_wants_is_over_without_a_dead_letter(world: SessionWorld) -> None:
    world.say("o1")
    (send,) = collect(world.files, means(), None, world).sends
    record_outcomes(world.files, [Outcome(send, sent=True, not_wanted=True)], means(), NOW)
    assert rows(world) == {}
    assert world.read("SELECT status FROM delivered") == [{"status": "not_wanted"}]
    assert world.events("o1") == ["not_wanted"]
    with world.files.inbound() as db:
        assert next_work(db, NOW) in (None, 0)
    assert collect(world.files, replace(means()), None, world).sends == ()
    check_session(world.root)
