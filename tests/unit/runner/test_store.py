"""The runner's SQL: what is due, in which order, who claims, and that a turn's end is one commit."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

import pytest

from container_runner.providers.protocol import DeclaredTimeout
from container_runner.shared.errors import ClaimLostError, InboundUnreadableError
from container_runner.shared.reply import Reply
from container_runner.store import Batch, Store
from schema.errors import ClawbusError, FileBusyError, SchemaTooNewError, StorageError
from schema.handles import Writer
from schema.migrate import OUTBOUND_TABLES
from schema.rows import AckStatus, Address, TurnNote, TurnUsage
from tests.support.session_kit import SessionKit

NOW: Final = 1_795_226_400_000  # 2026-11-21T02:00:00Z


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


@pytest.fixture
def store(kit: SessionKit) -> Store:
    return make_store(kit)


def make_store(kit: SessionKit, incarnation: str = "I2") -> Store:
    return Store(kit.folder.inbox, kit.folder.outbox, incarnation, lambda: NOW)


def reply(text: str = "answer", in_reply_to: str | None = "m1") -> Reply:
    return Reply("chat", json.dumps({"text": text}), in_reply_to, "local", "me", None)


def ids(batch: Batch | None) -> list[str]:
    return [] if batch is None else [message.id for message in batch.messages]


def claim(store: Store, limit: int = 10, *, first_poll: bool = False) -> list[str]:
    return ids(store.claim(limit, first_poll=first_poll))


# --- due -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process_after", "due"),
    [
        (None, True),
        ("2026-11-21T02:00:00.000Z", True),
        ("2026-11-21T02:00:00.001Z", False),
        ("2026-11-21 01:59:59", True),  # SQLite's datetime(): no zone is UTC, and a space sorts before 'T'
        ("2026-11-21 02:00:01", False),
        ("2026-11-21T03:59:59+02:00", True),  # as a string this is later than now
        ("2026-11-21T01:30:00-01:00", False),  # as a string this is earlier than now
        ("no time at all", True),
    ],
)
def test_due_is_by_instant(kit: SessionKit, store: Store, process_after: str | None, due: bool) -> None:
    kit.add("m1", process_after=process_after)
    assert claim(store) == (["m1"] if due else [])


@pytest.mark.parametrize(
    ("row", "not_after", "quiet_s"),
    [
        ({"status": "completed", "process_after": "2026-11-21T02:01:00Z"}, None, inf),
        ({"process_after": "2026-11-21T02:01:00Z"}, None, 60.0),
        ({"process_after": "2026-11-21T02:01:00Z"}, "2026-11-21T02:00:30Z", 30.0),
        ({"process_after": "no time at all", "trigger": 0}, None, inf),
        ({"on_wake": 1}, None, inf),
        ({"on_wake": 1}, "2026-11-21T01:00:00Z", inf),
    ],
)
def test_a_claim_says_for_how_long_only_a_change_can_make_a_message_due(
    kit: SessionKit, store: Store, row: dict[str, Any], not_after: str | None, quiet_s: float
) -> None:
    kit.add("m1", **row)
    mark(kit, "m1", not_after=not_after)
    assert claim(store) == []
    assert store.quiet_s == pytest.approx(quiet_s, abs=0.01)


def test_a_claimed_message_is_quiet_and_a_new_one_is_not(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    assert claim(store) == ["m1"]
    assert store.quiet_s == 0.0
    assert claim(store) == []
    assert store.quiet_s == inf
    kit.add("m2")
    assert ids(store.claim(10, first_poll=False, joins=True)) == ["m2"]
    assert store.quiet_s == 0.0


@pytest.mark.parametrize("status", ["completed", "failed", "paused", "cancelled"])
def test_only_pending_rows_are_due(kit: SessionKit, store: Store, status: str) -> None:
    kit.add("m1", status=status)
    assert claim(store) == []


@pytest.mark.parametrize("status", list(AckStatus))
def test_an_acked_row_is_not_claimed_again(kit: SessionKit, store: Store, status: AckStatus) -> None:
    kit.add("m1")
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO processing_ack VALUES ('m1', ?, '2026-11-21T00:00:00.000Z', 'I1')", (status.value,))
    assert claim(store) == []


def test_a_claim_is_stamped_and_makes_no_second_one(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    assert claim(store) == ["m1"]
    assert claim(store) == []
    with kit.runner_file() as db:
        (row,) = db.all("SELECT * FROM processing_ack")
    assert dict(row) == {
        "message_id": "m1",
        "status": "processing",
        "status_changed": "2026-11-21T02:00:00.000Z",
        "incarnation": "I2",
    }


def test_nothing_due_writes_nothing(kit: SessionKit, store: Store) -> None:
    store.start()
    before = kit.folder.outbound_db.read_bytes()
    assert claim(store) == []
    assert kit.folder.outbound_db.read_bytes() == before


def test_what_is_due_costs_no_look_at_what_is_done(
    kit: SessionKit, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every query that a claim runs over messages_in goes by the index of pending rows."""
    asked: list[tuple[str, Any]] = []
    original = Writer.all

    def recording(self: Writer, sql: str, params: Any = ()) -> list[sqlite3.Row]:
        asked.append((sql, params))
        return original(self, sql, params)

    for name in ("c1", "c2", "t3"):
        kit.add(name, trigger=0 if name.startswith("c") else 1)
    monkeypatch.setattr(Writer, "all", recording)
    assert claim(store, 2) == ["c2", "t3"]
    monkeypatch.undo()
    queries = [(sql, params) for sql, params in asked if "inbound.messages_in" in sql]
    assert len(queries) == 5, "two of the look before the write lock, three of the claim"
    with kit.runner_file() as db:
        db.attach_reader(kit.folder.inbound_db, "inbound")
        for sql, params in queries:
            plan = [row["detail"] for row in db.all(f"EXPLAIN QUERY PLAN {sql}", params)]
            assert any("messages_in_pending" in step for step in plan), plan
            assert not any("TEMP B-TREE" in step for step in plan), plan


