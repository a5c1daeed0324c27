"""One message and one session repaired over real files: what changes, what is refused, and that the history tells both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from daemon.core.errors import NotDeadLetterError, UnknownMessageError
from daemon.core.repair_errors import MessageFinishedError, ResetWouldLoseError
from daemon.maintenance import message_repair, session_repair
from daemon.store.dead_letters import Operator
from daemon.store.messages import cancelled_attempts, note_claim
from daemon.store.session_files import SessionFiles
from schema.errors import ClawbusError, StorageError
from schema.rows import MessageStatus
from tests.support.hot_journal import strand_journal
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld

WHO: Final = Operator("ada", "it was wrong")


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "sessions" / "echo" / "s", NOW)
    made.accept("m")
    return made


def claim(world: SessionWorld, by: str = "I1") -> None:
    world.claim("m", by=by)
    with world.files.inbound() as db, db.transaction():
        note_claim(db, "m", by, NOW, NOW)


def cancel(world: SessionWorld, live: str | None = None, *, kill: bool = False) -> dict[str, object]:
    return message_repair.cancel(world.files, "m", WHO, NOW, live=live, kill=kill)


def refused(world: SessionWorld, work: object, error: type[ClawbusError]) -> ClawbusError:
    before = world.files.folder.inbound_db.read_bytes()
    assert callable(work)
    with pytest.raises(error) as found:
        work()
    assert world.files.folder.inbound_db.read_bytes() == before
    return found.value


def put(world: SessionWorld, status: MessageStatus) -> None:
    world.change("INSERT INTO message_history(message_id, event, at, detail) VALUES ('m', ?, ?, '{\"reason\": \"x\"}')",
                 (status.value, NOW))  # fmt: skip
    world.change("UPDATE messages_in SET status = ?", (status.value,))


def test_a_cancelled_message_has_who_and_why_and_its_sender_is_told(world: SessionWorld) -> None:
    assert cancel(world) == {"id": "m", "was": "pending", "running": False}
    (row,) = world.read("SELECT detail FROM message_history WHERE event = 'cancelled'")
    assert json.loads(row["detail"])["by"] == "ada"
    (notice,) = world.read("SELECT content FROM host_messages")
    assert "it was wrong" in notice["content"]
    check_session(world.root)


@pytest.mark.parametrize("status", [MessageStatus.COMPLETED, MessageStatus.FAILED, MessageStatus.CANCELLED])
def test_a_finished_message_is_not_cancelled(world: SessionWorld, status: MessageStatus) -> None:
    put(world, status)
    refused(world, lambda: cancel(world), MessageFinishedError)


def test_one_that_the_agent_has_finished_is_not_cancelled_although_nobody_took_note(world: SessionWorld) -> None:
    world.ack("completed", "m", by="I1")
    refused(world, lambda: cancel(world, kill=True), MessageFinishedError)


@pytest.mark.parametrize("noted", [True, False])
def test_one_that_is_worked_on_is_cancelled_and_its_turn_is_known(world: SessionWorld, noted: bool) -> None:
    claim(world) if noted else world.claim("m", by="I1")
    assert cancel(world, "I1") == {"id": "m", "was": "pending", "running": True}
    assert world.message("m")["status"] == "cancelled"
    with world.files.inbound() as db:
        assert cancelled_attempts(db, "I1") == {"m": NOW}
        assert cancelled_attempts(db, "I2") == {}
    refused(world, lambda: cancel(world, "I1"), MessageFinishedError)


def test_a_kill_that_was_not_confirmed_is_finished_by_the_same_command(world: SessionWorld) -> None:
    claim(world)
    cancel(world, "I1", kill=True)
    before = world.events("m"), world.read("SELECT * FROM host_messages")
    assert cancel(world, "I1", kill=True) == {"id": "m", "was": "cancelled", "running": True}
    assert cancel(world, None, kill=True) == {"id": "m", "was": "cancelled", "running": False}
    assert (world.events("m"), world.read("SELECT * FROM host_messages")) == before
    refused(world, lambda: cancel(world, "I1"), MessageFinishedError)


def test_a_claim_of_a_container_that_is_gone_holds_nothing(world: SessionWorld) -> None:
    claim(world)
    assert cancel(world, None)["running"] is False


def test_context_that_is_cancelled_tells_nobody(world: SessionWorld) -> None:
    world.change("UPDATE messages_in SET trigger = 0")
    cancel(world)
    assert world.read("SELECT * FROM host_messages") == []


def test_a_message_that_waits_is_due_at_once_and_keeps_its_tries(world: SessionWorld) -> None:
    world.change("UPDATE messages_in SET process_after = '2999-01-01T00:00:00.000Z', tries = 3")
    assert message_repair.retry(world.files, "m", WHO, NOW)["retried_as"] == "m"
    row = world.message("m")
    assert (row["process_after"], row["tries"], row["status"]) == (None, 3, "pending")


def test_a_paused_message_is_resumed(world: SessionWorld) -> None:
    put(world, MessageStatus.PAUSED)
    message_repair.retry(world.files, "m", WHO, NOW)
    assert world.message("m")["status"] == "pending"
    assert world.events("m")[-2:] == ["resumed", "retry_requested"]
    check_session(world.root)


@pytest.mark.parametrize("status", [MessageStatus.FAILED, MessageStatus.CANCELLED])
def test_what_has_ended_goes_as_a_new_message(world: SessionWorld, status: MessageStatus) -> None:
    put(world, status)
    assert message_repair.retry(world.files, "m", WHO, NOW)["retried_as"] == "m+r1"
    assert world.message("m")["status"] == status
    assert world.message("m+r1")["status"] == "pending"
    assert world.events("m")[-1] == "requeued"
    check_session(world.root)


@pytest.mark.parametrize("status", [MessageStatus.FAILED, MessageStatus.CANCELLED])
def test_what_has_ended_is_retried_once(world: SessionWorld, status: MessageStatus) -> None:
    put(world, status)
    message_repair.retry(world.files, "m", WHO, NOW)
    error = refused(world, lambda: message_repair.retry(world.files, "m", WHO, NOW), NotDeadLetterError)
    assert "requeued as m+r1" in str(error)
    assert "clawbus message show m+r1" in (error.hint or "")
    world.change("UPDATE messages_in SET status = ? WHERE id = 'm+r1'", (status.value,))
    assert message_repair.retry(world.files, "m+r1", WHO, NOW)["retried_as"] == "m+r2"


def test_a_completed_message_is_not_repeated(world: SessionWorld) -> None:
    put(world, MessageStatus.COMPLETED)
    refused(world, lambda: message_repair.retry(world.files, "m", WHO, NOW), MessageFinishedError)
    with pytest.raises(UnknownMessageError):
        message_repair.retry(world.files, "nobody", WHO, NOW)


# --- a session


def reset(world: SessionWorld, *, discard: bool = False) -> dict[str, object]:
    return session_repair.reset(world.files, WHO, NOW, discard=discard)


def test_a_reset_puts_out_aside_and_gives_open_attempts_back(world: SessionWorld) -> None:
    claim(world)
    done = reset(world)
    assert done["released"] == 1
    assert (Path(str(done["moved_to"])) / "outbound.db").exists()
    assert list(world.files.folder.outbox.iterdir()) == []
    assert world.read("SELECT outcome FROM attempts") == [{"outcome": "released"}]
    assert world.message("m")["tries"] == 0
    assert world.events("@session") == ["session_reset"]
    check_session(world.root)


def test_two_resets_of_one_second_keep_both_folders(world: SessionWorld) -> None:
    assert reset(world)["moved_to"] != reset(world)["moved_to"]


@pytest.mark.parametrize("what", ["answer", "queued", "ack", "hostile"])
def test_a_reset_that_would_lose_something_is_refused_and_moves_nothing(world: SessionWorld, what: str) -> None:
    claim(world)
    if what == "answer":
        world.say("a", in_reply_to="m")
    elif what == "queued":
        world.change(
            "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at) VALUES ('a', 1, 'x', 'queued', 1)"
        )
    elif what == "ack":
        world.ack("completed", "m", by="I1")
    else:
        world.files.folder.outbound_db.write_bytes(b"\xa5" * 9000)
    box = world.files.folder.outbound_db.read_bytes()
    error = refused(world, lambda: reset(world), ResetWouldLoseError)
    # What cannot be read cannot be delivered first either: a release would only lead back here.
    assert ("release" in error.hint.lower()) == (what != "hostile")
    assert "--discard" in error.hint
    assert world.files.folder.outbound_db.read_bytes() == box
    assert reset(world, discard=True)["moved_to"]


@pytest.mark.parametrize("step", ["create", "record"])
def test_a_reset_that_the_host_cannot_finish_changes_nothing(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("no space left on this host")

    claim(world)
    box = world.files.folder.outbound_db.read_bytes()
    with monkeypatch.context() as patch:
        if step == "create":
            patch.setattr(SessionFiles, "create", full)
        else:
            patch.setattr(session_repair, "record", full)
        refused(world, lambda: reset(world), StorageError)
    assert world.files.folder.outbound_db.read_bytes() == box
    assert [path.name for path in world.root.glob("out*")] == ["out"]
    assert reset(world)["released"] == 1


def test_a_dead_container_s_journal_is_rolled_back_before_it_is_looked_at(world: SessionWorld) -> None:
    claim(world)
    row = "INSERT INTO session_state(key, value, updated_at) VALUES ('k' || ?, hex(zeroblob(500)), 'x')"
    strand_journal(world.files.folder.outbound_db, row)
    assert reset(world)["released"] == 1


def test_a_note_stands_with_the_session_and_with_what_is_under_way(world: SessionWorld) -> None:
    claim(world)
    world.accept("waiting")
    session_repair.note(world.files, "session_killed", WHO, NOW)
    assert world.events("@session") == ["session_killed"]
    assert world.events("m")[-1] == "session_killed"
    assert world.events("waiting") == ["accepted"]
    check_session(world.root)
