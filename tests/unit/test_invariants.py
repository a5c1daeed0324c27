"""The checker of file invariants accepts what the product writes, and names every violation made here on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.core.session_key import SessionKey
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.store.data_layout import Layout
from daemon.store.incarnations import IncarnationRow
from daemon.store.mailbox import Mailbox, NewEntry
from daemon.store.registry import Registry
from tests.support.invariants import check_data_folder, check_session, data_folder_violations, session_violations
from tests.support.session_world import NOW, SessionWorld

KEY = SessionKey("a", "s")
MEANS = DeliveryContext({"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}, Delivery(), 1024**2, frozenset(),
              frozenset(), 0.5)  # fmt: skip


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A whole conversation as the product leaves it: m1 answered, m2 scheduled, the session idle."""
    layout = Layout(tmp_path)
    registry = Registry(layout.central_db)
    registry.activate(KEY, NOW)
    world = SessionWorld(layout.sessions_dir / "a" / "s")
    world.accept("m1")
    world.accept("m2", process_after=NOW + 60_000)
    assert registry.begin_incarnation(IncarnationRow("i1", KEY, "process", "f", None, NOW))
    world.claim("m1", by="i1")
    collect(world.files, MEANS, "i1", world)
    world.say("out1", in_reply_to="m1")
    world.ack("completed", "m1", by="i1")
    found = collect(world.files, MEANS, "i1", world)
    mailbox = Mailbox(layout.mailbox_db)
    for send in found.sends:
        mailbox.put(NewEntry("me", send.candidate.row.id, "a", "s", "m1", "chat", None, "{}", NOW))
    record_outcomes(world.files, [Outcome(send, sent=True) for send in found.sends], MEANS, NOW)
    registry.end_incarnation("i1", NOW, 0, "idle")
    registry.deactivate(KEY, NOW + 60_000)
    return tmp_path


def test_what_the_product_writes_is_sound(data_dir: Path) -> None:
    check_data_folder(data_dir, at_rest=True)
    check_session(data_dir / "sessions" / "a" / "s", at_rest=True)


def test_a_violation_is_raised_with_its_place(data_dir: Path) -> None:
    _sql("in/inbound.db", "UPDATE messages_in SET status = 'completed' WHERE id = 'm2'")(data_dir)
    with pytest.raises(AssertionError, match=r"a/s: messages_in: m2 is completed, and its history says pending"):
        check_data_folder(data_dir)


def _sql(file: str, *statements: str) -> Callable[[Path], None]:
    def break_it(data_dir: Path) -> None:
        path = data_dir / file if "/" not in file else data_dir / "sessions/a/s" / file
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return break_it


