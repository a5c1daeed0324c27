"""Retention over inbound.db: what is done, old and needed by nobody goes; everything else stays, whatever else happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from daemon.engine import recurrence
from daemon.store import dead_letters, deliveries, host_messages, messages
from daemon.store.dead_letters import Operator
from daemon.store.pruning import Step, prune_messages, prune_receipts
from daemon.store.transitions import change_status
from schema.rows import Address, DeliveryState, MessageOut, MessageStatus
from tests.support.session_world import HOME, SessionWorld

DAY: Final = 86_400_000
KEEP: Final = 30 * DAY
TABLES: Final = ("messages_in", "message_history", "attempts", "dead_letters_closed")


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def finish(world: SessionWorld, message_id: str, status: MessageStatus = MessageStatus.COMPLETED) -> None:
    """A message that was worked on by I1 and ended now; its runner has pruned its ack."""
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, message_id, "I1", world.now, world.now)
        messages.end_attempt(db, message_id, "I1", world.now, status.value)
        change_status(db, message_id, status, status.value, world.now, detail={"reason": "a test"})


def accept_finished(world: SessionWorld, *ids: str, status: MessageStatus = MessageStatus.COMPLETED) -> None:
    for message_id in ids:
        world.accept(message_id)
        finish(world, message_id, status)


def runner_file(world: SessionWorld) -> None:
    world.runner().close()


def in_steps(world: SessionWorld, prune: Callable[..., Step], batch: int) -> int:
    position, taken = 0, 0
    for _ in range(1000):
        step = prune(world.files, world.now - KEEP, position, batch, world.now)
        position, taken = step.position, taken + step.taken
        if step.done:
            return taken
    raise AssertionError("it never came to an end")


def prune_all(world: SessionWorld, batch: int = 3) -> int:
    """Every step of a pass over the messages."""
    return in_steps(world, prune_messages, batch)


def prune_all_receipts(world: SessionWorld, batch: int = 3) -> int:
    return in_steps(world, prune_receipts, batch)


def ids(world: SessionWorld) -> list[str]:
    return [row["id"] for row in world.read("SELECT id FROM messages_in ORDER BY seq")]


def later(world: SessionWorld, days: float) -> None:
    world.now += int(days * DAY)


def deliver(world: SessionWorld, row_id: str, seq: int, *, in_reply_to: str | None = None) -> None:
    """The host took note of the runner's row, and has the receipt."""
    world.say(row_id, in_reply_to=in_reply_to, to=HOME, seq=seq)
    with world.files.inbound() as db, db.transaction():
        track(world, db, row_id, seq, DeliveryState.INTENDED)
        deliveries.delivered(db, [(row_id, None)], world.now)


def track(world: SessionWorld, db: object, row_id: str, seq: int, state: DeliveryState) -> MessageOut:
    row = MessageOut(row_id, seq, "chat", "", "{}")
    deliveries.track(db, row, from_host=False, destination=HOME.key, state=state, not_before=None, at=world.now)  # pyright: ignore[reportArgumentType]
    with world.files.outbound() as out:
        assert out is not None
        deliveries.advance(db, seq, out.file_id)  # pyright: ignore[reportArgumentType]
    return row


def make_dead_letter(world: SessionWorld, row_id: str, seq: int, *, in_reply_to: str | None = None) -> None:
    world.say(row_id, in_reply_to=in_reply_to, to=HOME, seq=seq)
    with world.files.inbound() as db, db.transaction():
        row = track(world, db, row_id, seq, DeliveryState.INTENDED)
        deliveries.make_dead_letter(db, row, world.now, "DELIVERY_PERMANENT", "no", notify_agent=False)


def forget(world: SessionWorld, row_id: str) -> None:
    """The runner prunes its row."""
    with world.runner() as db, db.transaction():
        db.execute("DELETE FROM messages_out WHERE id = ?", (row_id,))


# --- messages


def test_a_finished_message_goes_with_all_that_is_told_of_it(world: SessionWorld) -> None:
    runner_file(world)
    accept_finished(world, "m1", "m2", "m3", "m4")
    later(world, 31)
    world.accept("young")
    assert prune_all(world) == 4
    assert ids(world) == ["young"]
    for table, key in (("message_history", "message_id"), ("attempts", "message_id")):
        assert {row["id"] for row in world.read(f"SELECT {key} AS id FROM {table}")} <= {"young"}
    (told,) = world.read("SELECT * FROM pruned")
    assert told == {"what": "messages", "rows": 4, "at": world.now, "through": world.now - KEEP}


