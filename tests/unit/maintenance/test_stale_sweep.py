"""The stale sweep over real files: after a backup it writes what the evidence says, or it writes nothing."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.core.repair_errors import (
    BackupFailedError,
    BackupNotVerifiedError,
    RestoreRefusedError,
    StaleAliveError,
    StaleChangedError,
    StaleInconsistentError,
    StaleNotVerifiedError,
    StaleScopeTooBroadError,
)
from daemon.core.run_evidence import RuntimeContext
from daemon.core.session_key import SessionKey
from daemon.core.stale_plan import Scope, SkipReason
from daemon.maintenance import backup as backups
from daemon.maintenance import stale_sweep
from daemon.store.dead_letters import Operator
from daemon.store.messages import note_claim
from schema import connect
from schema.errors import FileBusyError, SchemaTooNewError, StorageError, UnusableFileError
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld

KEY: Final = SessionKey("echo", "s")
OLD: Final = NOW - 3_600_000
SCOPE: Final = Scope(session=KEY)
WHO: Final = Operator("root", "three at night")
GONE: Final = RuntimeContext(NOW, synced=False)


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "sessions" / "echo" / "s", OLD)


def claimed(world: SessionWorld, message_id: str, by: str = "I1") -> None:
    """Accept a message, claim it for an incarnation, and note the claim as the host does."""
    world.accept(message_id)
    world.claim(message_id, by=by)
    with world.files.inbound() as db, db.transaction():
        note_claim(db, message_id, by, world.now, world.now)


def finished(world: SessionWorld, message_id: str, status: str = "completed", *, error: bool = False) -> None:
    claimed(world, message_id)
    world.say(f"a-{message_id}", in_reply_to=message_id, content='{"error": "no"}' if error else "done")
    world.ack(status, message_id, by="I1")


def apply(world: SessionWorld, scope: Scope = SCOPE, context: RuntimeContext = GONE, **more: Any) -> stale_sweep.Swept:
    return stale_sweep.apply(world.files, KEY, context, scope, WHO, **more)


def unchanged(world: SessionWorld, work: Callable[[], object], error: type[BaseException]) -> BaseException:
    """Check that `work` raises `error` and leaves inbound.db as it was. Return what it raised."""
    before = world.files.folder.inbound_db.read_bytes()
    with pytest.raises(error) as found:
        work()
    assert world.files.folder.inbound_db.read_bytes() == before
    return found.value


def attempt(world: SessionWorld, message_id: str) -> dict[str, Any]:
    (row,) = world.read("SELECT * FROM attempts WHERE message_id = ?", (message_id,))
    return row


def test_each_run_gets_what_the_evidence_says_and_only_the_rest_is_cancelled(world: SessionWorld) -> None:
    finished(world, "done")
    finished(world, "failed", "failed", error=True)
    claimed(world, "ghost")
    world.accept("waiting")
    swept = apply(world)
    assert {one.message_id: one.status for one in swept.plan.endings} == {
        "done": "completed", "failed": "failed", "ghost": "cancelled",
    }  # fmt: skip
    assert [world.message(one)["status"] for one in ("done", "failed", "ghost", "waiting")] == [
        "completed", "failed", "cancelled", "pending",
    ]  # fmt: skip
    assert [attempt(world, one)["outcome"] for one in ("done", "failed", "ghost")] == [
        "completed",
        "failed",
        "orphaned",
    ]
    assert world.events("ghost") == ["accepted", "claimed", "swept", "cancelled"]
    assert world.events("done") == ["accepted", "claimed", "swept", "completed"]
    check_session(world.root)
    (who,) = world.read("SELECT detail FROM message_history WHERE message_id = 'ghost' AND event = 'swept'")
    assert '"by": "root"' in who["detail"]
    assert "three at night" in who["detail"]


def test_only_the_sender_of_a_cancelled_message_is_notified(world: SessionWorld) -> None:
    claimed(world, "ghost")
    finished(world, "done")
    apply(world)
    (notice,) = world.read("SELECT * FROM host_messages")
    assert notice["in_reply_to"] == "ghost"
    assert "CANCELLED" in notice["content"]


def test_a_history_that_says_completed_is_not_written_a_second_time(world: SessionWorld) -> None:
    claimed(world, "m")
    world.change("INSERT INTO message_history(message_id, event, incarnation, at) VALUES ('m', 'completed', 'I1', 5)")
    apply(world)
    assert world.events("m") == ["accepted", "claimed", "completed", "swept"]
    assert world.message("m")["status"] == "completed"
    assert attempt(world, "m")["outcome"] == "completed"


def test_a_status_without_history_gets_its_history(world: SessionWorld) -> None:
    finished(world, "m")
    world.change("UPDATE messages_in SET status = 'completed'")
    apply(world)
    assert world.events("m") == ["accepted", "claimed", "swept", "completed"]
    check_session(world.root)


def test_the_backup_has_what_was_there_before_and_a_second_sweep_finds_nothing(world: SessionWorld) -> None:
    claimed(world, "m")
    swept = apply(world)
    assert swept.backup is not None
    assert swept.sampled == 1
    with connect.open_still_reader(swept.backup.path) as old:
        assert old.all("SELECT status FROM messages_in")[0]["status"] == "pending"
    again = apply(world)
    assert again.backup is None
    assert again.plan.endings == ()
    assert len(list(world.files.folder.inbox.glob("*.sqlite"))) == 1


def test_an_undo_brings_back_what_was_and_says_who(world: SessionWorld) -> None:
    claimed(world, "m")
    swept = apply(world)
    assert swept.backup is not None
    found = stale_sweep.found_backup(world.files, swept.backup.path.name)
    assert stale_sweep.undo(world.files, KEY, found, WHO, NOW)["restored"] == 1
    assert world.message("m")["status"] == "pending"
    assert world.events("m") == ["accepted", "claimed", "sweep_undone"]
    assert attempt(world, "m")["outcome"] is None
    assert apply(world).plan.endings[0].message_id == "m"


def test_an_undo_of_what_the_sweep_cancelled_needs_no_file_of_the_containers(world: SessionWorld) -> None:
    claimed(world, "m")
    swept = apply(world)
    assert swept.backup is not None
    world.files.folder.outbound_db.write_bytes(b"garbage" * 1000)
    assert stale_sweep.undo(world.files, KEY, swept.backup, WHO, NOW)["restored"] == 1


@pytest.mark.parametrize("gain", ["message", "finish"])
def test_an_undo_that_would_lose_something_is_refused(world: SessionWorld, gain: str) -> None:
    claimed(world, "m")
    world.accept("other")
    swept = apply(world)
    assert swept.backup is not None
    if gain == "message":
        world.accept("later")
    else:
        world.change("UPDATE messages_in SET status = 'completed' WHERE id = 'other'")
    backup = swept.backup
    error = unchanged(world, lambda: stale_sweep.undo(world.files, KEY, backup, WHO, NOW), RestoreRefusedError)
    assert "would be lost" in str(error)


def test_an_undo_is_refused_once_the_container_has_dropped_the_ack_of_what_it_finished(world: SessionWorld) -> None:
    claimed(world, "m")
    world.ack("failed", "m", by="I1")
    swept = apply(world)
    assert (swept.backup is not None, world.message("m")["status"]) == (True, "failed")
    backup = swept.backup
    assert backup is not None
    with world.runner() as db, db.transaction():
        (ack,) = db.all("SELECT * FROM processing_ack")
        db.execute("DELETE FROM processing_ack")
    error = unchanged(world, lambda: stale_sweep.undo(world.files, KEY, backup, WHO, NOW), RestoreRefusedError)
    assert "worked on again" in str(error)
    with world.runner() as db, db.transaction():
        db.execute(
            f"INSERT INTO processing_ack({', '.join(ack.keys())}) VALUES ({', '.join('?' * len(ack))})", tuple(ack)
        )
    assert stale_sweep.undo(world.files, KEY, backup, WHO, NOW)["restored"] == 1


def test_another_sessions_backup_is_refused(world: SessionWorld, tmp_path: Path) -> None:
    other = SessionWorld(tmp_path / "sessions" / "echo" / "other", OLD)
    claimed(other, "theirs")
    foreign = stale_sweep.apply(other.files, KEY, GONE, SCOPE, WHO).backup
    assert foreign is not None
    world.accept("m")
    unchanged(world, lambda: stale_sweep.undo(world.files, KEY, foreign, WHO, NOW), RestoreRefusedError)
    with pytest.raises(RestoreRefusedError):
        stale_sweep.found_backup(world.files, f"../../other/in/{foreign.path.name}")


# --- the gates


def test_a_live_run_stops_the_sweep(world: SessionWorld) -> None:
    finished(world, "done")
    world.change("DELETE FROM attempts")
    world.change("INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES ('done', 'I0', 1)")
    claimed(world, "ghost", by="I1")
    living = RuntimeContext(NOW, synced=False, alive=frozenset({"I0"}), occupied=True)
    unchanged(world, lambda: apply(world, context=living), StaleAliveError)


def test_a_run_whose_container_may_live_is_left_alone(world: SessionWorld) -> None:
    claimed(world, "unknown", by="I1")
    claimed(world, "gone", by="I2")
    swept = apply(world, context=RuntimeContext(NOW, synced=False, complete=False, ended={"I2": NOW - 1000}))
    assert [one.message_id for one in swept.plan.endings] == ["gone"]
    assert [world.message(one)["status"] for one in ("unknown", "gone")] == ["pending", "cancelled"]
    assert attempt(world, "unknown")["outcome"] is None


def test_a_contradiction_stops_the_sweep_until_it_is_out_of_scope(world: SessionWorld) -> None:
    finished(world, "m")
    claimed(world, "ghost")
    world.change("INSERT INTO message_history(message_id, event, incarnation, at) VALUES ('m', 'failed', 'I1', 5)")
    error = unchanged(world, lambda: apply(world), StaleInconsistentError)
    assert "m@I1" in str(error)


def test_what_cannot_be_read_stops_the_sweep(world: SessionWorld) -> None:
    claimed(world, "m")
    world.files.folder.outbound_db.write_bytes(b"\xa5" * 9000)
    unchanged(world, lambda: apply(world), StaleInconsistentError)


def test_a_young_run_is_left_and_named(world: SessionWorld) -> None:
    claimed(world, "old")
    world.now = NOW - 60_000
    claimed(world, "young")
    swept = apply(world)
    assert [one.message_id for one in swept.plan.endings] == ["old"]
    assert [(one.run_id, one.gate) for one in swept.plan.left] == [("young@I1", SkipReason.YOUNG)]
    assert world.message("young")["status"] == "pending"


def test_more_runs_than_the_limit_are_refused(world: SessionWorld) -> None:
    for number in range(3):
        claimed(world, f"m{number}")
    unchanged(world, lambda: apply(world, replace(SCOPE, max_runs=2)), StaleScopeTooBroadError)


# --- bad input, and death in the middle


def test_what_changed_since_the_preview_is_refused(world: SessionWorld) -> None:
    claimed(world, "m")
    unchanged(world, lambda: apply(world, expected=["m@I1", "n@I1"]), StaleChangedError)


def test_what_changes_between_the_backup_and_the_transaction_is_refused(world: SessionWorld) -> None:
    claimed(world, "m")

    def finish(step: str, done: int, total: int) -> None:
        if step == "sync" and done == total:
            world.ack("completed", "m", by="I1")

    unchanged(world, lambda: apply(world, progress=finish), StaleChangedError)


@pytest.mark.parametrize("moment", ["copy", "verify", "sync"])
def test_a_sweep_that_dies_can_be_run_again(world: SessionWorld, moment: str) -> None:
    claimed(world, "m")

    def die(step: str, _done: int, _total: int) -> None:
        if step == moment:
            raise KeyboardInterrupt

    unchanged(world, lambda: apply(world, progress=die), KeyboardInterrupt)
    assert apply(world).plan.endings[0].status == "cancelled"


def test_a_death_in_the_transaction_leaves_nothing_half_done(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(world, "a")
    claimed(world, "b")
    ended: list[str] = []
    end = stale_sweep._end

    def once(db: connect.Writer, ending: Any, *rest: Any) -> None:
        if ended:
            raise KeyboardInterrupt
        ended.append(ending.message_id)
        end(db, ending, *rest)

    monkeypatch.setattr(stale_sweep, "_end", once)
    with pytest.raises(KeyboardInterrupt):
        apply(world)
    assert [world.message(one)["status"] for one in "ab"] == ["pending", "pending"]
    assert world.events("a") == ["accepted", "claimed"]
    monkeypatch.undo()
    assert len(apply(world).plan.endings) == 2


def test_a_locked_file_is_refused(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(world, "m")
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_MS", 20)
    with connect.open_owner(world.files.folder.inbound_db, connect.migrate.Role.INBOUND) as other:
        other.execute("BEGIN EXCLUSIVE")
        unchanged(world, lambda: apply(world), FileBusyError)


def test_a_file_of_a_newer_version_is_refused(world: SessionWorld) -> None:
    claimed(world, "m")
    world.change("PRAGMA user_version=99")
    unchanged(world, lambda: apply(world), SchemaTooNewError)


def test_a_corrupt_file_is_refused(world: SessionWorld) -> None:
    claimed(world, "m")
    path = world.files.folder.inbound_db
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    unchanged(world, lambda: apply(world), StorageError)


def test_a_file_that_is_not_a_database_is_refused(world: SessionWorld) -> None:
    path = world.files.folder.inbound_db
    path.write_bytes(b"no database at all" * 500)
    unchanged(world, lambda: apply(world), StorageError)


def test_another_program_s_database_is_refused_and_gets_none_of_our_tables(world: SessionWorld) -> None:
    path = world.files.folder.inbound_db
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE trace_runs(id TEXT)")
    error = unchanged(world, lambda: apply(world), UnusableFileError)
    assert "another program's" in str(error)


DIES = """
import os, signal, sys
from pathlib import Path
from daemon.core.run_evidence import RuntimeContext
from daemon.maintenance import stale_sweep
from daemon.core.stale_plan import Scope
from daemon.store.dead_letters import Operator
from daemon.core.session_key import SessionKey
from daemon.store.session_files import SessionFiles
from schema.plain_file import ReadLimits