# --- batches ---------------------------------------------------------------------------------------------------------

CONTEXT: Final = "c"


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        ("c1 c2", 10, ""),  # context alone starts nothing
        ("c1 t2 c3", 10, "c1 t2 c3"),  # it rides along, in seq order
        ("t1 t2 t3", 2, "t1 t2"),  # oldest first
        ("c1 c2 c3 c4 t5", 3, "c3 c4 t5"),  # context never hides a trigger
        ("c1 c2 c3 t4 t5", 3, "c2 c3 t4"),
        ("c1 c2 t3", 1, "t3"),
        ("c1 c2 t3 c4", 4, "c1 c2 t3 c4"),
    ],
)
def test_batches(kit: SessionKit, store: Store, rows: str, limit: int, expected: str) -> None:
    for name in rows.split():
        kit.add(name, trigger=0 if name.startswith(CONTEXT) else 1)
    assert claim(store, limit) == expected.split()


def test_context_that_did_not_fit_rides_with_later_turns(kit: SessionKit, store: Store) -> None:
    for name in ("c1", "c2", "c3", "t4"):
        kit.add(name, trigger=0 if name.startswith(CONTEXT) else 1)
    assert claim(store, 2) == ["c3", "t4"]
    assert claim(store, 2) == []
    kit.add("t5")
    assert claim(store, 5) == ["c1", "c2", "t5"]


def test_on_wake_rows_are_for_the_first_poll(kit: SessionKit, store: Store) -> None:
    kit.add("m1", on_wake=1)
    assert claim(store) == []
    assert claim(store, first_poll=True) == ["m1"]


def test_a_batch_brings_what_belongs_to_a_turn(kit: SessionKit, store: Store) -> None:
    kit.add("m1", "text", address=("webhook", "ci", "t1"))
    kit.route("local", "me", None)
    kit.destination("ops", "webhook", "ops-hook")
    kit.destination("reviewer", None, None, group="review-group")
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO session_state VALUES ('k', 'v', '2026-11-21T00:00:00.000Z')")
    batch = store.claim(10, first_poll=False)
    assert batch is not None
    assert batch.routing == Address("local", "me")
    assert [(place.name, place.channel_type, place.platform_id) for place in batch.destinations] == [
        ("ops", "webhook", "ops-hook"),
        ("reviewer", "agent", "review-group"),
    ]
    assert batch.state == {"k": "v"}
    (message,) = batch.messages
    assert (message.channel_type, message.platform_id, message.thread_id) == ("webhook", "ci", "t1")
    assert message.parsed() == {"text": "text"}