IN, OUT = "in/inbound.db", "out/outbound.db"
OUT_ROW = "INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES ('x', {seq}, '{at}', 'chat', '{{}}')"
AT = "2026-11-21T00:00:00.000Z"
ROW_BREAKS = {
    "history_missing": (_sql(IN, "DELETE FROM message_history WHERE message_id = 'm2'"), "m2 has no history"),
    "born_twice": (_sql(IN, "INSERT INTO message_history(message_id, event, at) VALUES ('m1', 'accepted', 0)"),
                   "m1: is born a second time"),
    "illegal_step": (_sql(IN, "INSERT INTO message_history(message_id, event, at) VALUES ('m1', 'cancelled', 0)"),
                     "m1: went from completed to cancelled"),
    "unknown_event": (_sql(IN, "INSERT INTO message_history(message_id, event, at) VALUES ('m1', 'odd', 0)"),
                      "m1: has the unknown event odd"),
    "failed_without_reason": (
        _sql(IN, "UPDATE messages_in SET status = 'failed' WHERE id = 'm2'",
             "INSERT INTO message_history(message_id, event, at) VALUES ('m2', 'failed', 0)"),
        "m2 failed, and no history row says why"),
    "host_seq_odd": (_sql(IN, "UPDATE messages_in SET seq = 99 WHERE id = 'm2'"), "m2 has seq 99, which is not even"),
    "host_seq_missing": (_sql(IN, "UPDATE messages_in SET seq = NULL WHERE id = 'm2'"), "m2 has seq None"),
    "runner_seq_even": (_sql(OUT, "UPDATE messages_out SET seq = 8"), "out1 has seq 8, which is not odd"),
    "seq_used_twice": (_sql(OUT, "UPDATE messages_out SET seq = 4"), "seq 4 is used 2 times"),
    "id_used_twice": (_sql(OUT, "UPDATE messages_out SET id = 'm1'"), "id m1 is used 2 times"),
    "time_is_no_time": (_sql(IN, "UPDATE messages_in SET process_after = 'soon' WHERE id = 'm2'"),
                        "m2: process_after is no instant: 'soon'"),
    "time_not_canonical": (_sql(IN, "UPDATE messages_in SET timestamp = '2026-11-21 00:00:00' WHERE id = 'm2'"),
                           "m2: timestamp is not canonical"),
    "runner_time": (_sql(OUT, "UPDATE messages_out SET timestamp = 'x'"), "out1: timestamp is no instant"),
    "completed_without_ack": (_sql(OUT, "DELETE FROM processing_ack"), "m1 is completed, and its ack is None"),
    "completed_while_processing": (_sql(OUT, "UPDATE processing_ack SET status = 'processing'"),
                                   "m1 is completed, and its ack is processing"),
    "ack_not_settled": (_sql(OUT, f"INSERT INTO processing_ack VALUES ('m2', 'completed', '{AT}', 'i1')"),
                        "m2 is completed, and the message is still pending"),
    "later_not_noted": (_sql(OUT, f"INSERT INTO processing_ack VALUES ('m2', 'later', '{AT}', 'i1')"),
                        "m2 is later, and the message is still pending"),
    "ack_of_nobody": (_sql(OUT, f"INSERT INTO processing_ack VALUES ('zz', 'completed', '{AT}', 'i1')"),
                      "zz is no message of this session"),
    "attempt_open": (_sql(IN, "INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES ('m2', 'i1', 0)"),
                     "is open, and nothing runs"),
    "attempt_end_without_outcome": (_sql(IN, "UPDATE attempts SET outcome = NULL"), "has an end without an outcome"),
    "attempt_outcome_unknown": (_sql(IN, "UPDATE attempts SET outcome = 'lost'"), "the unknown outcome lost"),
    "try_without_attempt": (_sql(IN, "UPDATE messages_in SET tries = 1 WHERE id = 'm2'"),
                            "m2 has 1 tries and 0 orphaned attempts"),
    "row_lost_below_cursor": (_sql(IN, "DELETE FROM delivered"), "out1 is below the cursor, and neither"),
    "row_above_cursor": (_sql(OUT, OUT_ROW.format(seq=99, at=AT)), "x is above the cursor"),
    "receipt_of_nothing": (_sql(IN, f"INSERT INTO delivered VALUES ('ghost', NULL, 'delivered', '{AT}')"),
                           "ghost is a receipt for a row that is not there"),
    "receipt_status_unknown": (_sql(IN, "UPDATE delivered SET status = 'maybe'"), "out1 has the unknown status maybe"),
    "delivered_and_tracked": (
        _sql(IN, "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at)"
                 " VALUES ('out1', 5, 'd', 'queued', 0)"), "out1 is delivered, and still tracked as queued"),
    "in_doubt": (
        _sql(IN, "DELETE FROM delivered", "INSERT INTO delivery_attempts(message_out_id, seq, destination, state,"
                 " attempts, first_at) VALUES ('out1', 5, 'd', 'intended', 1, 0)"), "out1 is intended"),
    "dead_without_reason": (
        _sql(IN, "DELETE FROM delivered", "INSERT INTO delivery_attempts(message_out_id, seq, destination, state,"
                 " first_at) VALUES ('out1', 5, 'd', 'dead', 0)"), "out1 is dead without a reason"),
    "retrying_without_time": (
        _sql(IN, "DELETE FROM delivered", "INSERT INTO delivery_attempts(message_out_id, seq, destination, state,"
                 " first_at) VALUES ('out1', 5, 'd', 'retrying', 0)"), "out1 retries without a time"),
    "unsent_at_rest": (
        _sql(IN, "DELETE FROM delivered", "INSERT INTO delivery_attempts(message_out_id, seq, destination, state,"
                 " attempts, next_attempt_at, last_error, last_error_code, first_at)"
                 " VALUES ('out1', 5, 'd', 'retrying', 1, 9, 'answered 503', 'X', 0)"), "nothing runs that would send it"),
    "host_message_forgotten": (
        _sql(IN, "INSERT INTO host_messages(id, seq, timestamp, kind, content)"
                 f" VALUES ('failed:m1', 8, '{AT}', 'chat', '{{}}')"), "failed:m1 is neither delivered nor tracked"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ROW_BREAKS))
def test_a_broken_row_is_named(data_dir: Path, name: str) -> None:
    break_it, says = ROW_BREAKS[name]
    break_it(data_dir)
    assert any(says in line for line in session_violations(data_dir / "sessions/a/s", at_rest=True)), name


def test_a_put_off_message_that_starts_no_turn_may_wait(data_dir: Path) -> None:
    _sql(OUT, f"INSERT INTO processing_ack VALUES ('m2', 'later', '{AT}', 'i1')")(data_dir)
    _sql(IN, "UPDATE messages_in SET trigger = 0, deferrals = 1 WHERE id = 'm2'")(data_dir)
    assert list(session_violations(data_dir / "sessions/a/s", at_rest=True)) == []


