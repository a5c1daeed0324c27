"""When waiting for an answer is in vain: the message is finished and nothing of its session is on its way."""

from pathlib import Path

import pytest

from daemon.engine.unanswered import unanswered
from tests.support.session_world import SessionWorld


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    found = SessionWorld(tmp_path / "s")
    found.accept("m1")
    return found


def settle(world: SessionWorld, status: str) -> None:
    world.change("UPDATE messages_in SET status = ? WHERE id = 'm1'", (status,))


@pytest.mark.parametrize("status", ["pending", "paused"])
def test_an_unfinished_message_may_be_answered(world: SessionWorld, status: str) -> None:
    settle(world, status)
    assert unanswered(world.files, "m1", alive=True) is None


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_finished_message_with_nothing_on_its_way_will_not(world: SessionWorld, status: str) -> None:
    settle(world, status)
    assert status in (unanswered(world.files, "m1", alive=True) or "")


def test_a_row_that_delivery_has_not_noted_may_be_the_answer(world: SessionWorld) -> None:
    settle(world, "completed")
    world.say("o1")
    assert unanswered(world.files, "m1", alive=True) is None


@pytest.mark.parametrize(("state", "may_come"), [("queued", True), ("retrying", True), ("dead", False)])
def test_what_is_tracked_decides(world: SessionWorld, state: str, may_come: bool) -> None:
    settle(world, "completed")
    world.change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at) VALUES ('o1', 3, '', ?, 0)",
        (state,),
    )
    assert (unanswered(world.files, "m1", alive=True) is None) is may_come


def test_an_unknown_message_says_nothing(world: SessionWorld) -> None:
    assert unanswered(world.files, "m9", alive=True) is None


@pytest.mark.parametrize(("by", "alive", "may_come"), [(None, True, True), (None, False, False), ("i1", True, False)])
def test_a_runner_without_stamps_may_ack_before_it_answers(
    world: SessionWorld, by: str | None, alive: bool, may_come: bool
) -> None:
    world.ack("completed", "m1", by=by)
    settle(world, "completed")
    assert (unanswered(world.files, "m1", alive=alive) is None) is may_come


def test_why_a_turn_sent_nothing_is_told(world: SessionWorld) -> None:
    settle(world, "completed")
    world.change(
        "INSERT INTO message_history(message_id, event, at, detail) VALUES ('m1', 'completed', 1, ?)",
        ('{"note": "NOTHING_SENT", "reason": "The program printed 1 progress and no message."}',),
    )
    why = unanswered(world.files, "m1", alive=True)
    assert why == (
        "it is completed, and nothing that answers it is on its way: The program printed 1 progress and no message"
    )