def test_an_older_hosts_file_is_read(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    with sqlite3.connect(tmp_path / "in" / "inbound.db") as db:
        db.execute(
            "CREATE TABLE messages_in (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT NOT NULL, timestamp TEXT NOT"
            " NULL, status TEXT DEFAULT 'pending', process_after TEXT, recurrence TEXT, tries INTEGER DEFAULT 0,"
            " platform_id TEXT, channel_type TEXT, thread_id TEXT, content TEXT NOT NULL)"
        )
        db.execute("INSERT INTO messages_in(id, seq, kind, timestamp, content) VALUES ('old', 2, 'chat', 'x', 'plain')")
    db.close()
    batch = Store(tmp_path / "in", tmp_path / "out", "I1", lambda: NOW).claim(10, first_poll=False)
    assert batch is not None
    assert batch.messages[0].parsed() == "plain"
    assert (batch.routing, batch.destinations) == (None, ())


# --- start, release --------------------------------------------------------------------------------------------------


def test_start_drops_stale_claims_and_the_tool_and_keeps_what_is_done(kit: SessionKit) -> None:
    for name in ("m1", "m2", "m3", "m4"):
        kit.add(name)
    with kit.runner_file() as db, db.transaction():
        db.executemany(
            "INSERT INTO processing_ack VALUES (?, ?, '2026-11-21T00:00:00.000Z', ?)",
            [("m1", "processing", "I1"), ("m2", "processing", None), ("m3", "completed", "I1"), ("m4", "failed", None)],
        )
    old = make_store(kit, "I1")
    old.set_tool(DeclaredTimeout("Bash", 5), NOW)
    store = make_store(kit)
    assert store.start() == 2
    assert kit.acks() == {"m3": "completed", "m4": "failed"}
    assert kit.tool()["current_tool"] is None
    assert claim(store) == ["m1", "m2"]


@pytest.mark.parametrize("table", OUTBOUND_TABLES)
def test_a_table_that_the_agent_dropped_comes_back(kit: SessionKit, store: Store, table: str) -> None:
    """Each turn was done, could not be committed, and was done again in the next container."""
    kit.add("m1")
    assert claim(store) == ["m1"]
    with kit.runner_file() as db, db.transaction():
        db.execute(f"DROP TABLE {table}")
    rows = store.outbound_rows([reply()])
    note, usage = TurnNote("CODE", "why"), ("m1", TurnUsage(input_tokens=1))
    finish = partial(store.finish, rows, ["m1"], AckStatus.FAILED, note=note, usage=usage, state={"key": "value"})
    with pytest.raises(ClawbusError) as refused:
        finish()
    assert store.repair(refused.value) == [table]
    assert store.repair(refused.value) == []
    assert finish()
    assert kit.acks() == {"m1": "failed"}


def test_an_error_that_names_no_table_opens_no_file(kit: SessionKit, store: Store) -> None:
    with kit.runner_file() as db, db.transaction():
        db.execute("DROP TABLE deferrals")
    assert store.repair(FileBusyError("outbound.db: database is locked")) == []


def test_release_gives_back_own_claims_only(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    kit.add("m2")
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO processing_ack VALUES ('m2', 'processing', '2026-11-21T00:00:00.000Z', 'I9')")
    store.claim(10, first_poll=False, silence=DeclaredTimeout("command", 60))
    assert store.release_all() == 1
    assert kit.acks() == {"m2": "processing"}
    assert kit.tool()["current_tool"] is None


def test_a_declared_silence_stands_with_the_claim(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    store.claim(10, first_poll=False, silence=DeclaredTimeout("command", 61.5))
    tool = kit.tool()
    assert (tool["current_tool"], tool["tool_declared_timeout_ms"]) == ("command", 61_500)
    assert tool["tool_started_at"] == "2026-11-21T02:00:00.000Z"


# --- the end of a turn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inbound", "expected"), [(["m1"], [3, 5]), (["m1", "m2", "m3"], [7, 9])])
def test_seq_is_odd_and_above_both_files(
    kit: SessionKit, store: Store, inbound: list[str], expected: list[int]
) -> None:
    for name in inbound:
        kit.add(name)
    claim(store)
    store.finish(store.outbound_rows([reply("a"), reply("b")]), inbound, AckStatus.COMPLETED)
    assert [row["seq"] for row in kit.out()] == expected


def test_seq_goes_on_above_the_runners_own_rows(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    claim(store)
    store.finish(store.outbound_rows([reply() for _ in range(4)]), ["m1"], AckStatus.COMPLETED)
    kit.change("INSERT INTO messages_in(id, seq, kind, timestamp, content) VALUES ('m2', 4, 'chat', '', '{}')")
    claim(store)
    store.finish(store.outbound_rows([reply(in_reply_to="m2")]), ["m2"], AckStatus.COMPLETED)
    assert [row["seq"] for row in kit.out()] == [3, 5, 7, 9, 11]


def test_answer_ack_state_and_tool_are_one_commit(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    store.claim(10, first_poll=False, silence=DeclaredTimeout("command", 60))
    store.finish(store.outbound_rows([reply()]), ["m1"], AckStatus.COMPLETED, state={"k": "v", "gone": None})
    assert kit.acks() == {"m1": "completed"}
    assert [row["in_reply_to"] for row in kit.out()] == ["m1"]
    assert kit.state() == {"k": "v"}
    assert kit.tool()["current_tool"] is None
    kit.check()


def test_a_commit_that_fails_leaves_nothing_of_itself(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    claim(store)
    with kit.runner_file() as db, db.transaction():
        db.execute("CREATE TRIGGER no_acks BEFORE INSERT ON processing_ack BEGIN SELECT raise(ABORT, 'full'); END")
    rows = store.outbound_rows([reply()])
    with pytest.raises(StorageError):
        store.finish(rows, ["m1"], AckStatus.COMPLETED)
    assert kit.out() == []
    assert kit.acks() == {"m1": "processing"}
    with kit.runner_file() as db, db.transaction():
        db.execute("DROP TRIGGER no_acks")
    store.finish(rows, ["m1"], AckStatus.COMPLETED)
    kit.check()


def test_a_commit_of_unknown_effect_may_be_repeated(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    claim(store)
    rows = store.outbound_rows([reply()])
    for _ in range(2):
        store.finish(rows, ["m1"], AckStatus.COMPLETED)
    assert len(kit.out()) == 1


def test_a_superseded_runner_commits_nothing(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    claim(store)
    younger = make_store(kit, "I3")
    younger.start()
    assert claim(younger) == ["m1"]
    with pytest.raises(ClaimLostError):
        store.finish(store.outbound_rows([reply()]), ["m1"], AckStatus.COMPLETED)
    assert kit.out() == []
    assert kit.claimants() == {"m1": "I3"}


def test_a_file_put_in_the_place_of_outbound_db_gets_the_next_commit(kit: SessionKit, store: Store) -> None:
    """The runner keeps its file open, but never one that no longer lies under its name."""
    kit.add("m1")
    assert claim(store) == ["m1"]
    copy = kit.folder.outbound_db.with_name("copy.db")
    shutil.copyfile(kit.folder.outbound_db, copy)
    copy.replace(kit.folder.outbound_db)
    assert store.finish(store.outbound_rows([reply()]), ["m1"], AckStatus.COMPLETED)
    with closing(sqlite3.connect(kit.folder.outbound_db)) as db:
        assert db.execute("SELECT status FROM processing_ack").fetchall() == [("completed",)]


def test_a_host_that_is_upgraded_meanwhile_is_read_by_its_new_shape(kit: SessionKit, store: Store) -> None:
    with closing(sqlite3.connect(kit.folder.inbound_db)) as db:
        db.execute("DROP TABLE draining")
    kit.add("m1")
    assert claim(store) == ["m1"]
    with closing(sqlite3.connect(kit.folder.inbound_db)) as db, db:
        db.execute("CREATE TABLE draining (incarnation TEXT PRIMARY KEY, since INTEGER NOT NULL, forced INTEGER)")
        db.execute("INSERT INTO draining VALUES ('I2', 1, 0)")
    kit.add("m2")
    assert claim(store) == []


def test_an_answer_survives_an_agent_that_emptied_its_folder(kit: SessionKit, store: Store) -> None:
    kit.add("m1")
    claim(store)
    kit.folder.outbound_db.unlink()
    store.finish(store.outbound_rows([reply()]), ["m1"], AckStatus.COMPLETED)
    kit.check()
    assert kit.acks() == {"m1": "completed"}


def test_follow_ups_that_nobody_took_are_given_back_with_the_turns_end(kit: SessionKit, store: Store) -> None:
    for name in ("m1", "m2"):
        kit.add(name)
    claim(store)
    store.finish(store.outbound_rows([reply()]), ["m1"], AckStatus.COMPLETED, released=["m2"])
    assert kit.acks() == {"m1": "completed"}
    assert claim(store) == ["m2"]


# --- files that cannot be read now -----------------------------------------------------------------------------------


def _missing(path: Path) -> None:
    path.unlink()


def _hot_journal(path: Path) -> None:
    """What a host killed in mid-commit leaves: bytes of a spilled transaction and its journal."""
    journal = path.with_name(path.name + "-journal")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA cache_size=1")
    db.execute("BEGIN IMMEDIATE")
    db.executemany(
        "INSERT INTO messages_in(id, seq, kind, timestamp, content) VALUES (?, ?, 'chat', '', ?)",
        [(f"lost{number}", 1000 + 2 * number, "x" * 4000) for number in range(50)],
    )
    seen = (path.read_bytes(), journal.read_bytes())
    db.execute("ROLLBACK")
    db.close()
    path.write_bytes(seen[0])
    journal.write_bytes(seen[1])


@pytest.mark.parametrize("damage", [_missing, _hot_journal])
def test_an_unreadable_inbound_is_its_own_error(kit: SessionKit, store: Store, damage: Callable[[Path], None]) -> None:
    kit.add("m1")
    damage(kit.folder.inbound_db)
    with pytest.raises(InboundUnreadableError):
        store.claim(10, first_poll=False)
    kit.host().close()  # the daemon is back: its opening makes or recovers the file
    kit.add("m2")
    assert "m2" in claim(store)


def test_the_runner_cannot_write_inbound(kit: SessionKit) -> None:
    with kit.runner_file() as db:
        db.attach_reader(kit.folder.inbound_db, "inbound")
        with pytest.raises(Exception, match="readonly"), db.transaction():
            db.execute("DELETE FROM inbound.messages_in")


def test_a_commit_names_no_super_journal(kit: SessionKit, store: Store) -> None:
    """The host refuses a journal that names one; an attached file must not make SQLite write it."""
    kit.add("m1")
    claim(store)
    journal = kit.folder.outbox / "outbound.db-journal"
    with kit.runner_file() as db:
        db.attach_reader(kit.folder.inbound_db, "inbound")
        db.execute("PRAGMA main.cache_size=1")
        with db.transaction():
            db.all("SELECT * FROM inbound.messages_in")
            db.executemany(
                "INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES (?, ?, '', 'chat', ?)",
                [(f"o{number}", 2 * number + 1, "x" * 4000) for number in range(50)],
            )
            assert b"inbound" not in journal.read_bytes()


def test_a_newer_file_is_left_alone(kit: SessionKit, store: Store) -> None:
    with kit.runner_file() as db:
        db.execute("PRAGMA user_version=999")
    before = kit.folder.outbound_db.read_bytes()
    with pytest.raises(SchemaTooNewError):
        store.start()
    assert kit.folder.outbound_db.read_bytes() == before


def test_the_bell_is_rung_for_an_answer_and_not_for_a_claim(kit: SessionKit, store: Store) -> None:
    bell = kit.folder.outbox / ".bell"
    kit.add("m1")
    assert claim(store) == ["m1"]
    assert not bell.exists()
    store.finish(store.outbound_rows([reply()]), ["m1"], AckStatus.COMPLETED)
    assert bell.exists()


# --- fate: alone, in order, later, in time -----------------------------------------------------------------------------

SOON: Final = "2026-11-21T02:00:05.000Z"
PAST: Final = "2026-11-21T01:59:00.000Z"


def mark(kit: SessionKit, message_id: str, **columns: object) -> None:
    """What the host sets in messages_in."""
    names = ", ".join(f"{name} = ?" for name in columns)
    kit.change(f"UPDATE messages_in SET {names} WHERE id = ?", (*columns.values(), message_id))


@pytest.mark.parametrize("columns", [{"tries": 1}, {"solo": 1}])
def test_what_is_tried_again_shares_its_turn_with_no_other_trigger(
    kit: SessionKit, store: Store, columns: dict[str, object]
) -> None:
    for name in ("t1", "c2", "t3", "c4", "t5", "t6"):
        kit.add(name, trigger=0 if name.startswith(CONTEXT) else 1)
    mark(kit, "t3", **columns)
    assert claim(store) == ["t1", "c2"], "a turn ends before it"
    assert claim(store) == ["t3", "c4"], "and what follows it has the next one"
    assert claim(store) == ["t5", "t6"]


def test_what_the_runner_names_is_tried_alone(kit: SessionKit, store: Store) -> None:
    for name in ("t1", "t2"):
        kit.add(name)
    assert ids(store.claim(10, first_poll=False, solo={"t1", "t2"})) == ["t1"]
    assert ids(store.claim(10, first_poll=False, solo={"t1", "t2"})) == ["t2"]


def test_context_of_two_dead_turns_rides_with_no_retry_but_with_the_next_fresh_message(
    kit: SessionKit, store: Store
) -> None:
    kit.add("c1", trigger=0)
    kit.add("t2")
    mark(kit, "c1", tries=1)
    mark(kit, "t2", tries=1)
    assert claim(store) == ["c1", "t2"], "the first retry has its context"
    store.release_all()
    mark(kit, "c1", tries=2)
    mark(kit, "t2", tries=2)
    assert claim(store) == ["t2"], "the second does without what may have killed it"
    kit.add("t3")
    assert claim(store) == ["c1", "t3"]


def test_a_message_that_waits_for_its_retry_holds_back_what_came_after_it(kit: SessionKit, store: Store) -> None:
    for name in ("t1", "t2", "t3"):
        kit.add(name)
    mark(kit, "t2", tries=1, solo=1, holds=1, process_after=SOON)
    assert claim(store) == ["t1"]
    assert claim(store) == [], "t3 waits for t2"
    mark(kit, "t2", process_after=PAST)
    assert claim(store) == ["t2"]
    assert claim(store) == ["t3"]


@pytest.mark.parametrize(
    "columns",
    [
        {"holds": 0, "tries": 1},  # order = "ready"
        {"holds": 1, "status": "cancelled"},
        {"holds": 1, "on_wake": 1},  # it waits for a new container, which may never come
        {"holds": 1, "trigger": 0},
        {"holds": 1, "not_after": PAST},
    ],
)
def test_what_holds_nobody_back(kit: SessionKit, store: Store, columns: dict[str, object]) -> None:
    kit.add("t1", process_after=SOON)
    kit.add("t2")
    assert claim(store) == ["t2"], "a message scheduled by its sender is not earlier"
    store.release_all()
    mark(kit, "t1", **columns)
    assert claim(store) == ["t2"]


def test_a_message_that_has_expired_is_not_begun(kit: SessionKit, store: Store) -> None:
    for name in ("t1", "t2"):
        kit.add(name)
    mark(kit, "t1", not_after="2026-11-21T02:00:00.000Z")
    mark(kit, "t2", not_after="2026-11-21T02:00:00.001Z")
    assert claim(store) == ["t2"]


def deferrals(kit: SessionKit) -> list[dict[str, Any]]:
    with kit.runner_file() as db:
        return [dict(row) for row in db.all("SELECT * FROM deferrals ORDER BY message_id")]


def test_later_is_an_ack_until_the_host_has_taken_note_of_it(kit: SessionKit, store: Store) -> None:
    kit.add("t1")
    kit.add("t2")
    assert claim(store, 1) == ["t1"]
    assert store.defer(["t1"], retry_at=NOW + 3000, reason="429")
    assert kit.acks() == {"t1": "later"}
    assert deferrals(kit) == [
        {"message_id": "t1", "deferral": 1, "retry_at": "2026-11-21T02:00:03.000Z", "reason": "429"}
    ]
    assert claim(store) == [], "nobody knows yet whether t2 may pass"
    mark(kit, "t1", deferrals=1, holds=0, process_after=SOON)
    assert claim(store) == ["t2"]
    mark(kit, "t1", process_after=PAST)
    assert claim(store) == ["t1"]
    assert store.defer(["t1"], retry_at=None, reason=None)
    assert [row["deferral"] for row in deferrals(kit)] == [2]
    assert claim(store) == [], "the second is another one"
    mark(kit, "t1", deferrals=2)
    assert claim(store) == ["t1"]
    store.finish(store.outbound_rows([reply(in_reply_to="t1")]), ["t1"], AckStatus.COMPLETED)
    assert deferrals(kit) == []
    assert claim(store) == []


def test_later_twice_is_later_once(kit: SessionKit, store: Store) -> None:
    kit.add("t1")
    claim(store)
    for _ in range(2):  # the first one's effect was not known
        assert store.defer(["t1"], retry_at=None, reason="busy")
    assert [row["deferral"] for row in deferrals(kit)] == [1]


def test_later_does_not_overwrite_another_ones_claim(kit: SessionKit, store: Store) -> None:
    kit.add("t1")
    claim(store)
    other = make_store(kit, "I3")
    other.start()
    assert claim(other) == ["t1"]
    with pytest.raises(ClaimLostError):
        store.defer(["t1"], retry_at=None, reason=None)
    assert (kit.acks(), deferrals(kit)) == ({"t1": "processing"}, [])


def test_a_death_after_later_leaves_a_later_and_one_before_it_an_orphan(kit: SessionKit, store: Store) -> None:
    kit.add("t1")
    kit.add("t2")
    claim(store, 1)
    store.defer(["t1"], retry_at=None, reason=None)
    mark(kit, "t1", deferrals=1, process_after=PAST)
    claim(store, 1)
    other = make_store(kit, "I3")
    assert other.start() == 1
    assert claim(other) == ["t1", "t2"]


def test_a_host_that_knows_no_later_is_not_told_so(kit: SessionKit, store: Store) -> None:
    kit.add("t1")
    kit.change("ALTER TABLE messages_in DROP COLUMN deferrals")
    claim(store)
    assert not store.defer(["t1"], retry_at=None, reason=None)
    assert kit.acks() == {"t1": "processing"}


def test_an_ack_that_the_host_has_found_void_is_none(kit: SessionKit, store: Store) -> None:
    kit.add("t1")
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO processing_ack VALUES ('t1', 'completed', ?, 'I1')", (PAST,))
    assert claim(store) == []
    mark(kit, "t1", void_ack=PAST)
    assert claim(store) == ["t1"]
    store.finish(store.outbound_rows([reply(in_reply_to="t1")]), ["t1"], AckStatus.COMPLETED)
    assert claim(store) == [], "the ack that counts has another time"


def test_a_later_of_an_earlier_message_with_the_same_id_holds_nothing_back(kit: SessionKit, store: Store) -> None:
    """The agent put off a message and died in its second turn. The message ended, was pruned, and its id was sent again."""
    kit.add("t1")
    claim(store)
    store.defer(["t1"], retry_at=None, reason="busy")
    mark(kit, "t1", deferrals=1, process_after=PAST)
    assert claim(store) == ["t1"]
    assert deferrals(kit) == [], "the second turn is not put off"
    make_store(kit, "I3").start()
    # A file that a runner of an earlier release left behind still has the row.
    with kit.runner_file() as db, db.transaction():
        db.execute("INSERT INTO deferrals(message_id, deferral) VALUES ('t1', 1)")
    mark(kit, "t1", deferrals=0, process_after=None)
    kit.add("t2")
    assert claim(store) == ["t1", "t2"]
    assert deferrals(kit) == []


# --- a commit whose outcome is not known -----------------------------------------------------------------------------


def test_a_claim_that_was_committed_and_reported_as_failed_is_not_forgotten(
    kit: SessionKit, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of the folder after the journal is gone may fail: then the claim is in the file, and nobody works on it."""
    kit.add("m1")
    real = Writer.execute
    failed = 0

    def commit_and_fail(db: Writer, sql: str, params: Sequence[object] = ()) -> int:
        nonlocal failed
        result = real(db, sql, params)
        if sql == "COMMIT" and not failed:
            failed += 1
            raise StorageError("disk I/O error (SQLITE_IOERR_DIR_FSYNC)")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "execute", commit_and_fail)
        with pytest.raises(StorageError):
            claim(store)
    assert kit.acks() == {"m1": "processing"}
    assert claim(store) == ["m1"]
    assert kit.acks() == {"m1": "processing"}
    assert claim(store) == [], "claimed once"
