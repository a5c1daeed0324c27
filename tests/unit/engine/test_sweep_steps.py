"""The sweep's transactions on real files: what a tick and a confirmed exit leave in inbound.db, and that repeating costs nothing."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from container_runner.store import Store
from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.core.lifecycle import CEILING, CLAIM_STUCK, Container, Kill, Policy, Reset, Settle, Stop, Wake, is_due
from daemon.engine import incarnation_steps as steps
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.incarnation_steps import finish_incarnation
from daemon.engine.sweep_steps import Settings, Swept, sweep_files
from daemon.runtimes import output_log
from daemon.store import messages
from daemon.store.session_files import SessionFiles
from schema.connect import open_reader
from schema.errors import HostileFileError, ReadRaceError
from schema.instants import to_text
from schema.plain_file import ReadLimits
from schema.rows import AckStatus, Address
from tests.support.hot_journal import strand_journal
from tests.support.invariants import check_session
from tests.support.older_shapes import OLDEST_OUT, ROWS_OUT, make_older
from tests.support.session_world import NOW, SessionWorld

SETTINGS = Settings(Policy())
SECOND, MINUTE = 1000, 60_000


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    return SessionWorld(tmp_path / "s")


def sweep(world: SessionWorld, container: Container | None = None, *, occupied: bool = False, floor: int = 0) -> Swept:
    return sweep_files(world.files, container, world.now, SETTINGS, occupied=occupied, floor=floor)


def finish(world: SessionWorld, incarnation: str, reason: str = "exited") -> tuple[bool, list[str]]:
    claimed, actions, *_ = finish_incarnation(world.files, incarnation, reason, world.now, SETTINGS)
    return claimed, [type(action).__name__ for action in actions]


def dump(world: SessionWorld) -> list[str]:
    connection = sqlite3.connect(world.files.folder.inbound_db)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def test_an_empty_session_has_nothing_to_do(world: SessionWorld) -> None:
    before = world.files.folder.inbound_db.stat()
    assert sweep(world) == Swept((), (), None, 0)
    after = world.files.folder.inbound_db.stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns), "an idle look writes nothing"
    assert not world.files.folder.outbound_db.exists(), "and makes no file of the container's"


def test_a_final_ack_becomes_a_status(world: SessionWorld) -> None:
    for name in ("a", "b", "c"):
        world.accept(name)
    world.claim("a", "b", "c", by="i")
    sweep(world, Container("i", NOW))
    world.ack("completed", "a", by="i")
    world.ack("failed", "b", by="i")
    swept = sweep(world, Container("i", NOW))
    assert swept.actions == (Settle("a", AckStatus.COMPLETED, "i"), Settle("b", AckStatus.FAILED, "i"))
    assert [world.message(name)["status"] for name in "abc"] == ["completed", "failed", "pending"]
    assert world.events("a")[-1] == "completed"
    assert [row["outcome"] for row in world.read("SELECT outcome FROM attempts ORDER BY message_id")] == [
        "completed",
        "failed",
    ]
    check_session(world.root)


def test_a_session_with_work_and_no_container_is_woken_and_left_alone_otherwise(world: SessionWorld) -> None:
    world.accept("m")
    world.claim("m", by="dead")
    before = dump(world)
    assert sweep(world).actions == (Wake(1),)
    assert dump(world) == before
    assert sweep(world, occupied=True).actions == ()


def test_a_crash_costs_one_try_and_the_next_is_backed_off(world: SessionWorld) -> None:
    world.accept("m")
    world.claim("m", by="i1")
    claimed, actions, *_ = finish_incarnation(world.files, "i1", "exited", world.now, SETTINGS)
    assert (claimed, actions) == (True, [Reset("m", "i1", 1, NOW + 5 * SECOND)])
    row = world.message("m")
    assert (row["status"], row["tries"], row["process_after"]) == ("pending", 1, to_text(NOW + 5 * SECOND))
    assert world.events("m") == ["accepted", "claimed", "retry_scheduled"]
    for _ in range(5):  # the orphan lies there until a container starts
        assert sweep(world).actions == ()
        world.now += SECOND
    assert sweep(world).actions == (Wake(1),), "5 s later it is due again"
    assert world.message("m")["tries"] == 1
    check_session(world.root, at_rest=True)


def test_five_incarnations_fail_it_and_tell_the_sender_once(world: SessionWorld) -> None:
    home = Address("webhook", "hooks", "thread-7")
    world.accept("m", address=home)
    for number in range(1, 6):
        name = f"i{number}"
        world.claim("m", by=name)
        assert finish(world, name)[0]
        assert world.message("m")["tries"] == number
        for _ in range(3):
            finish(world, name)
            sweep(world)
        if number < 5:
            assert world.message("m")["process_after"] == to_text(world.now + 5 * SECOND * 2 ** (number - 1))
            world.now += 5 * SECOND * 2 ** (number - 1)
    assert world.message("m")["status"] == "failed"
    assert world.events("m") == ["accepted"] + ["claimed", "retry_scheduled"] * 4 + ["claimed", "failed"]
    (notice,) = world.read("SELECT * FROM host_messages")
    assert (notice["in_reply_to"], notice["channel_type"], notice["platform_id"], notice["thread_id"]) == (
        "m", "webhook", "hooks", "thread-7")  # fmt: skip
    told = json.loads(notice["content"])
    assert told["error"]["code"] == "TRIES_EXHAUSTED"
    assert "5 tries" in told["text"]
    (tracked,) = world.read("SELECT * FROM delivery_attempts")
    assert (tracked["message_out_id"], tracked["state"], tracked["source"]) == (notice["id"], "queued", "host")
    assert notice["id"].startswith("failed:m:")
    assert sweep(world).next_at == 0, "the notice waits to be sent"
    check_session(world.root)


def test_a_sender_without_an_address_is_not_told_and_the_message_fails_all_the_same(world: SessionWorld) -> None:
    world.accept("m", address=None)
    world.change("UPDATE messages_in SET tries = 4")
    world.claim("m", by="i")
    assert finish(world, "i") == (True, ["Fail"])
    assert world.message("m")["status"] == "failed"
    assert world.read("SELECT * FROM host_messages") == []


@pytest.mark.faults
def test_a_container_that_takes_the_notices_id_cannot_keep_the_message_from_failing(world: SessionWorld) -> None:
    world.accept("m")
    world.change("UPDATE messages_in SET tries = 4")
    world.say("failed:m", kind="telepathy")
    collect(world.files, DeliveryContext({}, Delivery(), 1000, frozenset(), frozenset(), 0.5), None, world)
    assert world.read("SELECT state FROM delivery_attempts") == [{"state": "dead"}]
    world.claim("m", by="i")
    assert finish(world, "i") == (True, ["Fail"])
    assert world.message("m")["status"] == "failed"
    (notice,) = world.read("SELECT id, in_reply_to FROM host_messages")
    assert notice["in_reply_to"] == "m"
    assert notice["id"].startswith("failed:m:")
    assert finish(world, "i") == (True, [])
    assert len(world.read("SELECT id FROM host_messages")) == 1


def test_a_claim_that_was_given_back_costs_no_try(world: SessionWorld) -> None:
    world.accept("m")
    world.claim("m", by="i")
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "m", "i", NOW, NOW)
    world.unclaim("m")
    assert finish(world, "i", reason="idle") == (True, [])
    row = world.message("m")
    assert (row["status"], row["tries"], row["process_after"]) == ("pending", 0, None)
    assert world.events("m") == ["accepted", "claimed", "released"]
    assert sweep(world).actions == (Wake(1),)
    check_session(world.root, at_rest=True)


def test_a_claim_in_whole_seconds_is_not_shown_before_its_message_was_accepted(world: SessionWorld) -> None:
    """As a runner writes it that knows nothing finer: claimed 0.2 s after the message came, in the second before."""
    second = NOW - NOW % 1000
    world.now = second + 300
    world.accept("m")
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "m", "i", second, second + 500)
    shown = world.read("SELECT at FROM message_history WHERE message_id = 'm' AND event = 'claimed'")
    assert shown == [{"at": second + 500}]
    assert world.read("SELECT claimed_at FROM attempts") == [{"claimed_at": second}], "what it says is kept"


@pytest.mark.parametrize(
    ("dated", "after", "kept"),
    [
        (NOW - 3_600_000, None, NOW + 100),  # its clock is an hour behind
        (NOW - 1_000, None, NOW - 1_000),
        (NOW + 50, None, NOW + 50),
        (NOW + 3_600_000, None, NOW + 100),  # ahead
        (NOW + 50, NOW + 60_000, NOW + 100),  # behind: the message was not due then
    ],
)
def test_a_claim_by_a_clock_that_is_behind_counts_from_now(
    world: SessionWorld, dated: int, after: int | None, kept: int
) -> None:
    """Its container was ended as stuck in the first moment of each turn, until the message was a dead letter."""
    world.accept("m", process_after=after)
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "m", "i", dated, NOW + 100)
    assert world.read("SELECT claimed_at FROM attempts") == [{"claimed_at": kept}]


@pytest.mark.parametrize("reason", [CEILING, CLAIM_STUCK])
def test_a_forced_end_charges_even_a_claim_that_was_given_back(world: SessionWorld, reason: str) -> None:
    """Otherwise a message that hangs every agent, each of which lets go of it on SIGTERM, would go round forever."""
    world.accept("m")
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "m", "i", NOW, NOW)
    world.runner().close()
    assert finish(world, "i", reason=reason) == (True, ["Reset"])
    assert world.message("m")["tries"] == 1
    assert finish(world, "i", reason=reason)[1] == []
    check_session(world.root, at_rest=True)


def test_an_end_that_had_nothing_claimed_costs_nothing(world: SessionWorld) -> None:
    world.accept("m")
    assert finish(world, "i") == (False, [])
    assert finish(world, "i", reason=CEILING) == (False, [])
    assert world.message("m")["tries"] == 0
    assert world.events("m") == ["accepted"]


def test_what_was_answered_before_the_end_is_settled_not_charged(world: SessionWorld) -> None:
    world.accept("done")
    world.accept("half")
    world.ack("completed", "done", by="i")
    world.claim("half", by="i")
    claimed, names = finish(world, "i", reason=CEILING)
    assert (claimed, names) == (True, ["Settle", "Reset"])
    assert world.message("done")["status"] == "completed"
    assert (world.message("half")["status"], world.message("half")["tries"]) == ("pending", 1)
    check_session(world.root, at_rest=True)


def test_another_incarnations_claims_are_not_this_ones(world: SessionWorld) -> None:
    world.accept("m")
    world.claim("m", by="other")
    assert finish(world, "i") == (False, [])
    assert world.message("m")["tries"] == 0


def test_an_unstamped_claim_is_charged_to_the_incarnation_that_ended(world: SessionWorld) -> None:
    """An older runner stamps nothing; one container runs at a time, so the claim was the dead one's."""
    world.accept("m")
    world.claim("m", by=None)
    assert finish(world, "i") == (True, ["Reset"])
    assert finish(world, "i") == (True, [])
    assert world.message("m")["tries"] == 1
    check_session(world.root, at_rest=True)


