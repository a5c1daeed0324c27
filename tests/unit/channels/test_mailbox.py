"""mailbox.db: idempotent, ordered, all or nothing, and readable without a daemon."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.core.errors import CursorAheadError
from daemon.store import mailbox as module
from daemon.store.mailbox import Mailbox, NewEntry, raise_cursors, read_mailbox
from schema.errors import FileBusyError, StorageError
from tests.support.clock import MovedClock

ENTRY = NewEntry("me", "out-1", "a", "s", "in-1", "chat", None, '{"text":"hi"}', 1_790_000_000_000)


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / "mailbox.db")


def numbered(number: int, **changes: object) -> NewEntry:
    return replace(ENTRY, message_out_id=f"out-{number}", **changes)


def test_what_was_put_is_read(mailbox: Mailbox) -> None:
    cursor = mailbox.put(replace(ENTRY, thread_id="t"))
    (entry,) = mailbox.read("me")
    assert (entry.cursor, entry.mailbox, entry.message_out_id, entry.in_reply_to) == (cursor, "me", "out-1", "in-1")
    assert (entry.agent, entry.session, entry.kind, entry.thread_id) == ("a", "s", "chat", "t")
    assert (entry.content, entry.delivered_at) == ('{"text":"hi"}', 1_790_000_000_000)


def test_the_same_message_is_the_same_entry_and_the_first_content_stands(mailbox: Mailbox) -> None:
    first = mailbox.put(ENTRY)
    assert mailbox.put(replace(ENTRY, content='{"text":"other"}', in_reply_to="in-2")) == first
    assert [entry.content for entry in mailbox.read("me")] == ['{"text":"hi"}']
    assert mailbox.first_reply("a", "s", "in-2") is None


def test_sessions_have_ids_of_their_own(mailbox: Mailbox) -> None:
    cursors = mailbox.put_many([ENTRY, replace(ENTRY, session="other"), replace(ENTRY, agent="b"), ENTRY])
    assert len(set(cursors)) == 3
    assert cursors[0] == cursors[3]


def test_many_are_one_transaction(mailbox: Mailbox) -> None:
    bad = numbered(2, content="\ud800")
    with pytest.raises(StorageError):
        mailbox.put_many([ENTRY, bad])
    assert mailbox.read("me") == []


def test_a_reader_goes_on_from_its_cursor(mailbox: Mailbox) -> None:
    mailbox.put_many([numbered(number) for number in range(10)])
    mailbox.put(numbered(99, mailbox="other"))
    seen: list[str] = []
    cursor = 0
    while entries := mailbox.read("me", cursor, 3):
        assert len(entries) <= 3
        seen += [entry.message_out_id for entry in entries]
        cursor = entries[-1].cursor
    assert seen == [f"out-{number}" for number in range(10)]


def test_filters(mailbox: Mailbox) -> None:
    mailbox.put_many([ENTRY, numbered(2, in_reply_to="in-2"), replace(ENTRY, agent="b"), replace(ENTRY, session="z")])

    def found(**wanted: Any) -> int:
        return len(mailbox.read("me", **wanted))

    assert (found(), found(agent="a"), found(session="s"), found(in_reply_to="in-2")) == (4, 3, 3, 1)
    assert found(agent="b", session="z") == 0


@pytest.mark.parametrize(("limit", "rows"), [(-5, 1), (0, 1), (2, 2), (10**9, 3)])
def test_a_limit_is_kept_within_bounds(mailbox: Mailbox, limit: int, rows: int) -> None:
    mailbox.put_many([numbered(number) for number in range(3)])
    assert len(mailbox.read("me", 0, limit)) == rows


def test_long_answers_come_a_few_at_a_time(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_BUDGET_CHARS", 10)
    mailbox.put_many([numbered(number, content='"twelve chars"') for number in range(3)])
    assert [entry.message_out_id for entry in mailbox.read("me")] == ["out-0"]


def test_a_reply_is_found_by_any_message_it_answers(mailbox: Mailbox) -> None:
    mailbox.put(numbered(1, in_reply_to="in-1", answers=("in-1", "in-2", "in-3")))
    mailbox.put(numbered(2, in_reply_to="in-2"))
    for message_id in ("in-1", "in-2", "in-3"):
        reply = mailbox.first_reply("a", "s", message_id)
        assert reply is not None
        assert reply.message_out_id == "out-1"
    assert mailbox.first_reply("a", "s", "in-4") is None
    assert mailbox.first_reply("a", "other", "in-1") is None


def test_finding_a_reply_does_not_cost_the_history(mailbox: Mailbox) -> None:
    mailbox.put(ENTRY)
    with sqlite3.connect(mailbox.path) as db:
        plan = db.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM mailbox WHERE cursor = (SELECT min(cursor) FROM mailbox_replies"
            " WHERE agent = 'a' AND session = 's' AND message_id = 'in-1')"
        ).fetchall()
    db.close()
    assert all("SEARCH" in row[3] or "SCALAR" in row[3] for row in plan), plan


def test_reading_makes_no_file(tmp_path: Path) -> None:
    assert read_mailbox(tmp_path / "mailbox.db", "me") == []
    assert Mailbox(tmp_path / "mailbox.db").first_reply("a", "s", "in-1") is None
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_in_delete_mode_and_its_cursors_are_never_used_again(mailbox: Mailbox) -> None:
    mailbox.put_many([ENTRY, numbered(2)])
    db = sqlite3.connect(mailbox.path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.execute("DELETE FROM mailbox")
    db.commit()
    db.close()
    assert mailbox.put(ENTRY) == 3


def test_cursors_of_a_lost_file_go_on_above_its_own(tmp_path: Path) -> None:
    lost: list[int] = []
    clock = MovedClock(1_795_000_000_000)
    mailbox = Mailbox(tmp_path / "mailbox.db", clock, lost.append)
    mailbox.prepare()
    mailbox.put_many([numbered(number) for number in range(5)])
    mailbox.path.unlink()
    with pytest.raises(CursorAheadError):
        mailbox.read("me", 3)
    first = mailbox.put(numbered(7))
    assert (first, lost) == (1_795_000_000_001, [1_795_000_000_001])
    assert [entry.cursor for entry in mailbox.read("me", 3)] == [first], "a client of the lost file misses nothing new"
    mailbox.path.unlink()
    clock.advance(1)
    again = Mailbox(tmp_path / "mailbox.db", clock, lost.append)
    again.prepare(known=True)
    assert again.put(numbered(8)) == lost[-1] > first
    fresh = Mailbox(tmp_path / "other.db", clock, lost.append)
    fresh.prepare()
    assert (fresh.put(ENTRY), len(lost)) == (1, 2), "a first mailbox begins at one"


@pytest.mark.parametrize("left", [b"", b"x"])
def test_a_file_that_was_emptied_is_as_lost_as_one_that_was_deleted(tmp_path: Path, left: bytes) -> None:
    lost: list[int] = []
    clock = MovedClock(1_795_000_000_000)
    before = Mailbox(tmp_path / "mailbox.db", clock, lost.append)
    before.prepare()
    before.put_many([numbered(number) for number in range(5)])
    before.path.write_bytes(left)
    with pytest.raises(CursorAheadError):
        before.read("me", 3)
    mailbox = Mailbox(tmp_path / "mailbox.db", clock, lost.append)
    mailbox.prepare(known=True)
    first = mailbox.put(numbered(7))
    assert (first, lost) == (1_795_000_000_001, [1_795_000_000_001])
    assert [entry.cursor for entry in mailbox.read("me", 3)] == [first]


def test_a_file_that_is_lost_while_the_clock_is_behind_goes_on_above_its_own_too(tmp_path: Path) -> None:
    lost: list[int] = []
    clock = MovedClock(1_795_000_000_000)
    mailbox = Mailbox(tmp_path / "mailbox.db", clock, lost.append)
    mailbox.prepare()
    mailbox.path.unlink(missing_ok=True)
    first = mailbox.put(numbered(1))
    clock.jump(-3600)
    mailbox.path.unlink()
    assert mailbox.put(numbered(2)) == lost[-1] == first + 1
    assert mailbox.put(numbered(3)) == first + 2
    assert len(lost) == 2, "told once for each loss"


def test_an_older_copy_under_the_daemon_goes_on_above_what_it_lacks(tmp_path: Path) -> None:
    lost: list[int] = []
    mailbox = Mailbox(tmp_path / "mailbox.db", MovedClock(1_795_000_000_000), lost.append)
    mailbox.prepare()
    mailbox.put(numbered(1))
    older = mailbox.path.read_bytes()
    mailbox.put_many([numbered(2), numbered(3)])
    mailbox.path.unlink()
    mailbox.path.write_bytes(older)
    first = mailbox.put(numbered(4))
    assert (first, lost) == (1_795_000_000_001, [1_795_000_000_001])
    assert [entry.cursor for entry in mailbox.read("me", 3)] == [first]
    assert mailbox.put(numbered(5)) == first + 1
    assert lost == [first], "told once"


def test_a_restored_mailbox_goes_on_above_what_its_backup_lacks(mailbox: Mailbox) -> None:
    mailbox.put(numbered(1))
    raise_cursors(mailbox.path, 1_795_000_000_000)
    raise_cursors(mailbox.path, 5)
    assert mailbox.put(numbered(2)) == 1_795_000_000_001, "a clock that went back lowers nothing"
    assert [entry.cursor for entry in mailbox.read("me", 40)] == [1_795_000_000_001]


def test_a_death_while_a_lost_file_is_made_leaves_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MovedClock(1_795_000_000_000)

    def die(_: object, __: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_raise_cursors", die)
        with pytest.raises(KeyboardInterrupt):
            Mailbox(tmp_path / "mailbox.db", clock).prepare(known=True)
    assert not (tmp_path / "mailbox.db").exists()
    again = Mailbox(tmp_path / "mailbox.db", clock)
    again.prepare(known=True)
    assert again.put(ENTRY) == 1_795_000_000_001


def test_a_cursor_ahead_of_an_older_copy_is_refused(mailbox: Mailbox) -> None:
    mailbox.put(numbered(1))
    older = mailbox.path.read_bytes()
    mailbox.put(numbered(2))
    assert mailbox.read("me", 2) == []
    mailbox.path.write_bytes(older)
    with pytest.raises(CursorAheadError, match="cursor 2 is ahead of the mailbox, whose newest entry had 1"):
        mailbox.read("me", 2)
    with sqlite3.connect(mailbox.path) as db:
        db.execute("DELETE FROM mailbox")
    assert mailbox.read("me", 1) == [], "what retention took was there"


def test_writers_in_several_threads_lose_nothing(mailbox: Mailbox) -> None:
    mailbox.prepare()

    def write(first: int) -> None:
        for number in range(first, first + 20):
            mailbox.put(numbered(number))

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = mailbox.read("me", 0, 1000)
    assert len(entries) == 60
    assert [entry.cursor for entry in entries] == sorted(entry.cursor for entry in entries)


def test_a_locked_file_is_said_to_be_busy(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox.prepare()
    monkeypatch.setattr("schema.connect.BUSY_TIMEOUT_MS", 1)
    holder = sqlite3.connect(mailbox.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(FileBusyError):
            mailbox.put(ENTRY)
    finally:
        holder.close()
    assert mailbox.put(ENTRY) == 1


def test_a_commit_that_a_dead_daemon_left_is_told_and_finished_by_the_next(mailbox: Mailbox, tmp_path: Path) -> None:
    mailbox.put(ENTRY)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    db = sqlite3.connect(mailbox.path, isolation_level=None)
    db.execute("PRAGMA cache_size=1")
    db.execute("BEGIN IMMEDIATE")
    filler = [(f"fill-{number}", "x" * 3000) for number in range(50)]
    db.executemany("INSERT INTO mailbox VALUES (NULL, 'me', ?, 'a', 's', NULL, 'chat', NULL, ?, 1, 1, NULL)", filler)
    # The cache spilled, so the file is half written and its journal says how to undo that: a crash at this moment.
    for name in ("mailbox.db", "mailbox.db-journal"):
        (crashed / name).write_bytes((tmp_path / name).read_bytes())
    db.close()

    left = Mailbox(crashed / "mailbox.db")
    with pytest.raises(StorageError, match="did not finish") as caught:
        left.read("me")
    assert "Start the daemon" in caught.value.hint
    left.prepare()
    assert [entry.message_out_id for entry in left.read("me")] == ["out-1"]


def prune(mailbox: Mailbox, cutoff: int, batch: int = 2) -> int:
    taken, after = 0, 0
    while True:
        number, following = mailbox.prune(cutoff, after, batch)
        taken += number
        if following is None:
            return taken
        after = following


def test_old_entries_go_and_no_cursor_comes_again(mailbox: Mailbox) -> None:
    cursors = [mailbox.put(numbered(number, delivered_at=1000 + number, answers=("in-9",))) for number in range(7)]
    assert prune(mailbox, 1005) == 5
    assert [entry.cursor for entry in mailbox.read("me")] == cursors[5:]
    found = mailbox.first_reply("a", "s", "in-9")
    assert found is not None
    assert found.cursor == cursors[5]
    assert prune(mailbox, 10_000) == 2
    assert mailbox.first_reply("a", "s", "in-9") is None
    assert mailbox.put(numbered(8)) > cursors[-1]


def test_a_client_misses_nothing_that_is_younger_than_the_age(mailbox: Mailbox) -> None:
    first = mailbox.put(numbered(0, delivered_at=1000))
    kept = [mailbox.put(numbered(number, delivered_at=2000)) for number in range(1, 4)]
    prune(mailbox, 2000)
    assert [entry.cursor for entry in mailbox.read("me", after=first)] == kept


def test_there_is_nothing_to_prune_where_there_is_no_file(mailbox: Mailbox) -> None:
    assert mailbox.prune(10**15, 0, 10) == (0, None)
    assert not mailbox.path.exists()
