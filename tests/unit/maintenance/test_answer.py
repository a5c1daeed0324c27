"""One answer on its way, repaired over real files: what changes, what is refused, and that the history tells both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.core.errors import UnknownMessageError
from daemon.core.repair_errors import AnswerNotOpenError, AnswerUnderWayError
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.inspect.answer_reading import AnswersWanted, read_open_answers, retrying_example
from daemon.maintenance.answer_repair import drop_answer, retry_answer
from daemon.store.dead_letters import Operator
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld

WHO: Final = Operator("ada", "the receiver is repaired")
MEANS: Final = DeliveryContext(
    {"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}, Delivery(), 10_000, frozenset(), frozenset(), 0.5
)
HOUR: Final = 3_600_000


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    """o1 keeps failing and waits for an hour, o2 and o3 wait behind it, o4 is for tomorrow."""
    made = SessionWorld(tmp_path / "sessions" / "echo" / "s", NOW)
    made.accept("m")
    for name in ("o1", "o2", "o3"):
        made.say(name)
    made.say("o4", deliver_after=NOW + 24 * HOUR)
    sends = collect(made.files, MEANS, None, made).sends
    failed = Outcome(sends[0], sent=True, error_code="DELIVERY_TRANSIENT", error="answered 503", retry_after_s=3600.0)
    record_outcomes(made.files, [failed, *(Outcome(send, sent=False) for send in sends[1:])], MEANS, NOW)
    return made


def due(world: SessionWorld) -> list[str]:
    return [send.candidate.row.id for send in collect(world.files, MEANS, None, world).sends]


def test_what_is_on_its_way_is_told_with_what_waits_behind_it(world: SessionWorld) -> None:
    with world.files.inbound() as db:
        found, total = read_open_answers(db, NOW, 3)
        count, worst = retrying_example(db, NOW)
    assert (total, [(one["id"], one["state"], one["holds_back"]) for one in found]) == (
        4, [("o1", "retrying", 2), ("o2", "queued", 0), ("o3", "queued", 0)],
    )  # fmt: skip
    assert found[0]["error"] == "answered 503"
    assert count == 1
    assert worst == found[0]
    with world.files.inbound() as db:
        assert read_open_answers(db, NOW, 9, AnswersWanted("o4"))[0][0]["state"] == "scheduled"


def test_a_retry_makes_it_due_now_whatever_its_back_off(world: SessionWorld) -> None:
    assert due(world) == []
    assert retry_answer(world.files, "o1", WHO, NOW, under_way=False) == {"id": "o1", "was": "retrying", "attempts": 1}
    (row,) = world.read("SELECT detail FROM message_history WHERE event = 'delivery_retried'")
    assert json.loads(row["detail"])["by"] == "ada"
    assert due(world) == ["o1", "o2", "o3"]


def test_a_drop_is_a_closed_dead_letter_and_lets_the_others_go(world: SessionWorld) -> None:
    assert drop_answer(world.files, "o1", WHO, NOW, under_way=False)["was"] == "retrying"
    (closed,) = world.read("SELECT outcome, by, reason FROM dead_letters_closed")
    assert closed == {"outcome": "dropped", "by": "ada", "reason": "the receiver is repaired"}
    assert world.events("o1") == ["delivery_failed", "dead_lettered", "dropped"]
    (row,) = world.read("SELECT detail FROM message_history WHERE event = 'dead_lettered'")
    assert json.loads(row["detail"])["error"].startswith(
        "given up by ada: the receiver is repaired (last error: answered 503"
    )
    assert due(world) == ["o2", "o3"]
    check_session(world.root)


@pytest.mark.parametrize(("answer", "says"), [("o2", "waits behind o1"), ("o4", "wants it sent at")])
def test_what_has_not_failed_is_not_retried_and_says_what_it_waits_for(
    world: SessionWorld, answer: str, says: str
) -> None:
    before = world.files.folder.inbound_db.read_bytes()
    with pytest.raises(AnswerNotOpenError, match=says):
        retry_answer(world.files, answer, WHO, NOW, under_way=False)
    assert world.files.folder.inbound_db.read_bytes() == before


def test_what_is_under_way_over_or_unknown_is_refused(world: SessionWorld) -> None:
    for work in (retry_answer, drop_answer):
        with pytest.raises(AnswerUnderWayError):
            work(world.files, "o1", WHO, NOW, under_way=True)
        with pytest.raises(UnknownMessageError):
            work(world.files, "nothing", WHO, NOW, under_way=False)
    drop_answer(world.files, "o1", WHO, NOW, under_way=False)
    for work in (retry_answer, drop_answer):
        with pytest.raises(AnswerNotOpenError, match="dead letter"):
            work(world.files, "o1", WHO, NOW, under_way=False)
    record_outcomes(
        world.files, [Outcome(send, sent=True) for send in collect(world.files, MEANS, None, world).sends], MEANS, NOW
    )
    with pytest.raises(AnswerNotOpenError, match="o2 is delivered"):
        retry_answer(world.files, "o2", WHO, NOW, under_way=False)


def test_a_scheduled_answer_may_be_given_up(world: SessionWorld) -> None:
    assert drop_answer(world.files, "o4", WHO, NOW, under_way=False)["was"] == "queued"
    with world.files.inbound() as db:
        assert read_open_answers(db, NOW, 9)[1] == 3