class Crash(Exception):
    """The daemon dies here."""


@pytest.mark.faults
@pytest.mark.parametrize("reason", ["exited", CEILING])
def test_repeating_an_end_after_a_crash_before_its_record_changes_nothing(world: SessionWorld, reason: str) -> None:
    for name in ("done", "half", "back"):
        world.accept(name)
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "back", "i", NOW, NOW)
    world.ack("completed", "done", by="i")
    world.claim("half", by="i")
    finish(world, "i", reason=reason)
    after = dump(world)
    for _ in range(3):  # central.db never learnt of it, so the next daemon does it all again, later
        world.now += 1
        _, names = finish(world, "i", reason=reason)
        assert names == []
        assert dump(world) == after


@pytest.mark.faults
def test_an_end_that_is_torn_leaves_no_part_of_itself(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        world.accept(name)
    world.claim("a", "b", "c", by="i")
    before, really_apply, left = dump(world), steps.apply, [2]

    def dying(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash
        really_apply(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(steps, "apply", dying)
    with pytest.raises(Crash):
        finish(world, "i")
    assert dump(world) == before
    monkeypatch.undo()
    assert finish(world, "i") == (True, ["Reset"] * 3)


@pytest.mark.faults
def test_a_confirmed_exit_heals_the_journal_first(world: SessionWorld) -> None:
    world.accept("m")
    world.claim("m", by="i")
    strand_journal(
        world.files.folder.outbound_db, "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(400)), 'now')"
    )
    with pytest.raises(ReadRaceError):
        sweep(world, Container("i", NOW))
    with pytest.raises(ReadRaceError):
        sweep(world, occupied=True)
    assert world.files.has_journal(), "while something may live, its journal is not touched"
    assert finish(world, "i") == (True, ["Reset"])
    assert not world.files.has_journal()


@pytest.mark.faults
def test_a_sweep_with_nothing_running_heals_the_journal(world: SessionWorld) -> None:
    world.runner().close()
    strand_journal(
        world.files.folder.outbound_db, "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(400)), 'now')"
    )
    assert sweep(world).recovered
    assert not sweep(world).recovered


@pytest.mark.faults
def test_a_hostile_file_changes_nothing_in_ours(world: SessionWorld) -> None:
    world.accept("m")
    world.files.folder.outbound_db.write_bytes(b"x" * 4096)
    before = dump(world)
    with pytest.raises(HostileFileError):
        sweep(world)
    with pytest.raises(HostileFileError):
        finish(world, "i")
    assert dump(world) == before


def test_an_orphan_without_a_recorded_end_is_reset_by_the_sweep_once(world: SessionWorld) -> None:
    """A claim whose end nobody saw, on a context row: nothing is due, so nothing is woken, and the sweep judges it."""
    world.accept("c", trigger=False)
    world.claim("c", by="lost")
    assert sweep(world).actions == (Reset("c", "lost", 1, NOW + 5 * SECOND),)
    for _ in range(5):
        world.now += MINUTE
        assert sweep(world).actions == ()
    assert world.message("c")["tries"] == 1


def test_an_attempt_that_a_gone_container_gave_back_is_closed(world: SessionWorld) -> None:
    world.accept("m", process_after=NOW + MINUTE)
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "m", "i", NOW, NOW)
    sweep(world, Container("i", NOW))
    assert world.read("SELECT outcome FROM attempts") == [{"outcome": None}], "it runs: nothing is known"
    sweep(world)
    assert world.read("SELECT outcome FROM attempts") == [{"outcome": "released"}]
    assert world.message("m")["tries"] == 0


def test_an_attempt_of_an_earlier_container_is_closed_while_the_next_one_runs(world: SessionWorld) -> None:
    """Its end was recorded without its attempts, and a session that is always busy is never without a container."""
    world.accept("m", process_after=NOW + MINUTE)
    with world.files.inbound() as db, db.transaction():
        messages.note_claim(db, "m", "earlier", NOW, NOW)
        messages.note_claim(db, "m", "living", NOW + 1, NOW + 1)
    sweep(world, occupied=True)
    assert world.read("SELECT outcome FROM attempts WHERE incarnation = 'earlier'") == [{"outcome": None}]
    sweep(world, Container("living", NOW))
    found = world.read("SELECT incarnation, outcome FROM attempts ORDER BY incarnation")
    assert found == [{"incarnation": "earlier", "outcome": "released"}, {"incarnation": "living", "outcome": None}]
    assert world.message("m")["tries"] == 0


def test_the_container_is_judged_by_its_file_and_heartbeat(world: SessionWorld) -> None:
    world.accept("m")
    world.claim("m", by="i", at=NOW - 2 * MINUTE)
    (verdict,) = sweep(world, Container("i", NOW - 10 * MINUTE)).actions
    assert verdict == Kill(CLAIM_STUCK, 2 * MINUTE, MINUTE, "m")
    heartbeat = world.files.folder.outbox / ".heartbeat"
    heartbeat.symlink_to("/proc/self/status")
    assert len(sweep(world, Container("i", NOW - 10 * MINUTE)).actions) == 1, "a link is no heartbeat"
    heartbeat.unlink()
    heartbeat.touch()  # the machine's clock is far from the test's: touched after the claim or from before the spawn
    with world.runner() as db:
        db.execute("INSERT INTO container_state VALUES (1, 'Bash', 600000, NULL, 'now')")
    assert sweep(world, Container("i", NOW - 10 * MINUTE)).actions == (), "it declared 10 minutes"


def test_an_older_containers_file_degrades(world: SessionWorld) -> None:
    for name in ("done", "open"):
        world.accept(name)
    make_older(world.files.folder.outbound_db, OLDEST_OUT, ROWS_OUT)
    swept = sweep(world, Container("i", NOW))
    assert swept.actions == (Settle("done", AckStatus.COMPLETED, None),)
    world.now += MINUTE
    assert finish(world, "i") == (True, ["Reset"])
    assert world.message("open")["tries"] == 1


@pytest.mark.parametrize("kind", ["scheduled", "context"])
def test_many_rows_that_wake_nobody_do_not_hide_one_that_does(world: SessionWorld, kind: str) -> None:
    rows = 1200
    if kind == "scheduled":
        later = to_text(NOW + 60 * MINUTE)
        many = [(f"x{n}", 2 * n, later, 1) for n in range(1, rows + 1)]
    else:
        many = [(f"x{n}", 2 * n, None, 0) for n in range(1, rows + 1)]
    with world.files.inbound() as db, db.transaction():
        db.executemany(
            "INSERT INTO messages_in(id, seq, kind, timestamp, process_after, trigger, content)"
            " VALUES (?, ?, 'chat', '2026-11-21T00:00:00.000Z', ?, ?, '{}')",
            many,
        )
    world.accept("due")
    swept = sweep(world)
    assert swept.actions == (Wake(1),)
    assert (swept.due, swept.next_at) == (1, 0)
    # Whatever rode along is settled too, wherever in the backlog it lies.
    world.ack("completed", "due", "x600", "x1", f"x{rows}", by="i")
    sweep(world, Container("i", NOW))
    assert [world.message(name)["status"] for name in ("due", "x600", "x1", f"x{rows}")] == ["completed"] * 4


def test_context_rows_ride_and_wake_nobody(world: SessionWorld) -> None:
    world.accept("c", trigger=False)
    swept = sweep(world)
    assert (swept.actions, swept.due, swept.next_at) == ((), 0, None)


def test_the_next_instant_is_told(world: SessionWorld) -> None:
    world.accept("late", process_after=NOW + 60 * MINUTE)
    world.accept("soon", process_after=NOW + MINUTE)
    world.accept("context", process_after=NOW + SECOND, trigger=False)
    assert sweep(world).next_at == NOW + MINUTE
    world.now += MINUTE
    swept = sweep(world)
    assert (swept.next_at, swept.due, swept.actions) == (0, 1, (Wake(1),))


def test_what_sql_calls_due_is_what_the_decision_calls_due(world: SessionWorld) -> None:
    """By instant, never by string: a text that sorts later may be due, one that sorts earlier may not be."""
    texts = [None, "2026-11-21 00:00:00", "2026-11-21T00:00:00.000Z", "2026-11-21T00:00:00.001Z", "2026-11-20 23:59:59",
             "2026-11-21T01:00:00+01:00", "2026-11-21T01:00:00+00:30", "2026-11-20T20:00:00-05:00",
             "2026-11-20T18:00:00-06:00", "2026-11-22", "2026-11-21", "2025-01-01T00:00:00Z"]  # fmt: skip
    with world.files.inbound() as db, db.transaction():
        for number, text in enumerate(texts, 1):
            db.execute(
                "INSERT INTO messages_in(id, seq, kind, timestamp, process_after, content) VALUES (?, ?, 'chat', 'now', ?, '{}')",
                (f"m{number}", 2 * number, text),
            )
    with open_reader(world.files.folder.inbound_db) as db:
        pending = messages.pending(db, NOW)
        assert messages.count_due(db, NOW) == sum(is_due(message, NOW) for message in pending) == 8
        due = [is_due(message, NOW) for message in pending]
    assert due == sorted(due, reverse=True), "those that are due come first"


def test_more_series_than_one_pass_arms_keep_the_session_awake(world: SessionWorld) -> None:
    for number in range(130):
        world.accept(f"m{number}", recurrence="0 0 1 1 *")
    world.ack("completed", *(f"m{number}" for number in range(130)), by="i")
    first, second = sweep(world), sweep(world)
    assert (len(first.rearmed), first.next_at) == (100, 0), "there is more to do now"
    assert (len(second.rearmed), second.next_at) == (30, 1_798_761_600_000), "2027-01-01"


def test_an_occurrence_is_armed_again_in_the_transaction_that_settles_it(world: SessionWorld) -> None:
    world.accept("daily", recurrence="0 9 * * *")
    world.ack("completed", "daily", by="i")
    swept = sweep(world)
    assert [type(action) for action in swept.actions] == [Settle]
    assert [message.series_id for message in swept.rearmed] == ["daily"]
    assert swept.next_at == NOW + 9 * 60 * MINUTE
    check_session(world.root, at_rest=True)


def test_an_idle_container_is_stopped(world: SessionWorld) -> None:
    swept = sweep(world, Container("i", NOW - 20 * MINUTE))
    assert swept.actions == (Stop(20 * MINUTE),)


def test_a_missing_inbound_file_is_an_error_not_an_empty_session(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "gone", ReadLimits())
    with pytest.raises(Exception, match=r"inbound\.db"):
        sweep_files(files, None, NOW, SETTINGS, occupied=False, floor=0)
    assert not files.folder.root.exists()


def test_a_message_that_comes_due_by_the_clock_rings_for_the_container_that_runs(world: SessionWorld) -> None:
    bell = world.files.folder.inbox / ".bell"
    world.accept("later", process_after=NOW + 10_000)
    sweep(world, Container("i1", NOW))
    assert not bell.exists(), "nothing is due yet"
    world.now = NOW + 10_000
    sweep(world)
    assert not bell.exists(), "nobody is there to hear it"
    sweep(world, Container("i1", NOW))
    assert bell.exists()


def test_the_log_of_a_container_that_lives_long_stays_bounded(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.files.folder.logs / "container.log"
    log.write_bytes(b"x" * (output_log.MAX_BYTES + 1))
    sweep(world)
    assert log.stat().st_size > output_log.MAX_BYTES, "the next container's start rotates it"
    sweep(world, Container("i", NOW))
    assert log.stat().st_size == 0
    assert log.with_name("container.log.1").stat().st_size == output_log.MAX_BYTES + 1

    def refuse(_: object) -> bool:
        raise OSError("the disk says no")

    monkeypatch.setattr(output_log, "cut", refuse)
    world.accept("m")
    assert sweep(world, Container("i", NOW)).due == 1


# a container that is ended for being stuck


def stuck(world: SessionWorld) -> Container:
    """A container that has shown nothing since its claims of a and b, and is to be ended for it."""
    for name in ("a", "b"):
        world.accept(name)
    container = Container("i", NOW)
    world.claim("a", "b", by="i", at=NOW + SECOND)
    world.now = NOW + 2 * SECOND
    collect(world.files, means(), "i", world)
    world.now = NOW + 10 * MINUTE
    assert any(isinstance(action, Kill) for action in sweep(world, container).actions)
    return container


FAILURE = {"text": "The agent could not answer this message.", "error": {"code": "COMMAND_TIMEOUT", "message": "x"}}


@pytest.mark.parametrize("first", ["delivery", "sweep", "exit"])
def test_a_failure_that_a_container_acks_while_it_is_ended_is_none(world: SessionWorld, first: str) -> None:
    stuck(world)
    world.now += SECOND
    world.ack("failed", "a", by="i")
    world.say("o1", in_reply_to="a", content=json.dumps(FAILURE))
    world.ack("completed", "b", by="i")
    world.say("o2", in_reply_to="b", content="done after all")
    found = collect(world.files, means(), "i", world) if first == "delivery" else None
    if first == "sweep":
        sweep(world, occupied=True)
    finish(world, "i", CLAIM_STUCK)
    found = found or collect(world.files, means(), None, world)
    assert [send.candidate.row.id for send in found.sends] == ["o2"], "an answer stands, a failure's does not go out"
    assert world.message("b")["status"] == "completed"
    assert (world.message("a")["status"], world.message("a")["tries"]) == ("pending", 1)
    assert world.read("SELECT status FROM delivered WHERE message_out_id = 'o1'") == [{"status": "not_wanted"}]
    check_session(world.root)
    assert claimed_by_the_next(world) == ["a"]


def test_a_failure_before_the_decision_is_final(world: SessionWorld) -> None:
    for name in ("a", "b"):
        world.accept(name)
    world.claim("a", "b", by="i", at=NOW + SECOND)
    world.ack("failed", "a", by="i", at=NOW + 2 * SECOND)
    world.now = NOW + 10 * MINUTE
    swept = sweep(world, Container("i", NOW))
    assert any(isinstance(action, Kill) for action in swept.actions)
    assert world.message("a")["status"] == "failed"


def test_a_failure_of_the_next_container_is_final(world: SessionWorld) -> None:
    stuck(world)
    finish(world, "i", CLAIM_STUCK)
    world.now += MINUTE
    world.ack("failed", "a", by="i2")
    sweep(world, Container("i2", world.now))
    assert world.message("a")["status"] == "failed"


def test_one_that_was_told_to_claim_nothing_is_stopped_at_rest_though_work_is_due(world: SessionWorld) -> None:
    world.accept("a")
    steps.drain(world.files, "i", world.now)
    world.claim("a", by="i")
    assert not any(isinstance(action, Stop) for action in sweep(world, Container("i", NOW)).actions)
    world.ack("completed", "a", by="i")
    world.accept("b")
    assert any(isinstance(action, Stop) for action in sweep(world, Container("i", NOW)).actions)


def claimed_by_the_next(world: SessionWorld) -> list[str]:
    later = world.now + 10 * MINUTE
    store = Store(world.files.folder.inbox, world.files.folder.outbox, "i2", lambda: later)
    store.start()
    batch = store.claim(10, first_poll=True)
    return [message.id for message in batch.messages] if batch is not None else []


def means() -> DeliveryContext:
    traits = {"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}
    return DeliveryContext(traits, Delivery(), 10_000, held=frozenset(), under_way=frozenset(), jitter=0.5)
