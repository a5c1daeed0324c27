"""Delivery's two transactions on real files, and what must hold however sends, failures and crashes interleave."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules, Reason, Send
from daemon.core.session_key import SessionKey
from daemon.engine import delivery_steps
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.engine.outcomes import outgoing
from daemon.inspect.dead_reading import Wanted, read_dead_letters
from daemon.inspect.message_life import read_life
from daemon.store import deliveries
from daemon.store.session_files import SessionFiles
from schema.errors import HostileFileError, StorageError
from schema.handles import Reader, Writer
from schema.layout import SessionFolder
from schema.plain_file import ReadLimits
from schema.rows import Address, DeliveryState
from tests.support.invariants import check_session, session_violations
from tests.support.older_shapes import OLDEST_IN, OLDEST_OUT, ROUTING, ROWS_IN, ROWS_OUT, make_older
from tests.support.session_world import HOME, NOW, SessionWorld

AWAY, HELD, GONE = Address("plain", "away"), Address("careful", "held"), Address("gone", "x")
CHANNELS = MappingProxyType(
    {
        "local": ChannelRules(deduplicates=True, hold_in_doubt=False),
        "plain": ChannelRules(deduplicates=False, hold_in_doubt=False),
        "careful": ChannelRules(deduplicates=False, hold_in_doubt=True),
    }
)
MEANS = DeliveryContext(CHANNELS, Delivery(), 10_000, held=frozenset(), under_way=frozenset(), jitter=0.5)
SECOND = 1000


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "s")
    made.accept("m1")
    for place in (AWAY, HELD, GONE):
        made.allow(place.channel_type, place.platform_id)
    return made


FEW = replace(MEANS, config=Delivery(batch=3))  # so that the property meets queues longer than one look


def look(world: SessionWorld, means: DeliveryContext = MEANS, live: str | None = None) -> Collected:
    return collect(world.files, replace(means, unconfirmed=set()), live, world)


def ids(found: Collected) -> list[str]:
    return [send.candidate.row.id for send in found.sends]


def deliver(world: SessionWorld, found: Collected) -> None:
    record_outcomes(
        world.files, [Outcome(send, sent=True, platform_message_id="p") for send in found.sends], MEANS, world.now
    )


def failed(send: Send, **fields: Any) -> Outcome:
    return replace(Outcome(send, sent=True, error_code="DELIVERY_TRANSIENT", error="no answer"), **fields)


def tracked(world: SessionWorld) -> dict[str, str]:
    return {row["message_out_id"]: row["state"] for row in world.read("SELECT * FROM delivery_attempts")}


def receipts(world: SessionWorld) -> dict[str, str]:
    return {row["message_out_id"]: row["status"] for row in world.read("SELECT * FROM delivered")}


def dump(world: SessionWorld) -> list[str]:
    connection = sqlite3.connect(world.files.folder.inbound_db)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def test_a_row_is_intended_with_the_cursor_before_it_is_sent_and_then_has_a_receipt(world: SessionWorld) -> None:
    seq = world.say("o1", in_reply_to="m1")
    found = look(world)
    assert ids(found) == ["o1"]
    assert found.sends[0].address == HOME
    assert tracked(world) == {"o1": "intended"}
    assert world.read("SELECT seq FROM delivery_cursor") == [{"seq": seq}]
    assert receipts(world) == {}
    deliver(world, found)
    assert tracked(world) == {}
    assert receipts(world) == {"o1": "delivered"}
    assert world.read("SELECT platform_message_id FROM delivered") == [{"platform_message_id": "p"}]
    assert ids(look(world)) == [], "no re-send after success"
    check_session(world.root, at_rest=True)


@pytest.mark.parametrize(
    "fields", [{}, {"permanent": True}, {"in_doubt": True}, {"error": None, "error_code": None, "not_wanted": True}]
)
def test_an_outcome_that_is_recorded_twice_counts_once(world: SessionWorld, fields: dict[str, Any]) -> None:
    """Whoever records an outcome repeats it when its commit was reported as failed, and that may have been wrong."""
    world.say("o1", in_reply_to="m1")
    (send,) = look(world).sends
    outcomes = [failed(send, **fields)]
    first = record_outcomes(world.files, outcomes, MEANS, world.now)
    recorded = dump(world)
    again = record_outcomes(world.files, outcomes, MEANS, world.now)
    assert dump(world) == recorded
    assert [one.candidate for one in again] == [one.candidate for one in first]
    check_session(world.root)


@pytest.fixture
def commit_fails_afterwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the next commit reach the file and be reported as failed, as when the sync of the folder fails."""
    original, armed = Writer.execute, [False]

    def execute(self: Writer, sql: str, parameters: Sequence[object] = ()) -> int:
        changed = original(self, sql, parameters)
        if sql == "COMMIT" and armed[0]:
            armed[0] = False
            raise StorageError("inbound.db: disk I/O error (SQLITE_IOERR_DIR_FSYNC)")
        return changed

    monkeypatch.setattr(Writer, "execute", execute)
    return lambda: armed.__setitem__(0, True)