def test_files_stay_while_a_message_names_them_and_go_with_the_last_one(world: SessionWorld) -> None:
    runner_file(world)
    inbox = world.files.folder.inbox / "inbox"
    for name in ("m1", "lost", ".partial", "fresh"):
        (inbox / name).mkdir(parents=True)
        (inbox / name / "a.txt").write_text("a")
        at = world.now / 1000 + (31 * 86400 if name == "fresh" else 0)
        os.utime(inbox / name, (at, at))
    accept_finished(world, "m1")
    later(world, 31)
    world.accept("retry")
    with world.files.inbound() as db, db.transaction():
        content = '{"attachments": [{"localPath": "inbox/m1/a.txt"}]}'
        db.execute("UPDATE messages_in SET content = ? WHERE id = 'retry'", (content,))
    prune_all(world)
    assert ids(world) == ["retry"]
    assert sorted(path.name for path in inbox.iterdir()) == ["fresh", "m1"]
    finish(world, "retry")
    later(world, 62)
    world.accept("young")
    prune_all(world)  # takes the message
    prune_all(world)  # takes what it named
    assert ids(world) == ["young"]
    assert list(inbox.iterdir()) == []


def test_the_age_counts_from_the_end_and_not_from_the_beginning(world: SessionWorld) -> None:
    runner_file(world)
    world.accept("slow")
    later(world, 40)
    finish(world, "slow")
    world.accept("last")
    later(world, 29)
    assert prune_all(world) == 0
    later(world, 2)
    assert prune_all(world) == 1


@pytest.mark.parametrize("status", [MessageStatus.PENDING, MessageStatus.PAUSED])
def test_what_is_not_done_is_never_taken(world: SessionWorld, status: MessageStatus) -> None:
    runner_file(world)
    world.accept("m1")
    if status is not MessageStatus.PENDING:
        with world.files.inbound() as db, db.transaction():
            change_status(db, "m1", status, status.value, world.now)
    world.accept("last")
    later(world, 10_000)
    assert prune_all(world) == 0
    assert ids(world) == ["m1", "last"]


@pytest.mark.parametrize("status", ["processing", "completed", "failed", "nonsense"])
def test_a_message_stays_while_there_is_an_ack_of_it(world: SessionWorld, status: str) -> None:
    """A row of that id that came later would be taken for finished, by that ack."""
    accept_finished(world, "m1")
    world.ack(status, "m1", by="I1")
    world.accept("last")
    later(world, 31)
    assert prune_all(world) == 0
    world.unclaim("m1")
    assert prune_all(world) == 1


def test_an_open_dead_letter_stays_and_a_closed_one_goes(world: SessionWorld) -> None:
    runner_file(world)
    accept_finished(world, "open", "dropped", status=MessageStatus.FAILED)
    world.accept("last")
    with world.files.inbound() as db, db.transaction():
        letter = dead_letters.dead_letter(db, "dropped")
        dead_letters.drop(db, letter, Operator("me"), world.now)
    later(world, 31)
    assert prune_all(world) == 1
    assert ids(world) == ["open", "last"]
    assert world.read("SELECT * FROM dead_letters_closed") == []


def test_the_time_of_closing_counts(world: SessionWorld) -> None:
    runner_file(world)
    accept_finished(world, "m1", status=MessageStatus.FAILED)
    world.accept("last")
    later(world, 100)
    with world.files.inbound() as db, db.transaction():
        dead_letters.drop(db, dead_letters.dead_letter(db, "m1"), Operator("me"), world.now)
    assert prune_all(world) == 0


@pytest.mark.parametrize("ended", [MessageStatus.FAILED, MessageStatus.CANCELLED])
def test_a_requeued_message_stays_for_as_long_as_its_copy(world: SessionWorld, ended: MessageStatus) -> None:
    """Else the copy's own requeue would take the first id again."""
    runner_file(world)
    accept_finished(world, "m1", status=ended)
    with world.files.inbound() as db, db.transaction():
        failed = messages.find(db, "m1")
        assert failed is not None
        copy = dead_letters.requeue_message(db, failed, Operator("me"), world.now)
    world.accept("last")
    later(world, 31)
    assert prune_all(world) == 0
    finish(world, copy.id)
    later(world, 31)
    assert prune_all(world) == 1
    assert prune_all(world) == 1
    assert ids(world) == ["last"]


