"""What no message and no answer takes along goes with time: schedules that are over, their runs, the session's own history, questions."""

from pathlib import Path

import pytest

from daemon.core.schedules import Times
from daemon.engine import schedule_steps
from daemon.store import questions
from daemon.store.dead_letters import Operator
from daemon.store.pruning import prune_records
from daemon.store.schedules import AGENT, CONFIG, Scheduled
from daemon.store.transitions import SESSION, change_status
from schema.questions import Decision, Option, Outcome, Question
from schema.rows import Address, MessageOut, MessageStatus
from tests.support.session_world import SessionWorld

DAY = 86_400_000
HOME = Address("local", "cli")
WHO = Operator("me")


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def remind(world: SessionWorld, key: str, *, finish: bool = True) -> None:
    """An agent's reminder that is sent, worked on, and over."""
    what = Scheduled(Times(at=world.now + 1000), '{"text": "now"}', HOME)
    with world.files.inbound() as db, db.transaction():
        schedule_steps.put(db, key, what, WHO, world.now, origin=AGENT)
        world.now += 2000
        (message,) = schedule_steps.fire_due(db, world.now, 0).messages
        if finish:
            change_status(db, message.id, MessageStatus.COMPLETED, "completed", world.now)


def prune(world: SessionWorld, batch: int = 3) -> int:
    taken = 0
    for _ in range(100):
        step = prune_records(world.files, world.now - 30 * DAY, 0, batch, world.now)
        taken += step.taken
        if step.done:
            return taken
    raise AssertionError("it never came to an end")


def count(world: SessionWorld, table: str, where: str = "1") -> int:
    (row,) = world.read(f"SELECT count(*) AS n FROM {table} WHERE {where}")
    return int(row["n"])


def test_reminders_of_an_agent_do_not_pile_up(world: SessionWorld) -> None:
    for number in range(10):
        remind(world, f"r{number}")
    assert prune(world) == 0
    world.now += 31 * DAY
    remind(world, "young")
    assert prune(world) == 30, "ten schedules, their runs, and that they were set"
    assert [row["key"] for row in world.read("SELECT key FROM schedules")] == ["young"]
    assert [row["key"] for row in world.read("SELECT key FROM schedule_runs")] == ["young"]
    assert count(world, "message_history", f"message_id = '{SESSION}'") == 1
    (told,) = world.read("SELECT what, rows FROM pruned")
    assert told == {"what": "records", "rows": 30}


def test_one_that_has_work_or_belongs_to_the_configuration_stays(world: SessionWorld) -> None:
    remind(world, "at-work", finish=False)
    configured = Scheduled(Times(at=world.now - 1000), '{"text": "once"}', HOME)
    with world.files.inbound() as db:
        schedule_steps.sweep(db, {"conf": configured}, world.now)
    world.now += 31 * DAY
    prune(world)
    kept = {row["key"]: row["origin"] for row in world.read("SELECT key, origin FROM schedules")}
    assert kept == {"at-work": AGENT, "conf": CONFIG}
    with world.files.inbound() as db:
        assert schedule_steps.sweep(db, {"conf": configured}, world.now).messages == (), "it does not come again"


def test_one_that_still_fires_keeps_its_runs(world: SessionWorld) -> None:
    what = Scheduled(Times(every_ms=DAY), '{"text": "daily"}', HOME)
    with world.files.inbound() as db, db.transaction():
        schedule_steps.put(db, "daily", what, WHO, world.now)
        world.now += DAY + 1
        assert len(schedule_steps.fire_due(db, world.now, 0).messages) == 1
    world.now += 40 * DAY
    prune(world)
    assert (count(world, "schedules"), count(world, "schedule_runs")) == (1, 1)


def test_questions_about_no_message_have_an_end(world: SessionWorld) -> None:
    world.accept("m1")
    asked = Question("Now?", (Option("a", "yes"), Option("b", "no")), timeout_s=60)
    for number, about in enumerate((None, "gone", "m1", None)):
        row = MessageOut(f"q-{number}", number, "system", "", "{}", in_reply_to=about)
        with world.files.inbound() as db, db.transaction():
            found = questions.note_asked(db, row, asked, HOME, world.now)
            assert found is not None
            if number < 3:
                questions.decide(db, found, Decision(Outcome.TIMEOUT), world.now)
    prune(world)
    assert count(world, "questions") == 4
    world.now += 31 * DAY
    prune(world)
    assert [row["id"] for row in world.read("SELECT id FROM questions ORDER BY id")] == ["q-2", "q-3"]