@pytest.mark.parametrize("place", [HOME, AWAY, HELD], ids=["deduplicates", "sent again", "held"])
def test_an_intent_that_was_committed_with_an_error_is_no_doubt(
    world: SessionWorld, commit_fails_afterwards: Callable[[], None], place: Address
) -> None:
    means = replace(MEANS, unconfirmed=set())
    world.say("o1", to=place)
    commit_fails_afterwards()
    with pytest.raises(StorageError):
        collect(world.files, means, None, world)
    assert tracked(world) == {"o1": "intended"}, "the commit reached the file"
    # The answer to that is not in doubt either when the next commit ends the same way.
    commit_fails_afterwards()
    with pytest.raises(StorageError):
        collect(world.files, means, None, world)
    found = collect(world.files, means, None, world)
    assert ids(found) == ["o1"]
    assert (found.sends[0].in_doubt, found.sends[0].candidate.attempts) == (False, 0)
    assert means.unconfirmed == set()
    deliver(world, found)
    assert receipts(world) == {"o1": "delivered"}
    assert world.read("SELECT event FROM message_history WHERE message_id = 'o1'") == [], "no doubt is declared"
    check_session(world.root, at_rest=True)


def test_a_doubt_of_an_earlier_daemon_stays_one_though_a_commit_fails(
    world: SessionWorld, commit_fails_afterwards: Callable[[], None]
) -> None:
    world.say("o1", to=AWAY)
    look(world)  # and the daemon dies in the send
    means = replace(MEANS, unconfirmed=set())
    commit_fails_afterwards()
    with pytest.raises(StorageError):
        collect(world.files, means, None, world)
    found = collect(world.files, means, None, world)
    assert [(send.candidate.row.id, send.in_doubt) for send in found.sends] == [("o1", True)]


def test_overlapping_looks_send_once(world: SessionWorld) -> None:
    world.say("o1")
    first = look(world)
    under_way = replace(MEANS, held=frozenset({HOME.key}), under_way=frozenset({"o1"}))
    world.say("o2")
    assert ids(look(world, under_way)) == [], "o1 is being sent, and o2 waits its turn"
    assert tracked(world) == {"o1": "intended", "o2": "queued"}
    deliver(world, first)
    assert ids(look(world)) == ["o2"]


def test_a_retry_that_a_crash_left_in_doubt_comes_first_also_after_the_clock_was_set_back(world: SessionWorld) -> None:
    """Found by the simulation (seed 8200221): it kept the time of its retry, and the row behind it overtook it."""
    world.say("o1")
    first = look(world)
    world.say("o2")
    record_outcomes(world.files, [failed(send) for send in first.sends], MEANS, world.now)
    world.now += 60 * SECOND
    assert ids(look(world)) == ["o1", "o2"]
    world.now -= 3600 * SECOND  # and the daemon died: both are in doubt
    assert ids(look(world)) == ["o1", "o2"]