def test_the_first_of_a_series_that_goes_on_stays(world: SessionWorld) -> None:
    """Were its id sent again after it was pruned, there would be two series."""
    runner_file(world)
    world.accept("daily", recurrence="0 9 * * *")
    for _ in range(3):
        current = world.read("SELECT id FROM messages_in WHERE status = 'pending'")[0]["id"]
        finish(world, current)
        with world.files.inbound() as db, db.transaction():
            recurrence.rearm(db, messages.to_rearm(db), world.now, "UTC")
        later(world, 1)
    world.accept("last")
    later(world, 40)
    assert prune_all(world) == 2
    first, live, _ = ids(world)
    assert first == "daily"
    assert world.message(live)["status"] == "pending"


def test_an_occurrence_that_is_still_to_be_armed_again_stays(world: SessionWorld) -> None:
    runner_file(world)
    world.accept("daily", recurrence="0 9 * * *")
    finish(world, "daily")
    world.accept("last")
    later(world, 31)
    assert prune_all(world) == 0


def test_the_highest_seq_stays_and_no_seq_is_used_again(world: SessionWorld) -> None:
    runner_file(world)
    accept_finished(world, "m1", "m2", "m3")
    used = max(row["seq"] for row in world.read("SELECT seq FROM messages_in"))
    later(world, 31)
    assert prune_all(world) == 2
    assert ids(world) == ["m3"]
    assert world.accept("next").seq > used


def test_what_a_dead_answer_replies_to_stays(world: SessionWorld) -> None:
    """Its permission to go there comes from the message; a requeue would be refused without it."""
    accept_finished(world, "m1", "m2")
    make_dead_letter(world, "a1", 101, in_reply_to="m1")
    world.accept("last")
    later(world, 31)
    assert prune_all(world) == 1
    assert ids(world) == ["m1", "last"]
    with world.files.inbound() as db, db.transaction():
        dead_letters.drop(db, dead_letters.dead_letter(db, "a1"), Operator("me"), world.now)
    assert prune_all(world) == 1


def test_nothing_goes_while_an_answer_is_not_taken_note_of(world: SessionWorld) -> None:
    accept_finished(world, "m1")
    world.accept("last")
    later(world, 31)
    world.say("a1", in_reply_to="m1", to=HOME)
    assert prune_all(world) == 0
    assert ids(world) == ["m1", "last"]


def test_a_message_whose_id_a_dead_answer_has_stays(world: SessionWorld) -> None:
    """A container may call its answer as it likes; its dead letter must not lose what closed it, or its history."""
    accept_finished(world, "m1")
    make_dead_letter(world, "m1", 101)
    world.accept("last")
    later(world, 31)
    assert prune_all(world) == 0
    assert "dead_lettered" in world.events("m1")


def test_one_step_looks_at_no_more_than_its_batch(world: SessionWorld) -> None:
    runner_file(world)
    accept_finished(world, *(f"m{number}" for number in range(10)))
    later(world, 31)
    step = prune_messages(world.files, world.now - KEEP, 0, 4, world.now)
    assert (step.taken, step.done) == (4, False)
    assert prune_messages(world.files, world.now - KEEP, step.position, 4, world.now).taken == 4
    assert ids(world) == ["m8", "m9"]


def test_what_came_with_a_message_goes_with_it(world: SessionWorld, tmp_path: Path) -> None:
    runner_file(world)
    accept_finished(world, "m1", "m2")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("m1", "m2"):
        folder = world.files.folder.inbox / "inbox" / name
        folder.mkdir(parents=True)
        (folder / "photo").write_text("x")
    (world.files.folder.inbox / "inbox" / "m1" / "link").symlink_to(elsewhere)
    later(world, 31)
    assert prune_all(world) == 1
    assert [path.name for path in (world.files.folder.inbox / "inbox").iterdir()] == ["m2"]
    assert elsewhere.is_dir()


# --- receipts


def test_a_receipt_stays_while_the_answer_is_there(world: SessionWorld) -> None:
    """A container's file that was replaced is read from its beginning: the receipt keeps its rows from being sent again."""
    deliver(world, "a1", 1)
    deliver(world, "a2", 3)
    later(world, 31)
    assert prune_all_receipts(world) == 0
    forget(world, "a1")
    assert prune_all_receipts(world) == 1
    assert [row["message_out_id"] for row in world.read("SELECT * FROM delivered")] == ["a2"]


def test_a_young_receipt_stays(world: SessionWorld) -> None:
    deliver(world, "a1", 1)
    forget(world, "a1")
    later(world, 29)
    assert prune_all_receipts(world) == 0


