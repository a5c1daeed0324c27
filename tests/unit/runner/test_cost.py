"""The runner's polls cost what is due, never what is done: every query of a poll, a claim and a commit goes by an index."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

import schema.connect
from container_runner.shared.reply import Reply
from container_runner.store import Store
from schema.rows import AckStatus
from tests.support.session_world import NOW, SessionWorld
from tests.unit.store.test_cost import fill

SMALL = ("session_routing", "destinations", "session_state", "CONSTANT", "sqlite_schema", "container_state")
ANY_ROW = re.compile(r"SELECT 1 FROM [\w.]+ LIMIT 1")
PARTIAL = ("messages_in_pending", "processing_ack_claimed")


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "s")
    fill(made, 300)
    for name in ("new", "other"):
        made.accept(name)
    made.accept("late", process_after=NOW + 3_600_000)
    return made


@pytest.fixture
def seen(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement of a life: start, poll, claim, poll again, commit, an idle poll."""
    statements: list[str] = []
    connect = schema.connect._connect

    def tracing(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(schema.connect, "_connect", tracing)
    store = Store(world.files.folder.inbox, world.files.folder.outbox, "i2", lambda: NOW)
    store.start()
    batch = store.claim(1, first_poll=True)
    assert batch is not None
    assert [message.id for message in batch.messages] == ["new"]
    reply = Reply(kind="chat", content="{}", in_reply_to="new", platform_id=None, channel_type=None, thread_id=None)
    store.finish(store.outbound_rows([reply]), ["new"], AckStatus.COMPLETED)
    assert store.claim(10, first_poll=False) is not None
    assert store.claim(10, first_poll=False) is None
    return statements


def scans(world: SessionWorld, statements: list[str]) -> list[str]:
    """Statements that walk a whole table, as SQLite plans them; of what is open, a walk is what is wanted.

    One that asks for any row at all reads one.
    """
    connection = sqlite3.connect(world.files.folder.outbound_db)
    connection.execute("ATTACH DATABASE ? AS inbound", (str(world.files.folder.inbound_db),))
    found: list[str] = []
    for sql in statements:
        if sql.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE")) and not ANY_ROW.fullmatch(sql):
            for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}"):
                detail = str(row[3])
                walks = detail.startswith("SCAN") and detail.split()[1].rpartition(".")[2] not in SMALL
                if walks and not any(name in detail for name in PARTIAL):
                    found.append(f"{detail}: {sql}")
    connection.close()
    return found


def test_no_query_of_the_runner_scans_what_is_done(world: SessionWorld, seen: list[str]) -> None:
    assert any("messages_in" in sql for sql in seen)
    assert scans(world, seen) == []


def test_what_is_due_is_found_by_the_index_of_what_is_pending(world: SessionWorld, seen: list[str]) -> None:
    connection = sqlite3.connect(world.files.folder.outbound_db)
    connection.execute("ATTACH DATABASE ? AS inbound", (str(world.files.folder.inbound_db),))
    due = [sql for sql in seen if "NOT EXISTS" in sql]
    assert due
    for sql in due:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert any("messages_in_pending" in line for line in plan), plan
        assert any("processing_ack" in line and line.startswith(("SEARCH", "CORRELATED")) for line in plan), plan
        assert not any("TEMP B-TREE" in line for line in plan), plan
    connection.close()


def test_the_search_for_scans_is_not_blind(world: SessionWorld) -> None:
    bad = ["SELECT * FROM inbound.messages_in WHERE status <> 'pending'", "SELECT count(*) FROM processing_ack"]
    assert len(scans(world, bad)) == 2