def test_an_unauthorised_row_never_reaches_a_channel_and_the_agent_is_told(world: SessionWorld) -> None:
    world.say("bad", to=Address("local", "somebody-else"), in_reply_to="m1")
    found = look(world)
    assert found.sends == ()
    assert [(dead.candidate.row.id, dead.reason) for dead in found.dead_lettered] == [("bad", Reason.UNAUTHORISED)]
    assert (tracked(world), receipts(world)) == ({"bad": "dead"}, {"bad": "failed"})
    notice = world.message("dead-letter:bad")
    assert (notice["kind"], notice["trigger"], notice["status"]) == ("system", 0, "pending")
    told = json.loads(notice["content"])
    assert (told["message_out_id"], told["in_reply_to"], told["code"]) == ("bad", "m1", "UNAUTHORISED_DESTINATION")
    assert "bad" in told["text"]
    assert world.events("bad") == ["dead_lettered"]
    assert look(world).dead_lettered == (), "told once"
    check_session(world.root)


def test_a_later_row_waits_and_holds_nobody_back(world: SessionWorld) -> None:
    world.say("later", deliver_after=NOW + 60 * SECOND)
    world.say("now")
    found = look(world)
    assert ids(found) == ["now"]
    assert found.later
    deliver(world, found)
    world.now += 60 * SECOND - 1
    assert ids(look(world)) == []
    world.now += 1
    assert ids(look(world)) == ["later"]


def test_a_retrying_head_holds_back_its_own_destination_only(world: SessionWorld) -> None:
    for number, place in enumerate((HOME, AWAY, HOME, AWAY), 1):
        world.say(f"o{number}", to=place)
    found = look(world)
    assert ids(found) == ["o1", "o2", "o3"], "`plain` gets one at a time"
    o1, o2, o3 = found.sends
    record_outcomes(world.files, [failed(o1), Outcome(o3, sent=False)], MEANS, world.now)
    record_outcomes(world.files, [Outcome(o2, sent=True)], MEANS, world.now)
    assert tracked(world) == {"o1": "retrying", "o3": "queued", "o4": "queued"}
    world.say("o5", to=HOME)
    again = look(world)
    assert ids(again) == ["o4"]
    deliver(world, again)
    assert tracked(world) == {"o1": "retrying", "o3": "queued", "o5": "queued"}
    world.now += 5 * SECOND
    assert ids(look(world)) == ["o1", "o3", "o5"]
    (head,) = world.read("SELECT attempts FROM delivery_attempts WHERE message_out_id = 'o1'")
    assert head["attempts"] == 2
    assert world.events("o1") == ["delivery_failed"]


def test_a_new_row_never_overtakes_the_queue_of_its_destination(world: SessionWorld) -> None:
    """What waits is more than one look takes in: the new row behind it must not come in by the other door."""
    two_at_a_time = replace(MEANS, config=Delivery(batch=2))
    for number in range(1, 6):
        world.say(f"o{number}")
    head, second = look(world, two_at_a_time).sends
    record_outcomes(world.files, [failed(head), Outcome(second, sent=False)], MEANS, world.now)
    look(world, two_at_a_time)
    look(world, two_at_a_time)
    assert set(tracked(world)) == {f"o{number}" for number in range(1, 6)}
    world.now += 5 * SECOND
    world.say("o6")
    order: list[str] = []
    for _ in range(3):
        found = look(world, two_at_a_time)
        order += ids(found)
        deliver(world, found)
    assert order == [f"o{number}" for number in range(1, 7)]


def test_attempts_back_off_and_honour_retry_after(world: SessionWorld) -> None:
    world.say("o1")
    for wait in (5, 10, 20, 300):
        found = look(world)
        assert ids(found) == ["o1"]
        record_outcomes(world.files, [failed(found.sends[0], retry_after_s=float(wait))], MEANS, world.now)
        (state,) = world.read("SELECT * FROM delivery_attempts")
        assert state["next_attempt_at"] == world.now + wait * SECOND
        assert (state["last_error_code"], state["last_error"]) == ("DELIVERY_TRANSIENT", "no answer")
        world.now = state["next_attempt_at"] - 1
        assert ids(look(world)) == []
        world.now += 1


