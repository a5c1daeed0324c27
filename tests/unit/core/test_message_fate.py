"""The rules of order, "later", expiry and void acks, taken alone; then the same on real session files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from container_runner.store import Store
from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.core.lifecycle import Container, Fail, Observation, Policy, Reset, Wake, decide, reset_orphans
from daemon.core.message_fate import (
    Defer,
    Expire,
    Fate,
    GiveUp,
    Void,
    claimed_by,
    deferred,
    held_from,
    is_noted,
    looks_older,
)
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.incarnation_steps import finish_incarnation
from daemon.engine.sweep_steps import Settings, Swept, sweep_files
from schema.ids import new_id, time_of
from schema.instants import to_text
from schema.rows import Ack, AckStatus, Deferral, MessageIn, MessageStatus
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld

SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
FATE = Fate()
SETTINGS = Settings(Policy())
MEANS = DeliveryContext({"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}, Delivery(), 10_000,
              held=frozenset(), under_way=frozenset(), jitter=0.5)  # fmt: skip


def message(name: str = "m", **fields: Any) -> MessageIn:
    return replace(MessageIn(name, 2, "chat", to_text(NOW), MessageStatus.PENDING, "{}"), **fields)


def final(at: int, by: str | None = "i", status: AckStatus = AckStatus.COMPLETED) -> Ack:
    return Ack("m", status, at, by, changed_text=to_text(at))


def later(number: int = 1, retry_at: int | None = None) -> Ack:
    deferral = Deferral(number, retry_at, "429")
    return Ack("m", AckStatus.LATER, NOW, "i", changed_text=to_text(NOW), deferral=deferral)


# --- order


def test_a_message_in_back_off_holds_those_behind_it_until_it_is_due() -> None:
    waits = message("a", seq=4, holds=True, tries=1, process_after=NOW + SECOND)
    assert held_from([message("b", seq=2), waits, message("c", seq=6)], NOW) == 4
    assert held_from([waits], NOW + SECOND) is None


@pytest.mark.parametrize(
    "fields", [{"holds": False}, {"trigger": False}, {"on_wake": True}, {"not_after": NOW}, {"process_after": None}]
)
def test_who_holds_nobody(fields: dict[str, Any]) -> None:
    waits = message(holds=True, tries=1, process_after=NOW + SECOND)
    assert held_from([replace(waits, **fields)], NOW) is None


def test_what_is_held_wakes_nobody() -> None:
    waits = message("a", seq=2, holds=True, tries=1, process_after=NOW + SECOND)
    seen = Observation(NOW, (waits, message("b", seq=4)))
    assert decide(seen, Policy()) == []
    assert decide(replace(seen, now=NOW + SECOND), Policy()) == [Wake(2)]


# --- one death of several


def test_the_death_of_a_turn_of_several_is_nobodys_last_try() -> None:
    claims = tuple(Ack(name, AckStatus.PROCESSING, NOW, "i") for name in ("a", "b"))
    strict = Policy(max_tries=1)
    pending = (message("a"), message("b", seq=4))
    found = reset_orphans(Observation(NOW, pending, claims=claims), strict)
    assert [type(one) for one in found] == [Reset, Reset]
    alone = Observation(NOW, (message("a"),), claims=claims[:1])
    assert [type(one) for one in reset_orphans(alone, strict)] == [Fail]
    context = Observation(NOW, (message("a"), message("b", trigger=False)), claims=claims)
    assert [type(one) for one in reset_orphans(context, strict)] == [Fail, Fail], "context decides nothing"
    again = (message("a", tries=1), message("b", seq=4, tries=1))  # a runner that goes on making turns of several
    assert [type(one) for one in reset_orphans(Observation(NOW, again, claims=claims), strict)] == [Fail, Fail]


# --- later


@pytest.mark.parametrize(
    ("deferrals", "asked", "wait"),
    [
        (0, None, 5 * SECOND),
        (1, None, 10 * SECOND),
        (10, None, 10 * MINUTE),
        (500, None, 10 * MINUTE),
        (0, 90 * SECOND, 90 * SECOND),
        (0, SECOND, 5 * SECOND),
        (3, SECOND, 40 * SECOND),
        (30, SECOND, MINUTE),
        (0, -HOUR, 5 * SECOND),
        (0, 1000 * 365 * 24 * HOUR, 24 * HOUR),  # tried once more at the end of what it may ask for
    ],
)
def test_how_long_it_waits(deferrals: int, asked: int | None, wait: int) -> None:
    ack = later(deferrals + 1, None if asked is None else NOW + asked)
    verdict = deferred(message(deferrals=deferrals), ack, None, FATE, NOW)
    assert verdict == Defer("m", "i", deferrals + 1, NOW + wait, "429")


def test_an_agent_may_not_say_later_for_ever() -> None:
    assert isinstance(deferred(message(), later(), NOW - 24 * HOUR + 1, FATE, NOW), Defer)
    assert deferred(message(), later(), NOW - 24 * HOUR, FATE, NOW) == GiveUp("m", "i", 1, 24 * HOUR, "429")
    assert isinstance(deferred(message(), later(), NOW + HOUR, FATE, NOW), Defer), "the clock was set back"


def test_what_was_taken_note_of_says_nothing_more() -> None:
    assert not is_noted(message(deferrals=0), later(1))
    assert is_noted(message(deferrals=1), later(1))
    assert not is_noted(message(deferrals=1), later(7)), "the host's file was restored from a backup"


# --- acks without a stamp, and acks that are too old


def test_a_claim_without_a_stamp_is_judged_by_its_time() -> None:
    born = NOW + 700
    assert claimed_by(Ack("m", AckStatus.PROCESSING, NOW, None), "i", born), "whole seconds are a second long"
    assert claimed_by(Ack("m", AckStatus.PROCESSING, born, None), "i", born)
    assert not claimed_by(Ack("m", AckStatus.PROCESSING, born - 1, None), "i", born)
    assert not claimed_by(Ack("m", AckStatus.PROCESSING, NOW - SECOND, None), "i", born)
    assert not claimed_by(Ack("m", AckStatus.PROCESSING, born, "other"), "i", born)


def test_an_id_tells_its_time() -> None:
    assert time_of(new_id(NOW)) == NOW
    assert [time_of(text) for text in ("i1", "", "U" * 26, "0" * 25 + "é")] == [None] * 4


def test_which_ack_looks_older_than_its_message() -> None:
    young = message(timestamp=to_text(NOW + 999))
    assert looks_older(young, final(NOW - 1))
    assert not looks_older(young, final(NOW)), "whole seconds are a second long"
    assert not looks_older(young, final(NOW - 1, by=new_id(NOW + 999))), "its container was not born before the message"
    assert not looks_older(young, final(NOW - 1, status=AckStatus.PROCESSING))
    assert not looks_older(replace(young, void_ack="once"), final(NOW - 1)), (
        "once is enough: no message goes round forever"
    )


# --- on files


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def runner(world: SessionWorld, incarnation: str = "i1") -> Store:
    return Store(world.files.folder.inbox, world.files.folder.outbox, incarnation, lambda: world.now)


def claim(store: Store) -> list[str]:
    batch = store.claim(10, first_poll=False)
    return [] if batch is None else [one.id for one in batch.messages]


def sweep(world: SessionWorld, live: str | None = "i1", fate: Fate = FATE, floor: int = 0) -> Swept:
    container = Container(live, NOW - MINUTE) if live is not None else None
    settings = replace(SETTINGS, fate=fate)
    return sweep_files(world.files, container, world.now, settings, occupied=False, floor=floor)


def look(world: SessionWorld, live: str | None = "i1", fate: Fate = FATE) -> Collected:
    return collect(world.files, replace(MEANS, fate=fate), live, world)


def finish(world: SessionWorld, incarnation: str = "i1", reason: str = "exited") -> list[str]:
    found = finish_incarnation(world.files, incarnation, reason, world.now, SETTINGS)
    return [type(action).__name__ for action in (*found.actions, *found.verdicts)]


def test_nine_innocent_ones_survive_the_poison_that_kills_their_container(world: SessionWorld) -> None:
    """Each try ends the container of whoever has the poison in hand, as the memory limit does."""
    names = [f"m{number}" for number in range(1, 10)]
    for name in names:
        world.accept(name)
    order: list[str] = []
    for life in range(40):
        store = runner(world, f"i{life}")
        store.start()
        while batch := claim(store):
            look(world, f"i{life}")
            if "m5" in batch:
                finish(world, f"i{life}")
                break
            order += batch
            store.finish([], batch, AckStatus.COMPLETED)
            look(world, f"i{life}")
        due = sweep(world, None).next_at
        if due is None or all(world.message(name)["status"] != "pending" for name in names):
            break
        world.now = max(world.now + SECOND, due)
    assert {name: world.message(name)["status"] for name in names} == {
        name: "failed" if name == "m5" else "completed" for name in names
    }
    assert order == [name for name in names if name != "m5"], "in the order of arrival"
    assert (world.message("m5")["tries"], world.message("m4")["tries"], world.message("m9")["tries"]) == (5, 1, 1)
    check_session(world.root)


@pytest.mark.parametrize("by_sweep", [False, True])
def test_later_is_scheduled_costs_no_try_and_is_claimed_again(world: SessionWorld, by_sweep: bool) -> None:
    world.accept("m")
    world.accept("n")
    store = runner(world)
    assert store.claim(1, first_poll=False) is not None
    look(world)
    store.defer(["m"], retry_at=world.now + 30 * SECOND, reason="429")
    verdicts = sweep(world).verdicts if by_sweep else look(world).verdicts
    assert verdicts == (Defer("m", "i1", 1, NOW + 30 * SECOND, "429"),)
    row = world.message("m")
    assert (row["status"], row["tries"], row["deferrals"], row["process_after"]) == (
        "pending", 0, 1, to_text(NOW + 30 * SECOND))  # fmt: skip
    assert world.events("m") == ["accepted", "claimed", "deferred"]
    assert (look(world).verdicts, sweep(world).verdicts) == ((), ())
    assert claim(store) == [], "n came after it"
    assert sweep(world).next_at == NOW + 30 * SECOND
    world.now += 30 * SECOND
    assert claim(store) == ["m"], "alone"
    assert look(world).claimed[0].message_id == "m"
    store.finish([], ["m"], AckStatus.COMPLETED)
    look(world)
    assert world.message("m")["status"] == "completed"
    assert [row["outcome"] for row in world.read("SELECT outcome FROM attempts WHERE message_id = 'm'")] == [
        "completed"
    ]
    assert claim(store) == ["n"]
    check_session(world.root)


def test_with_the_order_ready_others_pass(world: SessionWorld) -> None:
    ready = Fate(strict=False)
    world.accept("m")
    world.accept("n")
    store = runner(world)
    store.claim(1, first_poll=False)
    store.defer(["m"], retry_at=None, reason=None)
    look(world, fate=ready)
    assert claim(store) == ["n"]


def test_a_crash_while_the_host_has_not_seen_it_leaves_a_later(world: SessionWorld) -> None:
    world.accept("m")
    store = runner(world)
    claim(store)
    look(world)
    store.defer(["m"], retry_at=None, reason=None)
    assert finish(world) == ["Defer"]
    assert (world.message("m")["tries"], world.message("m")["deferrals"]) == (0, 1)
    assert finish(world) == [], "and once"
    check_session(world.root)


def test_a_crash_in_the_next_try_of_the_same_container_is_charged(world: SessionWorld) -> None:
    world.accept("m")
    store = runner(world)
    for number in range(3):
        assert claim(store) == ["m"]
        if number == 2:
            break
        store.defer(["m"], retry_at=None, reason=None)
        look(world)
        world.now += 10 * SECOND
    assert finish(world) == ["Reset"]
    assert (world.message("m")["tries"], world.message("m")["deferrals"]) == (1, 2)
    assert finish(world) == [], "one incarnation costs one try"
    check_session(world.root)


def test_after_too_long_it_is_a_dead_letter_and_its_sender_is_told(world: SessionWorld) -> None:
    world.accept("m")
    store, short = runner(world), Fate(later_for=MINUTE)
    while world.message("m")["status"] == "pending":
        assert claim(store) == ["m"]
        store.defer(["m"], retry_at=None, reason="429 of the model")
        look(world, fate=short)
        world.now = max(world.now, sweep(world, fate=short).next_at or 0)
    assert world.now <= NOW + MINUTE + 5 * SECOND
    assert world.message("m")["status"] == "failed"
    (failed,) = world.read("SELECT detail FROM message_history WHERE event = 'failed'")
    assert json.loads(failed["detail"])["code"] == "DEFERRED_TOO_LONG"
    assert json.loads(failed["detail"])["agent_said"] == "429 of the model"
    assert json.loads(failed["detail"])["reason"].startswith(
        f"gave up: for {(world.now - NOW) // SECOND} s the agent asked"
    )
    (notice,) = world.read("SELECT * FROM host_messages")
    assert json.loads(notice["content"])["error"]["code"] == "DEFERRED_TOO_LONG"
    assert "429" not in notice["content"], "what the agent says to the operator is not for the sender"
    assert claim(store) == []
    check_session(world.root)


def test_a_later_that_nobody_numbered_counts_once(world: SessionWorld) -> None:
    world.accept("m")
    world.ack("later", "m", by=None)
    assert look(world).verdicts == (Defer("m", None, 1, NOW + 5 * SECOND, None),)
    assert look(world).verdicts == ()


@pytest.mark.parametrize("value", [-1, 0, 2**31 + 1, "x", None, 1.5])
def test_a_lie_about_its_number_moves_nothing(world: SessionWorld, value: object) -> None:
    world.accept("m")
    world.change("UPDATE messages_in SET deferrals = 1")
    world.ack("later", "m", by="i1")
    with world.runner() as db, db.transaction():
        db.execute("DROP TABLE deferrals")
        db.execute("CREATE TABLE deferrals (message_id, deferral, retry_at, reason)")
        db.execute("INSERT INTO deferrals VALUES ('m', ?, 7, x'00')", (value,))
    assert look(world).verdicts == ()


def test_an_agent_cannot_make_the_host_turn(world: SessionWorld) -> None:
    world.accept("m")
    for number in range(1, 4):
        world.ack("later", "m", by="i1")
        with world.runner() as db, db.transaction():
            db.execute("INSERT OR REPLACE INTO deferrals VALUES ('m', ?, NULL, NULL)", (number,))
        assert len(look(world).verdicts) == (number == 1), "what is not due cannot have been worked on"


# --- expiry


def test_what_nobody_began_in_time_is_closed_and_told(world: SessionWorld) -> None:
    world.accept("m")
    world.change("UPDATE messages_in SET not_after = ?", (to_text(NOW + 10 * SECOND),))
    assert sweep(world, None).expires_at == NOW + 12 * SECOND
    world.now += 10 * SECOND
    assert sweep(world, None).actions == (), "nothing is woken for it"
    world.now += 2 * SECOND
    assert sweep(world, None).verdicts == (Expire("m", NOW + 10 * SECOND),)
    assert (world.message("m")["status"], world.events("m")) == ("cancelled", ["accepted", "cancelled"])
    (notice,) = world.read("SELECT * FROM host_messages")
    assert json.loads(notice["content"])["error"]["code"] == "EXPIRED"
    assert claim(runner(world)) == []
    check_session(world.root)


def test_what_was_begun_in_time_is_finished(world: SessionWorld) -> None:
    world.accept("m")
    world.change("UPDATE messages_in SET not_after = ?", (to_text(NOW + SECOND),))
    store = runner(world)
    assert claim(store) == ["m"]
    look(world)
    world.now += MINUTE
    assert sweep(world).verdicts == ()
    store.finish([], ["m"], AckStatus.COMPLETED)
    assert sweep(world).verdicts == ()
    assert world.message("m")["status"] == "completed"


def test_an_orphan_that_expires_in_its_back_off_is_not_begun_again(world: SessionWorld) -> None:
    world.accept("m")
    world.accept("n")
    world.change("UPDATE messages_in SET not_after = ? WHERE id = 'm'", (to_text(NOW + SECOND),))
    store = runner(world)
    store.claim(1, first_poll=False)
    look(world)
    assert finish(world) == ["Reset"]
    world.now += 3 * SECOND
    assert sweep(world, None).verdicts == (Expire("m", NOW + SECOND),)
    assert sweep(world, None).actions == (Wake(1),), "and n is free"


def test_a_series_goes_on_after_an_occurrence_that_expired(world: SessionWorld) -> None:
    world.accept("m", recurrence="* * * * *", process_after=NOW)
    world.change("UPDATE messages_in SET not_after = ?", (to_text(NOW + 10 * SECOND),))
    world.now += 12 * SECOND
    (following,) = sweep(world, None).rearmed
    assert (following.process_after, following.not_after) == (NOW + MINUTE, NOW + MINUTE + 10 * SECOND)
    assert world.message("m")["status"] == "cancelled"
    check_session(world.root)


# --- void acks


def test_an_ack_written_before_its_message_does_not_settle_it(world: SessionWorld) -> None:
    world.ack("completed", "m", by="i1", at=NOW - 5 * SECOND)
    world.accept("m")
    assert look(world).settled == ()
    swept = sweep(world)
    assert [type(one) for one in swept.verdicts] == [Void]
    assert (world.message("m")["status"], world.events("m")) == ("pending", ["accepted", "ack_void"])
    assert sweep(world).verdicts == ()
    store = runner(world)
    assert claim(store) == ["m"], "and is worked on"
    store.finish([], ["m"], AckStatus.COMPLETED)
    look(world)
    assert world.message("m")["status"] == "completed"
    check_session(world.root)


@pytest.mark.parametrize("evidence", ["claimed", "answered", "jump"])
def test_an_ack_that_only_looks_older_settles_its_message(world: SessionWorld, evidence: str) -> None:
    """The clock was set back between acceptance and answer: what was done is not done again."""
    world.accept("m")
    if evidence == "claimed":
        world.claim("m", by="i1")
        look(world)
    if evidence == "answered":
        world.say("o", in_reply_to="m")
    world.ack("completed", "m", by="i1", at=NOW - HOUR)
    assert sweep(world, floor=NOW - HOUR if evidence == "jump" else 0).verdicts == ()
    assert world.message("m")["status"] == "completed"


def test_a_claim_of_a_dead_container_costs_the_next_one_nothing(world: SessionWorld) -> None:
    """A runner that stamps no incarnation was killed; every later container ends before it claims anything."""
    first = new_id(NOW)
    world.accept("m")
    world.now += 900
    world.claim("m", by=None, at=NOW)  # whole seconds: within the container's first one
    look(world, first)
    assert finish(world, first) == ["Reset"]
    for _ in range(5):
        world.now += HOUR
        following = new_id(world.now)
        look(world, following)
        assert finish(world, following) == []
    assert (world.message("m")["tries"], len(world.read("SELECT * FROM attempts"))) == (1, 1)
