"""What a session would lose is said before it is deleted."""

from pathlib import Path

from daemon.maintenance.session_deletion import unfinished_work
from daemon.store import questions
from schema.questions import Decision, Outcome, Question
from schema.rows import Address, MessageOut
from tests.support.session_world import SessionWorld


def test_an_open_question_is_work_although_no_turn_waits_for_it(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "s")
    row = MessageOut("q-1", 1, "system", "", "{}")
    with world.files.inbound() as db, db.transaction():
        asked = questions.note_asked(db, row, Question("ship it?", notify=True), Address("local", "cli"), world.now)
        assert asked is not None
    (found,) = unfinished_work(world.files)
    assert found.startswith("1 questions wait for an answer")
    with world.files.inbound() as db, db.transaction():
        questions.decide(db, asked, Decision(Outcome.DECLINED), world.now)
    assert unfinished_work(world.files) == ["1 messages are not finished"], "the one that tells the agent"