def test_a_permanent_failure_is_a_dead_letter_at_once(world: SessionWorld) -> None:
    world.say("o1")
    outcome = failed(look(world).sends[0], permanent=True, error_code="DELIVERY_PERMANENT", error="410 Gone")
    (dead,) = record_outcomes(world.files, [outcome], MEANS, world.now)
    assert (dead.reason, dead.error) == ("DELIVERY_PERMANENT", "410 Gone")
    assert (tracked(world), receipts(world)) == ({"o1": "dead"}, {"o1": "failed"})
    check_session(world.root, at_rest=True)


def test_trying_ends_after_the_configured_time(world: SessionWorld) -> None:
    world.say("o1")
    send = look(world).sends[0]
    assert record_outcomes(world.files, [failed(send)], MEANS, world.now) == []
    world.now += 24 * 3600 * SECOND
    again = look(world).sends[0]
    assert record_outcomes(world.files, [failed(again)], MEANS, world.now) == [], "24 h are not over"
    world.now += 2 * 3600 * SECOND
    (dead,) = record_outcomes(world.files, [failed(look(world).sends[0])], MEANS, world.now)
    assert dead.error == "gave up after 3 attempts: no answer"


def test_without_a_channel_it_is_deferred_and_in_the_end_dead(world: SessionWorld) -> None:
    world.say("o1", to=GONE)
    world.say("o2", to=GONE)
    found = look(world)
    assert [(item.candidate.row.id, item.reason) for item in found.deferred] == [("o1", Reason.NO_CHANNEL)]
    assert found.later
    assert tracked(world) == {"o1": "retrying", "o2": "queued"}
    assert receipts(world) == {}, "no adapter is a failure, not a delivery"
    world.now += 25 * 3600 * SECOND
    look(world)
    assert tracked(world)["o1"] == "dead"


@pytest.mark.faults
@pytest.mark.parametrize(("place", "again"), [(HOME, True), (AWAY, True), (HELD, False)])
def test_a_crash_between_intent_and_receipt(world: SessionWorld, place: Address, again: bool) -> None:
    world.say("o1", to=place)
    assert ids(look(world)) == ["o1"]  # and here the daemon died
    found = look(world)
    if again:
        assert ids(found) == ["o1"]
        assert found.sends[0].in_doubt
        deliver(world, found)
        assert receipts(world) == {"o1": "delivered"}
    else:
        assert [dead.reason for dead in found.dead_lettered] == [Reason.IN_DOUBT]
        assert receipts(world) == {"o1": "failed"}
    check_session(world.root, at_rest=again)


@pytest.mark.faults
def test_a_crash_inside_the_first_transaction_leaves_nothing(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accept("m2")
    world.ack("completed", "m1", by="i")
    world.claim("m2", by="i")
    world.say("o1")
    world.say("bad", to=Address("local", "nobody"))
    before = dump(world)

    class Crash(Exception):
        """The daemon dies here."""

    def die(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(delivery_steps.deliveries, "advance", die)
    with pytest.raises(Crash):
        look(world, live="i")
    assert dump(world) == before
    monkeypatch.undo()
    found = look(world, live="i")
    assert (ids(found), len(found.dead_lettered), len(found.settled), len(found.claimed)) == (["o1"], 1, 1, 1)


def test_acks_and_claims_are_taken_note_of_in_passing(world: SessionWorld) -> None:
    world.accept("m2")
    world.claim("m1", "m2", by="i", at=NOW - 5)
    found = look(world, live="i")
    assert [claim.message_id for claim in found.claimed] == ["m1", "m2"]
    assert world.events("m1") == ["accepted", "claimed"]
    assert look(world, live="i").claimed == ()
    world.ack("completed", "m1", by="i")
    world.ack("failed", "m2", by="i")
    assert len(look(world, live="i").settled) == 2
    assert (world.message("m1")["status"], world.message("m2")["status"]) == ("completed", "failed")
    check_session(world.root)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "code"),
    [
        ('{"n": 1e999}', "BAD_CONTENT"),
        ('{"n": -1E+400}', "BAD_CONTENT"),
        ('{"n": ' + "9" * 400 + "}", "BAD_CONTENT"),
        ('{"n": NaN}', "BAD_CONTENT"),
        ('{"n": ' + "[" * 150 + "]" * 150 + "}", "BAD_CONTENT"),
        ("[" * 5000, "BAD_CONTENT"),
        ("no json", "BAD_CONTENT"),
        ('{"text": "' + "x" * 20_000 + '"}', "BAD_CONTENT"),
    ],
)
def test_whoever_waits_for_an_answer_that_cannot_be_sent_is_told(world: SessionWorld, content: str, code: str) -> None:
    with world.runner() as db, db.transaction():
        db.execute(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, content) VALUES ('o1', 101, 'm1', '2026-11-21T00:00:00.000Z', 'chat', ?)",
            (content,),
        )
    found = look(world)
    assert [one.reason for one in found.dead_lettered] == [code]
    (notice,) = world.read("SELECT * FROM host_messages")
    assert notice["in_reply_to"] == "m1"
    assert json.loads(notice["content"])["error"] == {
        "code": code,
        "message": "The answer to this message cannot be sent.",
        "reference": "m1",
    }
    check_session(world.root)