root, moment, now = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
end, verify = stale_sweep._end, stale_sweep._verify
ended = []

def die(at):
    if at == moment:
        os.kill(os.getpid(), signal.SIGKILL)

def killed_end(*arguments):
    die(f"end {len(ended)}")
    ended.append(1)
    end(*arguments)
    die(f"ended {len(ended)}")

def killed_verify(*arguments):
    die("committed")
    return verify(*arguments)

stale_sweep._end, stale_sweep._verify = killed_end, killed_verify
key = SessionKey("echo", "s")
stale_sweep.apply(
    SessionFiles(root, ReadLimits()), key, RuntimeContext(now, synced=False), Scope(session=key),
    Operator("root", "killed"), progress=lambda step, done, total: die(step if done < total else f"{step} done"),
)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    "moment",
    ["copy done", "verify", "verify done", "sync", "sync done", "end 0", "ended 1", "end 1", "ended 2", "committed"],
)
def test_a_sweep_that_is_killed_leaves_a_whole_file_and_is_run_again(world: SessionWorld, moment: str) -> None:
    claimed(world, "a")
    claimed(world, "b")
    command = [sys.executable, "-c", DIES, str(world.root), moment, str(NOW)]
    died = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    statuses = {world.message("a")["status"], world.message("b")["status"]}
    assert statuses == ({"cancelled"} if moment == "committed" else {"pending"}), "all or nothing"
    check_session(world.root)
    again = apply(world)
    assert len(again.plan.endings) == (0 if moment == "committed" else 2)
    assert {world.message("a")["status"], world.message("b")["status"]} == {"cancelled"}
    for backup in world.files.folder.inbox.glob("*.sqlite"):
        backups.verify(backup)  # a file named as a backup is never half of one


@pytest.mark.parametrize("error", [BackupFailedError, BackupNotVerifiedError])
def test_no_sweep_without_a_verified_backup(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    claimed(world, "m")

    def refuse(*_: object, **__: object) -> None:
        raise error("no")

    monkeypatch.setattr(backups, "_copy" if error is BackupFailedError else "verify", refuse)
    unchanged(world, lambda: apply(world), error)
    assert list(world.files.folder.inbox.glob("*.sqlite*")) == []


def test_a_sweep_that_had_no_effect_is_reported(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(world, "m")
    monkeypatch.setattr(stale_sweep, "_end", lambda *_: None)
    with pytest.raises(StaleNotVerifiedError, match="m@I1 reads pending"):
        apply(world)
