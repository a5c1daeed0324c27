"""Rows that no runner writes, through the host's own transactions: refused or harmless, and the session's own file is sound."""

import json
import os
import sqlite3
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.config.models import Delivery
from daemon.core.delivery_plan import DeadLetterDecision, Send
from daemon.core.lifecycle import Container, Fail, Kill, Release, Reset
from daemon.engine.delivery_steps import collect
from daemon.engine.sweep_steps import sweep_files
from daemon.store import messages
from schema.errors import HostileFileError
from schema.plain_file import ReadLimits
from schema.rows import Address
from tests.support.hostile_session import LIVE, SETTINGS, HostileSession, host_operations, means
from tests.support.invariants import session_violations

pytestmark = pytest.mark.faults

STAMP = "2026-11-21T00:00:00.000Z"
LOOSE = "CREATE TABLE messages_out (id, seq, in_reply_to, timestamp, deliver_after, recurrence, kind, platform_id, channel_type, thread_id, content)"


@pytest.fixture
def session(tmp_path: Path) -> HostileSession:
    made = HostileSession(tmp_path / "s")
    made.accept("m1")
    made.runner().close()
    return made


def sound(session: HostileSession) -> None:
    assert session_violations(session.root, hostile=True) == []


def put(session: HostileSession, **columns: Any) -> None:
    """One row of a table without any of the contract's constraints."""
    row = {"id": "o1", "seq": 3, "timestamp": STAMP, "kind": "chat", "content": '{"text":"x"}', **columns}
    names = ", ".join(row)
    session.write(f"INSERT INTO messages_out({names}) VALUES ({','.join('?' * len(row))})", params=tuple(row.values()))


@pytest.mark.parametrize(
    "column",
    [
        {"id": b"blob"}, {"id": None}, {"id": 7}, {"id": ""}, {"id": "x" * 201}, {"id": "nul\0l"},
        {"seq": "text"}, {"seq": b"\0"}, {"seq": 2**53 + 1}, {"seq": 2**63 - 1}, {"seq": 1e300},
    ],
    ids=str,
)  # fmt: skip
def test_ids_and_seqs_of_other_types_are_refused(session: HostileSession, column: dict[str, Any]) -> None:
    session.remake(LOOSE)
    put(session, **column)
    with pytest.raises(HostileFileError):
        session.collect()
    sound(session)