def test_a_request_to_the_host_is_no_answer_that_somebody_waits_for(world: SessionWorld) -> None:
    """NanoClaw's runner makes requests that this host does not know, beside its answer."""
    with world.runner() as db, db.transaction():
        db.execute(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, content)"
            " VALUES ('o1', 101, 'm1', '2026-11-21T00:00:00.000Z', 'system', '{\"action\": \"register_group\"}')"
        )
    assert [one.reason for one in look(world).dead_lettered] == ["UNKNOWN_KIND"]
    assert world.read("SELECT * FROM host_messages") == []
    check_session(world.root)


@pytest.mark.parametrize(("place", "told"), [(None, ["TOO_FAR_AHEAD"]), ("elsewhere", [])])
def test_whoever_waits_for_an_answer_that_may_not_wait_so_long_is_told(
    world: SessionWorld, place: str | None, told: list[str]
) -> None:
    with world.runner() as db, db.transaction():
        db.execute(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, deliver_after, kind, channel_type, platform_id, content)"
            " VALUES ('o1', 101, 'm1', '2026-11-21T00:00:00.000Z', '2999-01-01T00:00:00Z', 'chat', ?, ?, '{\"text\": \"x\"}')",
            ("local" if place is not None else None, place),
        )
    look(world)
    notices = world.read("SELECT * FROM host_messages")
    assert [json.loads(notice["content"])["error"]["code"] for notice in notices] == told


@pytest.mark.parametrize(
    "content", ['{"n": 1e30}', '{"n": 123456789012345678901234567890}', '{"t": "1e999"}', '{"a": [[]]}']
)
def test_what_only_looks_too_large_is_sent(world: SessionWorld, content: str) -> None:
    world.say("o1")
    with world.runner() as db, db.transaction():
        db.execute("UPDATE messages_out SET content = ?", (content,))
    # A number in a text may cost its text a walk, and nothing else.
    assert ids(look(world)) == ["o1"]


def test_half_a_character_of_a_foreign_runner_goes_out_as_the_replacement_character(world: SessionWorld) -> None:
    world.say("o1")
    with world.runner() as db, db.transaction():
        db.execute("UPDATE messages_out SET content = ?", ('{"text":"paid \\ud83d \\ud83d\\ude00","\\udc00":1}',))
    (send,) = look(world).sends
    sent = outgoing(SessionKey("a", "s"), send, None).content
    assert json.loads(sent) == {"text": "paid \ufffd \U0001f600", "\ufffd": 1}
    assert sent.encode()


