"""What retention closes: old dead letters by a rule, and scheduled answers whose row the container has taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.store.dead_letters import Operator, dead_letter, drop
from daemon.store.expiry import drop_gone, expire_dead_letters
from daemon.store.transitions import change_status
from schema.rows import MessageStatus
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld

DAY = 86_400_000
MEANS = DeliveryContext(
    {"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}, Delivery(), 10_000, frozenset(), frozenset(), 0.5
)


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "s")
    made.accept("m1")
    return made


def refuse(world: SessionWorld, row_id: str) -> None:
    world.say(row_id)
    (send,) = collect(world.files, MEANS, None, world).sends
    refused = Outcome(send, sent=True, error_code="DELIVERY_PERMANENT", error="answered 404", permanent=True)
    record_outcomes(world.files, [refused], MEANS, world.now)


def test_old_dead_letters_of_both_directions_are_closed_by_the_rule_and_young_ones_are_not(world: SessionWorld) -> None:
    refuse(world, "old")
    refuse(world, "dropped")
    with world.files.inbound() as db, db.transaction():
        change_status(
            db, "m1", MessageStatus.FAILED, "failed", NOW, detail={"code": "TRIES_EXHAUSTED", "reason": "gave up"}
        )
        drop(db, dead_letter(db, "dropped"), Operator("ada"), NOW)
    world.now += 10 * DAY
    refuse(world, "young")
    assert expire_dead_letters(world.files, NOW + DAY, 1, world.now) == 1
    assert expire_dead_letters(world.files, NOW + DAY, 100, world.now) == 1
    assert expire_dead_letters(world.files, NOW + DAY, 100, world.now) == 0
    closed = {row["id"]: (row["outcome"], row["by"]) for row in world.read("SELECT * FROM dead_letters_closed")}
    assert closed == {"old": ("expired", "clawbus"), "m1": ("expired", "clawbus"), "dropped": ("dropped", "ada")}
    (row,) = world.read("SELECT detail FROM message_history WHERE event = 'expired' AND message_id = 'old'")
    assert json.loads(row["detail"]) == {"by": "clawbus", "reason": "retention.dead_letters_s"}
    check_session(world.root)


def test_a_scheduled_answer_whose_row_is_gone_is_dropped_and_the_others_wait_on(world: SessionWorld) -> None:
    for number in range(6):
        world.say(f"o{number}", deliver_after=NOW + DAY)
    collect(world.files, MEANS, None, world)
    with world.runner() as db:
        db.execute("DELETE FROM messages_out WHERE id IN ('o1', 'o4')")
    dropped: list[str] = []
    position: int | None = 0
    while position is not None:
        found, position = drop_gone(world.files, position, 2, NOW)
        dropped += found
    assert dropped == ["o1", "o4"]
    states = {row["message_out_id"]: row["state"] for row in world.read("SELECT * FROM delivery_attempts")}
    assert states == {"o0": "queued", "o1": "dead", "o2": "queued", "o3": "queued", "o4": "dead", "o5": "queued"}
    assert drop_gone(world.files, 0, 100, NOW) == ([], None)
    check_session(world.root)


def test_a_file_that_is_missing_or_another_one_is_no_proof(world: SessionWorld) -> None:
    world.say("o1", deliver_after=NOW + DAY)
    collect(world.files, MEANS, None, world)
    kept = world.files.folder.outbound_db.read_bytes()
    world.files.folder.outbound_db.unlink()
    assert drop_gone(world.files, 0, 100, NOW) == ([], None)
    world.files.folder.outbound_db.write_bytes(kept)
    world.change("UPDATE delivery_cursor SET file_id = 'another'")
    assert drop_gone(world.files, 0, 100, NOW) == ([], None)