@pytest.mark.parametrize("seq", [None, 0, -1, -(2**63)])
def test_rows_below_the_cursor_are_not_there(session: HostileSession, seq: int | None) -> None:
    session.remake(LOOSE)
    put(session, seq=seq)
    assert session.collect().sends == ()
    sound(session)


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"content": b"blob"}, "BAD_CONTENT"),
        ({"content": None}, "BAD_CONTENT"),
        ({"content": 5}, "BAD_CONTENT"),
        ({"content": "[" * 200_000}, "BAD_CONTENT"),
        ({"content": '{"a":NaN}'}, "BAD_CONTENT"),
        ({"content": "-Infinity"}, "BAD_CONTENT"),
        ({"content": "1" * 100_000}, "BAD_CONTENT"),
        ({"content": '"' + "x" * (1024**2) + '"'}, "BAD_CONTENT"),
        ({"content": "1e999"}, "BAD_CONTENT"),  # no channel can send it: each would find that out for itself
        ({"kind": b"chat"}, "UNKNOWN_KIND"),
        ({"kind": "\x1b[31mchat"}, "UNKNOWN_KIND"),
        ({"channel_type": "local", "platform_id": "somebody else"}, "UNAUTHORISED_DESTINATION"),
        ({"channel_type": "webhook", "platform_id": "me"}, "UNAUTHORISED_DESTINATION"),
        ({"channel_type": "local\x1fme", "platform_id": ""}, "UNAUTHORISED_DESTINATION"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_rows_that_cannot_be_sent_are_dead_letters(
    session: HostileSession, column: dict[str, Any], reason: str
) -> None:
    session.remake(LOOSE)
    put(session, **column)
    found = session.collect()
    assert [dead.reason for dead in found.dead_lettered] == [reason]
    assert found.sends == ()
    session.sweep()
    sound(session)


@pytest.mark.parametrize("content", ['"\\ud800"', '{"a":{"a":1,"a":2}}', '"\\u0000\\u001b[2J"'])
def test_odd_json_is_json(session: HostileSession, content: str) -> None:
    put(session, content=content)
    assert [send.candidate.row.content for send in session.collect().sends] == [content]
    sound(session)


def test_a_thread_with_control_characters_stays_within_its_place(session: HostileSession) -> None:
    put(session, channel_type="local", platform_id="me", thread_id="\x1flocal\x1fother\n\x1b[31m")
    (send,) = session.collect().sends
    assert (send.address.channel_type, send.address.platform_id) == ("local", "me")
    sound(session)


@pytest.mark.parametrize("identity", ["../../etc/passwd", "..", "a/b", "a\nb", "\x1b]0;x\x07", "'; DROP TABLE x; --"])
def test_an_id_is_never_a_path_or_sql(session: HostileSession, identity: str) -> None:
    before = sorted(session.root.rglob("*"))
    put(session, id=identity)
    put(session, id=identity + "2", seq=5, kind="nonsense")
    found = session.collect()
    assert [send.candidate.row.id for send in found.sends] == [identity]
    assert [dead.candidate.row.id for dead in found.dead_lettered] == [identity + "2"]
    assert {item for item in session.root.rglob("*") if "inbound.db" not in item.name} == {
        item for item in before if "inbound.db" not in item.name
    }
    sound(session)


@pytest.mark.parametrize("text", ["CAST(x'ff00' AS TEXT)", "CAST(x'eda080' AS TEXT)"])
def test_text_that_is_no_utf8(session: HostileSession, text: str) -> None:
    session.write(f"INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES ('o1', 3, 't', 'chat', {text})")
    with pytest.raises(HostileFileError):
        session.collect()
    sound(session)


def test_an_id_twice_in_one_look_is_sent_once(session: HostileSession) -> None:
    session.remake(LOOSE)
    for seq in (3, 5, 7):
        put(session, seq=seq)
    put(session, id="o2", seq=9)
    assert [send.candidate.row.seq for send in session.collect().sends] == [3, 9]
    assert [send.candidate.row.id for send in session.collect().sends] == ["o1", "o2"]  # in doubt, and once
    sound(session)


def test_one_seq_for_many_rows_is_refused(session: HostileSession) -> None:
    """The cursor is a seq: what has none of its own could be passed over unseen."""
    session.remake(LOOSE)
    for name in ("o1", "o2"):
        put(session, id=name, seq=5)
    with pytest.raises(HostileFileError, match="order"):
        session.collect()
    sound(session)


def test_rows_in_no_order_are_refused(session: HostileSession) -> None:
    """A broken index: half of its cells the other way round."""
    for number in range(10):
        put(session, id=f"o{number}", seq=2 * number + 1)
    data = bytearray(session.database.read_bytes())
    connection = sqlite3.connect(session.database)
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_messages_out_2'"
    ).fetchone()
    connection.close()
    start = (page - 1) * 4096
    count = int.from_bytes(data[start + 3 : start + 5], "big")
    cells = [bytes(data[start + 8 + 2 * n : start + 10 + 2 * n]) for n in range(count)]
    data[start + 8 : start + 8 + 2 * count] = b"".join(cells[:5] + cells[:4:-1])
    session.database.write_bytes(data)
    with pytest.raises(HostileFileError, match="order"):
        session.collect()
    sound(session)


def test_a_seq_at_the_limit_does_not_stop_the_host(session: HostileSession) -> None:
    put(session, seq=2**53 - 1)
    put(session, id="o2", seq=2**53)
    session.collect()
    seqs = [session.accept(f"after{number}").seq for number in range(5)]
    assert seqs == sorted(set(seqs))
    assert all(seq % 2 == 0 and seq > messages.MAX_SEQ for seq in seqs)
    sound(session)


def test_a_hundred_thousand_made_up_claims_hide_none_of_ours(session: HostileSession) -> None:
    session.write("DROP INDEX processing_ack_claimed")
    session.write(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
        f" INSERT INTO processing_ack SELECT 'made up ' || i, 'processing', '{STAMP}', '{LIVE}' FROM n"
    )
    session.claim("m1", by=LIVE)
    session.sweep()
    actions = session.finish().actions
    assert [type(action) for action in actions] == [Reset]
    assert session.message("m1")["tries"] == 1
    assert session.read("SELECT DISTINCT message_id FROM attempts") == [{"message_id": "m1"}]
    sound(session)