def test_why_a_turn_failed_goes_into_the_history_and_no_further(world: SessionWorld) -> None:
    world.claim("m1", by="i")
    world.ack("failed", "m1", by="i")
    note(world, "m1", "i", "COMMAND_EXIT", "exit code 1:\n\x1b[31m401 for https://x.example/?key=sk-1\u202e")
    look(world)
    (row,) = world.read("SELECT detail FROM message_history WHERE event = 'failed'")
    assert json.loads(row["detail"]) == {
        "code": "AGENT_FAILED",
        "error_code": "COMMAND_EXIT",
        "reason": "exit code 1: [31m401 for https://x.example/?key=sk-1",
    }
    assert world.read("SELECT * FROM host_messages") == []
    letters, _ = read_dead_letters(SessionFolder(world.root), Wanted(limit=10))
    assert letters[0]["reason"] == "exit code 1: [31m401 for https://x.example/?key=sk-1"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("incarnation", "code", "message"),
    [
        ("another", "COMMAND_EXIT", "an earlier container's"),
        ("i", "forged\nline", "x"),
        ("i", b"\xff", "x"),
        ("i", "COMMAND_EXIT", b"\xff"),
        (None, "COMMAND_EXIT", "x"),
    ],
)
def test_a_note_that_is_none_of_this_turn_is_left_out(
    world: SessionWorld, incarnation: str | None, code: object, message: object
) -> None:
    world.claim("m1", by="i")
    world.ack("failed", "m1", by="i")
    note(world, "m1", incarnation, code, message)
    look(world)
    (row,) = world.read("SELECT detail FROM message_history WHERE event = 'failed'")
    assert json.loads(row["detail"]) == {"code": "AGENT_FAILED", "reason": "the agent answered with an error"}


def test_a_dead_answer_s_notice_to_the_agent_has_no_word_of_the_receiver(world: SessionWorld) -> None:
    world.say("o1")
    error = "hook https://receiver.example/?token=t0p answered 404"
    outcomes = [
        failed(send, error=error, error_code="DELIVERY_PERMANENT", permanent=True) for send in look(world).sends
    ]
    record_outcomes(world.files, outcomes, MEANS, world.now)
    (row,) = world.read("SELECT content FROM messages_in WHERE kind = 'system'")
    assert "t0p" not in row["content"]
    assert json.loads(row["content"])["code"] == "DELIVERY_PERMANENT"
    (tracked,) = world.read("SELECT last_error FROM delivery_attempts")
    assert tracked["last_error"] == error


def note(world: SessionWorld, message_id: str, incarnation: str | None, code: object, message: object) -> None:
    with world.runner() as db, db.transaction():
        db.execute("INSERT INTO turn_notes VALUES (?, ?, '', ?, ?)", (message_id, incarnation, code, message))


@pytest.mark.parametrize("live", [None, "other"])
def test_claims_of_nobody_who_lives_are_not_noted(world: SessionWorld, live: str | None) -> None:
    world.claim("m1", by="i")
    assert look(world, live=live).claimed == ()


# what a hostile container may do to its own rows


@pytest.mark.faults
def test_an_id_used_again_is_not_sent_again(world: SessionWorld) -> None:
    world.say("o1")
    deliver(world, look(world))
    with world.runner() as db:
        db.execute("DELETE FROM messages_out")
    world.say("o1", content="again", seq=99)
    assert ids(look(world)) == []
    assert world.read("SELECT seq FROM delivery_cursor") == [{"seq": 99}]
    assert receipts(world) == {"o1": "delivered"}


@pytest.mark.faults
def test_a_seq_rewritten_is_not_sent_again(world: SessionWorld) -> None:
    world.say("o1")
    first = look(world)
    with world.runner() as db:
        db.execute("UPDATE messages_out SET seq = 77")
    assert ids(look(world, replace(MEANS, held=frozenset({HOME.key}), under_way=frozenset({"o1"})))) == []
    deliver(world, first)
    assert ids(look(world)) == []


@pytest.mark.faults
def test_a_row_slipped_in_below_the_cursor_is_never_sent(world: SessionWorld) -> None:
    world.say("o1", seq=51)
    deliver(world, look(world))
    world.say("low", seq=7)
    found = look(world)
    assert (ids(found), found.more) == ([], False)