def _wal(data_dir: Path) -> None:
    connection = sqlite3.connect(data_dir / "sessions/a/s" / OUT)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _hard_link(data_dir: Path) -> None:
    (data_dir / "twin").hardlink_to(data_dir / "sessions/a/s" / OUT)


FILE_BREAKS = {
    "wal_header": (_wal, "outbound.db is not in journal_mode=DELETE"),
    "wal_file": (lambda d: (d / "sessions/a/s/in/inbound.db-wal").touch(), "inbound.db-wal lies beside it"),
    "journal": (lambda d: (d / "sessions/a/s/out/outbound.db-journal").touch(), "outbound.db-journal is left"),
    "hard_link": (_hard_link, "outbound.db is no plain file with one link"),
    "host_table_in_outbound": (_sql(OUT, "CREATE TABLE delivered (x)"), "outbound.db has delivered, a table of the"),
    "runner_table_in_inbound": (_sql(IN, "CREATE TABLE processing_ack (x)"), "inbound.db has processing_ack"),
    "inbound_in_out": (
        lambda d: (d / "sessions/a/s/out/inbound.db-journal").touch(),
        "inbound.db-journal lies in out/",
    ),
    "inbound_gone": (lambda d: (d / "sessions/a/s" / IN).unlink(), "inbound.db is missing"),
    "writable": (lambda d: (d / "sessions/a/s" / IN).chmod(0o666), "can be written by others"),
    "rotten": (lambda d: (d / "sessions/a/s" / OUT).write_bytes(b"\0" * 4096), "outbound.db is not in"),
}


@pytest.mark.parametrize("name", sorted(FILE_BREAKS))
def test_a_broken_file_is_named(data_dir: Path, name: str) -> None:
    break_it, says = FILE_BREAKS[name]
    break_it(data_dir)
    assert any(says in line for line in session_violations(data_dir / "sessions/a/s", at_rest=True)), name


LIVE = (
    "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, created_at) VALUES ('{}', 'a', 's', 'p', '', 0)"
)
CENTRAL_BREAKS = {
    "two_live": (_sql("central.db", "DROP INDEX incarnations_live", LIVE.format("i2"), LIVE.format("i3")),
                 "a/s has 2 live incarnations"),
    "incarnation_of_nobody": (_sql("central.db", "UPDATE incarnations SET session = 'other'"),
                              "incarnation i1 is of a session that is not there"),
    "end_without_reason": (_sql("central.db", "UPDATE incarnations SET end_reason = NULL"), "ended without a reason"),
    "unknown_incarnation": (_sql(IN, "UPDATE attempts SET incarnation = 'i9'"), "i9, which central.db never recorded"),
    "unknown_session": (_sql("central.db", "DELETE FROM sessions"), "central.db does not know it"),
    "forgotten_work": (_sql("central.db", "UPDATE sessions SET next_due_at = NULL"), "m2 is due, and central.db has"),
    "woken_too_late": (_sql("central.db", "UPDATE sessions SET next_due_at = next_due_at + 1"), "m2 is due, and"),
    "mailbox_lost": (_sql("mailbox.db", "DELETE FROM mailbox"), None),
    "mailbox_invented": (_sql("mailbox.db", "UPDATE mailbox SET message_out_id = 'ghost'"),
                         "ghost is an entry that no row"),
    "registry_gone": (lambda d: (d / "central.db").unlink(), "central.db is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CENTRAL_BREAKS))
def test_a_broken_registry_is_named(data_dir: Path, name: str) -> None:
    break_it, says = CENTRAL_BREAKS[name]
    if name == "mailbox_lost":  # only a row that says `local` itself can be asked for
        _sql(OUT, "UPDATE messages_out SET channel_type = 'local', platform_id = 'me'")(data_dir)
        says = "out1 has a receipt of `local`, and the mailbox has no entry"
    break_it(data_dir)
    assert says is not None
    assert any(says in line for line in data_folder_violations(data_dir, at_rest=True)), name


def test_a_hostile_container_is_not_asked_to_keep_the_contract(data_dir: Path) -> None:
    (data_dir / "sessions/a/s" / OUT).write_bytes(b"garbage")
    assert session_violations(data_dir / "sessions/a/s")
    check_data_folder(data_dir, hostile=True)


def test_a_session_at_work_is_sound_though_not_at_rest(data_dir: Path) -> None:
    world = SessionWorld(data_dir / "sessions/a/s", now=NOW + 60_000)
    Registry(data_dir / "central.db").activate(KEY, world.now)
    assert Registry(data_dir / "central.db").begin_incarnation(IncarnationRow("i2", KEY, "p", "f", None, world.now))
    world.claim("m2", by="i2")
    collect(world.files, MEANS, "i2", world)
    world.say("out2", in_reply_to="m2")
    assert collect(world.files, MEANS, "i2", world).sends
    check_data_folder(data_dir)
    with pytest.raises(AssertionError, match="out2 is intended"):
        check_data_folder(data_dir, at_rest=True)
