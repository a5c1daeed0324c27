"""The inbound tables: seqs, what is due and when, attempts that cost one try and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.store import deliveries, host_messages, messages, outbound, reply_routes
from daemon.store.session_files import SessionFiles
from schema.errors import HostileFileError, StorageError
from schema.plain_file import ReadLimits
from schema.rows import AckStatus, Address, MessageStatus
from tests.support.older_shapes import OLDEST_OUT, ROWS_OUT, make_older
from tests.support.session_world import NOW, SessionWorld


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def test_seqs_are_even_and_above_everything_known(world: SessionWorld) -> None:
    assert [world.accept(name).seq for name in "abc"] == [2, 4, 6]
    with world.files.inbound() as db, db.transaction():
        deliveries.advance(db, 9, "1:1")
    assert world.accept("d").seq == 10
    with world.files.inbound() as db, db.transaction():
        host_messages.notify_sender(db, world_message(world, "a"), Address("local", "me"), "X", "failed", NOW)
    assert world.accept("e").seq == 14, "the host's own messages count too"


def test_a_notice_of_an_id_that_comes_again_is_no_repetition_for_its_receiver(tmp_path: Path) -> None:
    """A receiver that deduplicates would drop the notice of the message that a session made again has under the same id."""
    found: list[str] = []
    for life in ("first", "again"):
        world = SessionWorld(tmp_path / life)
        world.accept("a")
        with world.files.inbound() as db, db.transaction():
            host_messages.notify_sender(db, world_message(world, "a"), Address("local", "me"), "X", "failed", NOW)
        found += [row["id"] for row in world.read("SELECT id FROM host_messages")]
    assert len(set(found)) == 2


def world_message(world: SessionWorld, name: str) -> messages.MessageIn:
    with world.files.inbound() as db:
        found = messages.find(db, name)
    assert found is not None
    return found


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.just("in"), st.integers(1, 5)), max_size=12))
def test_seqs_of_both_sides_increase_whoever_writes(
    tmp_path_factory: pytest.TempPathFactory, turns: list[str | int]
) -> None:
    world, seen = SessionWorld(tmp_path_factory.mktemp("s")), list[int]()
    for number, turn in enumerate(turns):
        if turn == "in":
            seen.append(world.accept(f"m{number}").seq)
        else:
            assert isinstance(turn, int)
            said = [world.say(f"o{number}-{count}") for count in range(turn)]
            seen += said
            with world.files.inbound() as db, db.transaction():
                deliveries.advance(db, said[-1], "1:1")
    assert seen == sorted(set(seen))


def test_a_message_comes_back_as_it_was_stored(world: SessionWorld) -> None:
    stored = world.accept(
        "m", process_after=NOW + 1, recurrence="0 9 * * *", trigger=False, address=Address("c", "p", "t")
    )
    assert world_message(world, "m") == stored
    with world.files.inbound() as db:
        assert messages.find(db, "nobody") is None
        assert messages.address_of(stored) == Address("c", "p", "t")


def test_the_same_id_twice_is_refused_by_the_file(world: SessionWorld) -> None:
    world.accept("m")
    with pytest.raises(StorageError):
        world.accept("m")
    assert world.events("m") == ["accepted"]


def test_pending_shows_first_what_wakes(world: SessionWorld) -> None:
    world.accept("later", process_after=NOW + 1)
    world.accept("context", trigger=False)
    world.accept("due")
    world.accept("past", process_after=NOW)
    with world.files.inbound() as db:
        assert [message.id for message in messages.pending(db, NOW)] == ["due", "past", "context", "later"]
        assert [message.id for message in messages.pending(db, NOW, limit=1)] == ["due"]
        assert messages.count_due(db, NOW) == 2
        assert {message.id for message in messages.pending_of(db, ["due", "nobody", "later"])} == {"due", "later"}


@pytest.mark.parametrize("status", [status for status in MessageStatus if status is not MessageStatus.PENDING])
def test_what_is_not_pending_is_not_due(world: SessionWorld, status: MessageStatus) -> None:
    world.accept("m")
    world.change("UPDATE messages_in SET status = ?", (status.value,))
    with world.files.inbound() as db:
        assert (messages.pending(db, NOW), messages.count_due(db, NOW), messages.next_due_at(db, NOW)) == ([], 0, None)


def test_next_due_at(world: SessionWorld) -> None:
    def next_due() -> int | None:
        with world.files.inbound() as db:
            return messages.next_due_at(db, NOW)

    assert next_due() is None
    world.accept("context", trigger=False, process_after=NOW + 1)
    assert next_due() is None
    world.accept("late", process_after=NOW + 500)
    assert next_due() == NOW + 500
    world.accept("early", process_after=NOW + 20)
    assert next_due() == NOW + 20
    world.accept("now", process_after=NOW)
    assert next_due() == 0


def test_an_attempt_is_one_row_a_message_and_incarnation(world: SessionWorld) -> None:
    world.accept("m")
    with world.files.inbound() as db, db.transaction():
        assert messages.note_claim(db, "m", "i", NOW - 5, NOW)
        assert not messages.note_claim(db, "m", "i", NOW, NOW)
        assert messages.noted(db, ["m", "n"], "i") == {"m"}
        assert messages.ever_claimed(db, "i")
        assert not messages.ever_claimed(db, "j")
        assert messages.open_attempts(db) == [messages.Attempt("m", "i")]
        assert messages.charged(db, ["m"]) == frozenset()
        assert messages.end_attempt(db, "m", "i", NOW, "orphaned")
        assert not messages.end_attempt(db, "m", "i", NOW + 1, "orphaned"), "it has cost what it may cost"
        assert messages.charged(db, ["m", "n"]) == {("m", "i")}
        assert messages.open_attempts(db) == []
        assert messages.end_attempt(db, "m", "j", NOW, "orphaned"), "one that was never seen open costs too"
    rows = world.read("SELECT incarnation, claimed_at, ended_at, outcome FROM attempts ORDER BY incarnation")
    assert [tuple(row.values()) for row in rows] == [("i", NOW - 5, NOW, "orphaned"), ("j", NOW, NOW, "orphaned")]
    assert world.events("m") == ["accepted", "claimed"]


def test_an_unstamped_ack_ends_whatever_is_open(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        for name in ("i", "j"):
            messages.note_claim(db, "m", name, NOW, NOW)
        messages.end_attempt(db, "m", "i", NOW, "orphaned")
        messages.end_open_attempts(db, "m", NOW + 1, "completed")
    rows = world.read("SELECT incarnation, outcome FROM attempts ORDER BY incarnation")
    assert [tuple(row.values()) for row in rows] == [("i", "orphaned"), ("j", "completed")]


def test_lists_longer_than_sqlites_variables(world: SessionWorld) -> None:
    names = [f"m{number}" for number in range(2000)]
    with world.files.inbound() as db, db.transaction():
        for name in names[::500]:
            messages.note_claim(db, name, "i", NOW, NOW)
        assert messages.noted(db, names, "i") == set(names[::500])
        assert messages.pending_of(db, names) == []
        assert messages.charged(db, names) == frozenset()
        assert deliveries.known(db, names) == frozenset()
        assert reply_routes.origins(db, names) == {}


# the other side's file


def test_an_older_outbound_file_is_read_without_what_it_lacks(world: SessionWorld) -> None:
    make_older(world.files.folder.outbound_db, OLDEST_OUT, ROWS_OUT)
    with world.files.outbound() as out:
        assert out is not None
        assert outbound.tool_in_flight(out) is None
        acks = outbound.acks_for(out, ["done", "open", "nobody"])
        assert {name: (ack.status, ack.incarnation) for name, ack in acks.items()} == {
            "done": (AckStatus.COMPLETED, None), "open": (AckStatus.PROCESSING, None)}  # fmt: skip
        assert acks["done"].changed_at == 1_776_957_179_000, "2026-04-23 15:12:59, which is UTC"
        assert [claim.message_id for claim in outbound.claims(out)] == ["open"]
        assert [row.id for row in outbound.rows_after(out, 0, 10)] == ["o1", "o2"]


def test_a_file_without_any_of_our_tables_says_nothing(world: SessionWorld) -> None:
    make_older(world.files.folder.outbound_db, "CREATE TABLE notes (x);")
    with world.files.outbound() as out:
        assert out is not None
        assert outbound.tool_in_flight(out) is None
        assert (outbound.claims(out), outbound.acks_for(out, ["m"]), outbound.rows_after(out, 0, 9)) == ([], {}, [])
        assert (outbound.rows_by_id(out, ["o"])[0], outbound.recently_acked(out, 9)) == ({}, [])


HOSTILE_ACKS = ["(1, 'processing', 'now', NULL)", "('m', 'dancing', 'now', NULL)", "(x'00', 'completed', 'now', NULL)"]


@pytest.mark.faults
@pytest.mark.parametrize("values", HOSTILE_ACKS)
def test_an_ack_that_says_nothing_known_counts_as_absent(world: SessionWorld, values: str) -> None:
    make_older(world.files.folder.outbound_db,
               "CREATE TABLE processing_ack (message_id, status, status_changed, incarnation);",
               f"INSERT INTO processing_ack VALUES {values};")  # fmt: skip
    with world.files.outbound() as out:
        assert out is not None
        assert outbound.claims(out) == []
        assert outbound.acks_for(out, ["m", "1", "\0"]) == {}


@pytest.mark.faults
def test_a_tool_that_declares_nonsense_declares_nothing(world: SessionWorld) -> None:
    make_older(world.files.folder.outbound_db,
               "CREATE TABLE container_state (id, current_tool, tool_declared_timeout_ms, tool_started_at, updated_at);",
               "INSERT INTO container_state VALUES (1, 'Bash', -5, 'soon', NULL);")  # fmt: skip
    for value, expected in (("-5", None), ("'9'", None), ("1e308", None), ("600000", 600_000)):
        make_older(world.files.folder.outbound_db, f"UPDATE container_state SET tool_declared_timeout_ms = {value};")
        with world.files.outbound() as out:
            assert out is not None
            tool = outbound.tool_in_flight(out)
        assert tool is not None
        assert (tool.declared_timeout_ms, tool.started_at) == (expected, None)


HOSTILE_IDS = ["NULL", "1", "''", "x'6f31'", "printf('%.*c', 201, 'x')", "'a' || char(0) || 'b'"]


@pytest.mark.faults
@pytest.mark.parametrize("identity", HOSTILE_IDS)
def test_an_outbound_row_without_a_plain_id_is_hostile(world: SessionWorld, identity: str) -> None:
    make_older(world.files.folder.outbound_db,
               "CREATE TABLE messages_out (id, seq, in_reply_to, timestamp, deliver_after, kind, platform_id, channel_type,"
               " thread_id, content);",
               f"INSERT INTO messages_out(id, seq, kind, content) VALUES ({identity}, 1, 'chat', '{{}}');")  # fmt: skip
    with world.files.outbound() as out:
        assert out is not None
        with pytest.raises(HostileFileError):
            outbound.rows_after(out, 0, 9)


def test_files_are_made_once_and_for_the_right_eyes(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "s", ReadLimits())
    files.create()
    assert oct(files.folder.inbound_db.stat().st_mode & 0o777) == "0o644"
    assert oct(files.folder.logs.stat().st_mode & 0o777) == "0o700"
    with files.inbound() as db, db.transaction():
        deliveries.advance(db, 7, "1:1")
    files.create()
    with files.inbound() as db:
        assert deliveries.cursor(db, "1:1") == 7
    assert files.outbound_mark() is None
    with files.outbound() as out:
        assert out is None