@pytest.mark.faults
def test_a_row_taken_away_while_it_waits_is_a_dead_letter(world: SessionWorld) -> None:
    world.say("o1", deliver_after=NOW + SECOND)
    look(world)
    with world.runner() as db:
        db.execute("DELETE FROM messages_out")
    world.now += SECOND
    assert [dead.reason for dead in look(world).dead_lettered] == [Reason.ROW_GONE]
    assert receipts(world) == {"o1": "failed"}


@pytest.mark.faults
def test_a_row_changed_while_it_waits_is_judged_anew(world: SessionWorld) -> None:
    world.say("o1", deliver_after=NOW + SECOND)
    look(world)
    with world.runner() as db:
        db.execute("UPDATE messages_out SET channel_type = 'local', platform_id = 'somebody-else'")
    world.now += SECOND
    assert [dead.reason for dead in look(world).dead_lettered] == [Reason.UNAUTHORISED]


@pytest.mark.faults
@pytest.mark.parametrize("seq", ["0", "-1", "'x'", "1.5", "9223372036854775807", "NULL"])
def test_an_absurd_seq_is_hostile_or_never_seen(world: SessionWorld, seq: str) -> None:
    world.runner().close()
    connection = sqlite3.connect(world.files.folder.outbound_db)
    connection.execute("DROP TABLE messages_out")
    connection.execute("CREATE TABLE messages_out (id, seq, in_reply_to, timestamp, deliver_after, kind, platform_id,"
                       " channel_type, thread_id, content)")  # fmt: skip
    connection.execute(f"INSERT INTO messages_out(id, seq, kind, content) VALUES ('o1', {seq}, 'chat', '{{}}')")
    connection.commit()
    connection.close()
    before = dump(world)
    with contextlib.suppress(HostileFileError):
        assert look(world).sends == ()
    assert dump(world) == before


@pytest.mark.faults
def test_a_seq_at_the_very_top_does_not_stop_the_host_from_accepting(world: SessionWorld) -> None:
    world.say("o1", seq=2**53 - 1)
    world.say("o2", seq=2**53)
    deliver(world, look(world))
    seqs = [world.accept(f"after{number}").seq for number in range(5)]
    assert len(set(seqs)) == 5
    assert all(seq % 2 == 0 for seq in seqs)


def test_a_folder_that_came_from_elsewhere_re_sends_nothing(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / "s" / name).mkdir(parents=True)
    make_older(tmp_path / "s" / "in" / "inbound.db", OLDEST_IN, ROUTING, ROWS_IN)
    make_older(tmp_path / "s" / "out" / "outbound.db", OLDEST_OUT, ROWS_OUT)
    world = SessionWorld(tmp_path / "s")
    world.allow("local", "me")
    found = look(world)
    assert ids(found) == ["o2"], "o1 had been delivered"
    deliver(world, found)
    assert receipts(world) == {"o1": "delivered", "o2": "delivered"}
    check_session(world.root)


# the property


ALL_PLACES = (HOME, AWAY, HELD)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(ALL_PLACES), st.sampled_from([0, 0, 0, 7])),
        st.tuples(
            st.just("look"),
            st.sampled_from(["ok", "fail", "permanent", "crash before", "crash after"]),
            st.integers(0, 3),
        ),
        st.tuples(st.just("wait"), st.integers(1, 40), st.none()),
    ),
    max_size=25,
)


class Receiver:
    """Where everything arrives, in order; a deduplicating one shows a repeated key once."""

    def __init__(self) -> None:
        self.arrived: dict[str, list[str]] = defaultdict(list)

    def take(self, send: Send) -> None:
        rows = self.arrived[send.address.key]
        if send.candidate.row.id not in rows:
            rows.append(send.candidate.row.id)


