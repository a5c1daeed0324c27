"""When a session's files hold nothing for any report, and that everything which some report tells of makes them not idle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.run_evidence import RuntimeContext
from daemon.inspect.idle_check import is_idle
from daemon.inspect.reading import read_newest_runs
from schema.plain_file import ReadLimits
from tests.support.forensic_world import AGENT, ForensicWorld
from tests.support.idle_sessions import finished
from tests.support.session_world import NOW, SessionWorld

Change = Callable[[SessionWorld], object]
DELIVERY = (
    "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at) VALUES ('a1', 1, 'x', '{}', 1)"
)
FAILED = (
    "INSERT INTO messages_in(id, seq, kind, timestamp, status, content) VALUES ('f1', 100, 'chat', '', 'failed', '{}')",
    "INSERT INTO message_history(message_id, event, at) VALUES ('f1', 'failed', 1)",
)
CLOSED = "INSERT INTO dead_letters_closed(id, outcome, at, by) VALUES ('{}', 'dropped', 1, 'me')"


def sql(*statements: str) -> Change:
    def change(session: SessionWorld) -> None:
        for statement in statements:
            session.change(statement)

    return change


def ack(status: str) -> Change:
    return lambda session: session.ack(status, "m0", by="I0")


def write(name: str, data: bytes) -> Change:
    return lambda session: (session.root / name).write_bytes(data)


def tear(name: str) -> Change:
    def change(session: SessionWorld) -> None:
        path = session.root / name
        path.write_bytes(path.read_bytes()[:5000])

    return change


@pytest.fixture
def session(tmp_path: Path) -> SessionWorld:
    world = ForensicWorld(tmp_path / "d")
    finished(world, ["s"])
    return SessionWorld(tmp_path / "d" / "sessions" / AGENT / "s")


def idle(session: SessionWorld) -> bool:
    return is_idle(session.files.folder, ReadLimits(), NOW)


def test_a_finished_conversation_is_idle(session: SessionWorld) -> None:
    assert idle(session)


def test_a_session_that_no_container_ever_had_is_idle(tmp_path: Path) -> None:
    assert idle(SessionWorld(tmp_path / "sessions" / AGENT / "s"))


ODD: dict[str, Change] = {
    "a message": lambda session: session.accept("m1"),
    "context alone": lambda session: session.accept("m1", trigger=False),
    "a message for later": lambda session: session.accept("m1", process_after=NOW + 10**9),
    "a paused message": sql("UPDATE messages_in SET status = 'paused'"),
    "a message without a status": sql("UPDATE messages_in SET status = NULL"),
    "a state that nobody knows": sql("UPDATE messages_in SET status = 'lost'"),
    "a dead message": sql(*FAILED),
    "a dead answer": sql(DELIVERY.format("dead")),
    "an answer to send": sql(DELIVERY.format("queued")),
    "an answer that is sent": sql(DELIVERY.format("intended")),
    "an answer that is tried again": sql(DELIVERY.format("retrying")),
    "an answer in no known state": sql(DELIVERY.format("flying")),
    "a series to arm again": sql("UPDATE messages_in SET recurrence = '0 9 * * *'"),
    "a schedule": sql(
        "INSERT INTO schedules(key, times, content, channel_type, platform_id, origin, state, next_at, changed_at, changed_by)"
        " VALUES ('k', '{}', '{}', 'local', 'me', 'operator', 'active', 9, 1, 'me')"
    ),
    "an open claim": sql("UPDATE attempts SET outcome = NULL"),
    "a status without its history": sql("DELETE FROM message_history WHERE event = 'completed'"),
    "a history that says otherwise": sql("UPDATE message_history SET event = 'failed' WHERE event = 'completed'"),
    "an ack that says otherwise": ack("failed"),
    "history of the future": sql(f"UPDATE message_history SET at = {NOW + 3_600_000}"),
    "an answer that the host has not seen": lambda session: session.say("a9"),
    "a journal": write("out/outbound.db-journal", b""),
    "a file that is none of ours": write("in/inbound.db", b"no database" * 1000),
    "a torn outbound.db": tear("out/outbound.db"),
    "a torn inbound.db": tear("in/inbound.db"),
    "no inbound.db": lambda session: session.files.folder.inbound_db.unlink(),
    "a newer inbound.db": sql("PRAGMA user_version = 99"),
    "an older shape": sql("DROP TABLE dead_letters_closed"),
}


@pytest.mark.parametrize("change", ODD)
def test_it_is_not_idle_with(session: SessionWorld, change: str) -> None:
    ODD[change](session)
    assert not idle(session)


def unack(session: SessionWorld) -> None:
    session.unclaim("m0")


def ack_twice(session: SessionWorld) -> None:
    """As a runner's file without the contract's key may say it."""
    with session.runner() as db, db.transaction():
        db.execute("ALTER TABLE processing_ack RENAME TO old")
        db.execute("CREATE TABLE processing_ack(message_id TEXT, status TEXT, status_changed TEXT, incarnation TEXT)")
        db.execute("INSERT INTO processing_ack SELECT message_id, status, status_changed, incarnation FROM old")
        db.execute("INSERT INTO processing_ack SELECT message_id, 'failed', status_changed, incarnation FROM old")


TOLD: dict[str, Change] = {
    "by one run, as all sources say": sql(),
    "by an attempt that failed": sql("UPDATE attempts SET outcome = 'failed'"),
    "by an attempt that was given back": sql("UPDATE attempts SET outcome = 'released'"),
    "by no attempt": sql("DELETE FROM attempts"),
    "by two attempts": sql("INSERT INTO attempts VALUES ('m0', 'I9', 2, 3, 'orphaned')"),
    "by a later attempt that failed": sql(f"INSERT INTO attempts VALUES ('m0', 'I9', {NOW + 1}, {NOW + 2}, 'failed')"),
    "in the history of another run": sql("UPDATE message_history SET incarnation = 'I9' WHERE event = 'completed'"),
    "in the history of no run": sql("UPDATE message_history SET incarnation = NULL WHERE event = 'completed'"),
    "beside a failure": sql("INSERT INTO message_history(message_id, event, incarnation, at) VALUES ('m0', 'failed', 'I0', 1)"),
    "after a try": sql("INSERT INTO message_history(message_id, event, at) VALUES ('m0', 'retry_scheduled', 1)"),
    "by migration": sql("UPDATE message_history SET event = 'migrated', detail = '{\"status\":\"completed\"}' WHERE event = 'completed'"),
    "with an ack of another run": lambda session: session.ack("completed", "m0", by="I9"),
    "with an ack of nobody": lambda session: session.ack("completed", "m0", by=None),
    "with an ack that is void": sql("UPDATE messages_in SET void_ack = (SELECT timestamp FROM messages_in)"),
    "with a claim": ack("processing"),
    "with two acks": ack_twice,
    "without an ack": unack,
    "as cancelled": sql("UPDATE messages_in SET status = 'cancelled'", "UPDATE message_history SET event = 'cancelled' WHERE event = 'completed'"),
}  # fmt: skip


@pytest.mark.parametrize("how", TOLD)
def test_what_is_finished_is_judged_as_the_list_of_stale_runs_judges_it(session: SessionWorld, how: str) -> None:
    TOLD[how](session)
    read = read_newest_runs(session.files.folder, 1000, RuntimeContext(NOW, synced=False), ReadLimits())
    assert (read.errors, read.news) == ([], False)
    assert idle(session) is not any(run.verdict.stale for run in read.runs)


@pytest.mark.parametrize(
    "statements", [(*FAILED, CLOSED.format("f1")), (DELIVERY.format("dead"), CLOSED.format("a1"))], ids=["in", "out"]
)
def test_a_dead_letter_that_was_dealt_with_asks_for_nothing(session: SessionWorld, statements: tuple[str, ...]) -> None:
    sql(*statements)(session)
    assert idle(session)