@pytest.mark.parametrize("sign", ["tries", "attempt"])
def test_a_receipt_stays_while_a_turn_may_repeat_its_answer(world: SessionWorld, sign: str) -> None:
    """A reset took the rows away. The message was in a turn and is not over: its next turn asks the same, under the same id."""
    runner_file(world)
    deliver(world, "before", 1)
    world.now += 1000
    world.accept("m1")
    if sign == "tries":
        world.change("UPDATE messages_in SET tries = 1 WHERE id = 'm1'")
    else:
        world.change("INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES ('m1', 'i', 1)")
    deliver(world, "question", 3)
    for name in ("before", "question"):
        forget(world, name)
    later(world, 31)
    assert prune_all_receipts(world) == 1
    assert [row["message_out_id"] for row in world.read("SELECT * FROM delivered")] == ["question"]
    world.change("UPDATE messages_in SET status = 'failed' WHERE id = 'm1'")
    assert prune_all_receipts(world) == 1


def test_no_file_is_no_proof(world: SessionWorld) -> None:
    """outbound.db may have been moved away, and come back."""
    deliver(world, "a1", 1)
    later(world, 31)
    world.files.folder.outbound_db.unlink()
    assert prune_all_receipts(world) == 0


def test_an_open_dead_answer_stays_and_a_dropped_one_goes_with_its_history(world: SessionWorld) -> None:
    make_dead_letter(world, "a1", 1)
    make_dead_letter(world, "a2", 3)
    forget(world, "a1")
    forget(world, "a2")
    with world.files.inbound() as db, db.transaction():
        dead_letters.drop(db, dead_letters.dead_letter(db, "a2"), Operator("me"), world.now)
    later(world, 31)
    assert prune_all_receipts(world) == 1
    assert [row["message_out_id"] for row in world.read("SELECT * FROM delivery_attempts")] == ["a1"]
    assert world.events("a1") == ["dead_lettered"]
    assert world.events("a2") == []
    assert world.read("SELECT * FROM dead_letters_closed") == []


def test_a_letter_dropped_of_late_stays(world: SessionWorld) -> None:
    make_dead_letter(world, "a1", 1)
    forget(world, "a1")
    later(world, 100)
    with world.files.inbound() as db, db.transaction():
        dead_letters.drop(db, dead_letters.dead_letter(db, "a1"), Operator("me"), world.now)
    assert prune_all_receipts(world) == 0


def test_a_receipt_whose_id_a_message_has_waits_for_the_message(world: SessionWorld) -> None:
    """The history of that id is the message's, too: no status stands without one."""
    runner_file(world)
    world.accept("m1")
    deliver(world, "m1", 101)
    forget(world, "m1")
    later(world, 31)
    assert prune_all_receipts(world) == 0
    assert world.events("m1")[0] == "accepted"


def test_a_notice_to_a_sender_goes_with_its_receipt_but_for_the_highest(world: SessionWorld) -> None:
    runner_file(world)
    for name in ("m1", "m2"):
        accept_finished(world, name, status=MessageStatus.FAILED)
        with world.files.inbound() as db, db.transaction():
            message = messages.find(db, name)
            assert message is not None
            host_messages.notify_sender(db, message, Address("local", "me"), "X", "failed", world.now)
            (notice,) = db.all("SELECT id FROM host_messages WHERE in_reply_to = ?", (name,))
            deliveries.delivered(db, [(notice["id"], None)], world.now)
    top = max(row["seq"] for row in world.read("SELECT seq FROM host_messages"))
    later(world, 31)
    assert prune_all_receipts(world) == 1
    assert [row["id"] for row in world.read("SELECT in_reply_to AS id FROM host_messages")] == ["m2"]
    assert world.accept("next").seq > top


def test_a_decided_question_goes_with_its_message_and_an_open_one_stays(world: SessionWorld) -> None:
    accept_finished(world, "m1", "m2", "last")
    with world.files.inbound() as db, db.transaction():
        for number, outcome in enumerate(("answered", None)):
            db.execute(
                "INSERT INTO questions(id, message_id, text, options, free_text, notify, asked_at, deadline, outcome)"
                " VALUES (?, ?, 'x', '[]', 1, 1, 1, 2, ?)",
                (f"q{number}", f"m{number + 1}", outcome),
            )
    later(world, 40)
    assert prune_all(world) == 2
    assert [row["id"] for row in world.read("SELECT id FROM questions")] == ["q1"]