def send_groups(world: SessionWorld, found: Collected, receiver: Receiver, fate: str, at: int) -> None:
    """What the engine does with intended sends; `fate` strikes the `at`-th of each destination."""
    groups: dict[str, list[Send]] = defaultdict(list)
    for send in found.sends:
        groups[send.address.key].append(send)
    for sends in groups.values():
        outcomes: list[Outcome] = []
        for number, send in enumerate(sends):
            if outcomes and (outcomes[-1].error is not None or not outcomes[-1].sent):
                outcomes.append(Outcome(send, sent=False))
            elif fate == "ok" or number != at:
                receiver.take(send)
                outcomes.append(Outcome(send, sent=True))
            elif fate == "crash after":
                receiver.take(send)
                return
            elif fate == "crash before":
                return
            else:
                outcomes.append(failed(send, permanent=fate == "permanent"))
        record_outcomes(world.files, outcomes, MEANS, world.now)


@settings(max_examples=40, deadline=None)
@example(
    [("say", AWAY, 7), ("say", AWAY, 0), ("look", "crash before", 0), ("wait", 7, None), ("look", "crash before", 0)]
)
@given(STEPS)
def test_per_destination_sends_follow_seq_and_every_row_ends_once(steps: list[tuple[str, object, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world, receiver, waits = SessionWorld(Path(folder) / "s"), Receiver(), set[str]()
        world.accept("m1")
        for place in (AWAY, HELD):
            world.allow(place.channel_type, place.platform_id)
        said: list[str] = []
        for action, first, second in steps:
            if action == "say":
                assert isinstance(first, Address)
                assert isinstance(second, int)
                said.append(f"o{len(said)}")
                world.say(said[-1], to=first, deliver_after=world.now + second * SECOND if second else None)
                waits.update(said[-1:] if second else ())
            elif action == "look":
                assert isinstance(second, int)
                send_groups(world, look(world, FEW), receiver, str(first), second)
                _check_intents(world)
                assert session_violations(world.root) == []
            else:
                assert isinstance(first, int)
                world.now += first * SECOND
        for _ in range(len(said) + 2):  # from now on all is well
            world.now += 3600 * SECOND
            send_groups(world, look(world, FEW), receiver, "ok", 0)
        done = receipts(world)
        assert sorted(done) == sorted(said), "exactly one end each"
        assert set(tracked(world).values()) <= {"dead"}
        for rows in receiver.arrived.values():
            in_turn = [int(row[1:]) for row in rows if row not in waits]
            assert in_turn == sorted(in_turn)
        arrived = {row for rows in receiver.arrived.values() for row in rows}
        assert {row for row, status in done.items() if status == "delivered"} <= arrived, (
            "no receipt for what never arrived"
        )
        check_session(world.root, at_rest=True)


def _check_intents(world: SessionWorld) -> None:
    """A channel that does not deduplicate never has two sends in doubt."""
    intents = world.read("SELECT destination FROM delivery_attempts WHERE state = ?", (DeliveryState.INTENDED.value,))
    careful = [row["destination"] for row in intents if row["destination"] != HOME.key]
    assert len(careful) == len(set(careful))


def test_the_cursor_never_goes_back_within_one_file(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        for seq, expected in ((5, 5), (3, 5), (9, 9), (9, 9), (0, 9)):
            deliveries.advance(db, seq, "1:7")
            assert deliveries.cursor(db, "1:7") == expected


def test_a_file_made_anew_is_read_from_its_beginning(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        deliveries.advance(db, 9, "1:7")
        assert deliveries.cursor(db, "1:8") == 0
        deliveries.advance(db, 3, "1:8")
        assert deliveries.cursor(db, "1:8") == 3


def test_nothing_is_dated_before_what_it_answers(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the turn ends after the poll began: at the last moment before outbound.db is read."""
    opened = SessionFiles.outbound

    def outbound(files: SessionFiles) -> AbstractContextManager[Reader | None]:
        world.now += 50
        world.claim("m1", by="I1")
        world.say("o1", in_reply_to="m1")
        world.ack("completed", "m1", by="I1")
        return opened(files)

    monkeypatch.setattr(SessionFiles, "outbound", outbound)
    found = look(world, live="I1")
    deliver(world, found)
    life, errors = read_life(world.files.folder, "m1", ReadLimits())
    assert errors == []
    told = [event["event"] for event in life]
    assert told == ["accepted", "answered", "acked_completed", "completed", "delivered"]
    assert found.at == world.now