def test_acks_of_others_and_of_nobody_change_nothing(session: HostileSession) -> None:
    session.claim("unknown", "../m1", "m1' OR '1'='1", by=LIVE)
    session.claim("m1", by="01ANOTHER00000000000000000")
    session.collect()
    session.sweep()
    assert session.message("m1")["status"] == "pending"
    assert session.read("SELECT * FROM attempts") == []
    sound(session)


@pytest.mark.parametrize("status", ["done", "", "COMPLETED", "pending", "cancelled"])
def test_an_unknown_ack_is_none(session: HostileSession, status: str) -> None:
    session.ack(status, "m1", by=LIVE)
    assert session.collect().settled == ()
    assert session.message("m1")["status"] == "pending"


def test_an_ack_table_without_its_key_is_answered_within_the_budget(tmp_path: Path) -> None:
    """One question about one message, answered with thousands of rows."""
    session = HostileSession(tmp_path / "s", ReadLimits(max_read_bytes=1024**2, deadline_s=30))
    session.accept("m1")
    session.remake("CREATE TABLE processing_ack (message_id, status, status_changed, incarnation)")
    session.write(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
        " INSERT INTO processing_ack SELECT 'm1', 'processing', hex(zeroblob(512)), NULL FROM n"
    )
    with pytest.raises(HostileFileError, match="at once"):
        session.collect()
    sound(session)


def test_a_declared_silence_of_ten_years_is_capped(session: HostileSession) -> None:
    session.write(f"INSERT INTO container_state VALUES (1, 'sleep', {10 * 365 * 86_400_000}, '{STAMP}', '{STAMP}')")
    session.claim("m1", by=LIVE)
    session.now += 7 * 3_600_000
    born = Container(LIVE, session.now - 7 * 3_600_000)
    swept = sweep_files(session.files, born, session.now, SETTINGS, occupied=False, floor=0)
    assert "ceiling" in [getattr(action, "reason", None) for action in swept.actions]


@pytest.mark.parametrize("declared", [-1, 2**63 - 1, 1e300, "long", b"x", None])
def test_a_declared_silence_of_other_types_is_none_or_capped(session: HostileSession, declared: object) -> None:
    session.write("INSERT INTO container_state VALUES (1, ?, ?, 'yesterday', 'x')", params=("a" * 100_000, declared))
    session.sweep()


def test_a_notice_finds_room_though_its_id_is_taken(session: HostileSession) -> None:
    """The sender of a message that failed for good is told, whatever rows the container wrote before."""
    put(session, id="failed:m1")
    put(session, id="failed:m1:host", seq=5)
    session.collect()
    for number in range(4):
        session.claim("m1", by=f"earlier{number}")
        session.finish(f"earlier{number}")
        session.now += 86_400_000
    session.claim("m1", by=LIVE)
    actions = session.finish().actions
    assert [type(action) for action in actions] == [Fail]
    (notice,) = session.read("SELECT * FROM host_messages")
    assert notice["in_reply_to"] == "m1"
    session.finish()
    assert len(session.read("SELECT * FROM host_messages")) == 1
    sound(session)


def test_rows_that_pose_as_the_hosts_own(session: HostileSession) -> None:
    """`dead-letter:` and `failed:` rows of a container are rows like any other: checked, and sent as the agent's."""
    for seq, identity in enumerate(("dead-letter:o9", "failed:m9", "dead-letter:dead-letter:x")):
        put(session, id=identity, seq=3 + 2 * seq, channel_type="local", platform_id="victim")
    assert {dead.reason for dead in session.collect().dead_lettered} == {"UNAUTHORISED_DESTINATION"}
    sound(session)


def test_a_heartbeat_from_the_future_keeps_nobody_alive(session: HostileSession) -> None:
    beat = session.out / ".heartbeat"
    beat.touch()
    os.utime(beat, (4e9, 4e9))
    session.claim("m1", by=LIVE)
    session.now += 3_600_000
    born = Container(LIVE, session.now - 3_600_000)
    swept = sweep_files(session.files, born, session.now, SETTINGS, occupied=False, floor=0)
    assert [type(action) for action in swept.actions] == [Kill]


def test_a_million_rows_cost_what_is_new(session: HostileSession) -> None:
    session.write(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
        f" INSERT INTO messages_out(id, seq, timestamp, kind, content) SELECT 'o' || i, i * 2 + 1, '{STAMP}', 'chat', '1' FROM n"
    )
    found = session.collect()
    assert len(found.sends) == 200
    assert found.more


def test_a_large_batch_of_queued_rows_is_taken_in_parts(tmp_path: Path) -> None:
    """40 rows of a megabyte that wait for their time come back in parts, in order, none of them taken for gone."""
    session = HostileSession(tmp_path / "s", ReadLimits())
    session.accept("m1")
    content = json.dumps("x" * (1024**2 - 10))
    later = session.now + 1000
    for number in range(40):
        session.say(f"o{number:02}", content=content, deliver_after=later, to=Address("local", "me"))
    while session.collect().more:
        pass
    session.now = later
    sent: list[str] = []
    while True:
        found = session.collect()
        assert not [item for item in found.dead_lettered if isinstance(item, DeadLetterDecision)]
        assert all(isinstance(item, Send) for item in found.sends)
        if not found.sends:
            break
        assert len(found.sends) < 40
        sent += [item.candidate.row.id for item in found.sends]
        with session.files.inbound() as db, db.transaction():
            for item in found.sends:
                db.execute("DELETE FROM delivery_attempts WHERE message_out_id = ?", (item.candidate.row.id,))
                db.execute("INSERT INTO delivered VALUES (?, NULL, 'delivered', ?)", (item.candidate.row.id, STAMP))
    assert sent == [f"o{number:02}" for number in range(40)]


COLUMNS = {
    "messages_out": ("id", "seq", "in_reply_to", "timestamp", "deliver_after", "kind", "platform_id", "channel_type", "thread_id", "content"),
    "processing_ack": ("message_id", "status", "status_changed", "incarnation"),
    "container_state": ("id", "current_tool", "tool_declared_timeout_ms", "tool_started_at", "updated_at"),
}  # fmt: skip


@pytest.mark.parametrize(("table", "column"), [(table, column) for table, names in COLUMNS.items() for column in names])
def test_a_table_may_lack_any_column(session: HostileSession, table: str, column: str) -> None:
    """Refused or read without it: every operation of the host ends, and with no error but ours."""
    put(session)
    session.claim("m1", by=LIVE)
    session.write(f"INSERT INTO container_state VALUES (1, 'Bash', 5, '{STAMP}', '{STAMP}')")
    kept = ", ".join(name for name in COLUMNS[table] if name != column)
    session.write(f"CREATE TABLE kept AS SELECT {kept} FROM {table}", f"DROP TABLE {table}")
    session.write(f"ALTER TABLE kept RENAME TO {table}")
    for operation in host_operations(session.files, ReadLimits(), session.now).values():
        with suppress(HostileFileError):
            operation()
    sound(session)


def test_a_flood_of_rows_that_cannot_be_sent_ends_in_quarantine(session: HostileSession) -> None:
    """Each costs rows of the host's own file: it goes on within a limit, and not at all beyond it."""
    session.write(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
        f" INSERT INTO messages_out(id, seq, timestamp, kind, content) SELECT 'o' || i, i * 2 + 1, '{STAMP}', 'nonsense', '1' FROM n"
    )
    few = replace(means(), config=Delivery(max_dead_letters=500))

    def look() -> None:
        while collect(session.files, few, LIVE, session).more:
            pass

    with pytest.raises(HostileFileError, match="max_dead_letters"):
        look()
    (dead,) = session.read("SELECT count(*) AS n FROM delivery_attempts WHERE state = 'dead'")
    assert 500 < dead["n"] <= 700
    session.change(
        "INSERT INTO dead_letters_closed(id, outcome, at, by) SELECT message_out_id, 'dropped', 0, 'me' FROM delivery_attempts"
    )
    with pytest.raises(HostileFileError):  # an operator dealt with those; it goes on with the next ones
        look()
    sound(session)


def test_released_claims_are_no_try(session: HostileSession) -> None:
    session.claim("m1", by=LIVE)
    session.collect()
    session.unclaim("m1")
    actions = session.finish(reason="exited").actions
    assert not [item for item in actions if isinstance(item, Reset | Fail | Release)]
    assert session.message("m1")["tries"] == 0
