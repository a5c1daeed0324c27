"""The doctor over real files: each wreck is found by name, with its evidence and command; a healthy folder is healthy."""

import os
from pathlib import Path
from typing import Any

import pytest

from daemon.core.diagnosis import Diagnosis
from daemon.core.errors import UnknownSessionError
from daemon.core.facts import HELD_MS, Container, DaemonState
from daemon.core.session_key import SessionKey
from daemon.maintenance import message_repair
from daemon.store.data_folder import DataFolder
from daemon.store.dead_letters import Operator
from daemon.store.transitions import defer
from schema.instants import file_stamp
from tests.support.forensic_world import AGENT, ForensicWorld
from tests.support.session_world import NOW, SessionWorld

HOUR = 3_600_000
KEY = SessionKey(AGENT, "s")


@pytest.fixture
def world(tmp_path: Path) -> ForensicWorld:
    world = ForensicWorld(tmp_path / "d")
    world.up()
    return world


def one(world: ForensicWorld, code: str) -> Diagnosis:
    found = [item for item in world.look().diagnoses if item.code == code]
    assert len(found) == 1, world.look().diagnoses
    return found[0]


def later(world: ForensicWorld, session: SessionWorld | None = None, by: int = HOUR) -> None:
    """Time passes, and the daemon goes on sweeping."""
    world.clock.now += by
    if session is not None:
        session.now = world.clock.now
    if world.state is DaemonState.UP and world.live is not None:
        world.live["last_sweep"] = {"at": world.clock.now}


def working(world: ForensicWorld) -> SessionWorld:
    """A message that a live container works on."""
    session = world.session()
    session.accept("m1")
    world.incarnation("s", "I1")
    world.claimed(session, "m1", "I1")
    return session


def test_a_folder_where_all_is_well_is_healthy(world: ForensicWorld) -> None:
    session = working(world)
    session.accept("m2")
    found = world.look()
    assert found.healthy, found.diagnoses
    assert (found.sessions, found.runs) == (1, 2)
    session.say("a1", in_reply_to="m1")
    session.ack("completed", "m1", by="I1")
    world.settled(session, "m1", "I1")
    assert world.look().healthy


def test_nothing_is_changed_by_looking(world: ForensicWorld) -> None:
    session = working(world)
    (session.files.folder.outbox / "outbound.db-journal").write_bytes(b"")
    world.running.clear()
    later(world)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(world.root.rglob("*")) if path.is_file()}

    before = contents()
    assert not world.look().healthy
    assert contents() == before


def test_a_stuck_claim(world: ForensicWorld) -> None:
    session = working(world)
    later(world, by=59_000)
    assert world.look().healthy
    later(world, by=2_000)
    found = one(world, "STUCK_CLAIM")
    assert (found.message_id, found.incarnation) == ("m1", "I1")
    assert found.command == "clawbus session kill a s"
    assert "60 s are allowed" in found.evidence[0]
    with session.runner() as db, db.transaction():
        db.execute(
            "INSERT INTO container_state(id, current_tool, tool_declared_timeout_ms, updated_at) VALUES (1, 'Bash', ?, '')",
            (HOUR,),
        )
    assert world.look().healthy, "a tool that declared its silence"


def test_a_ghost_run(world: ForensicWorld) -> None:
    working(world)
    world.running.clear()
    later(world)
    found = one(world, "GHOST_RUN")
    assert found.command == "clawbus sweep stale --session a/s --apply"
    ghost = one(world, "GHOST_CONTAINER")
    assert ghost.incarnation == "I1"
    assert ghost.command == "clawbus session kill a s"
    world.state, world.live = DaemonState.DOWN, None
    found = one(world, "GHOST_RUN")
    assert (found.command, found.cause) == ("clawbus serve", "DAEMON_DOWN"), (
        "a sweep would cancel what a start tries again"
    )


def test_a_lost_ack(world: ForensicWorld) -> None:
    session = working(world)
    session.say("a1", in_reply_to="m1")
    session.ack("completed", "m1", by="I1")
    assert world.look().healthy, "the daemon is about to take note"
    later(world)
    found = one(world, "LOST_ACK")
    assert found.command == "clawbus sweep stale --session a/s --apply"
    world.state = DaemonState.DOWN
    found = one(world, "LOST_ACK")
    assert (found.command, found.cause) == ("clawbus serve", "DAEMON_DOWN")
    world.state = DaemonState.SILENT
    assert one(world, "LOST_ACK").cause == "DAEMON_SILENT"


def test_an_orphaned_container(world: ForensicWorld) -> None:
    world.session()
    world.running.append(Container("c9", AGENT, "s", "I9", NOW))
    world.running.append(Container("c8", AGENT, "nobody", "I8", NOW))
    found = [item for item in world.look().diagnoses if item.code == "ORPHANED_CONTAINER"]
    assert [(item.session, item.incarnation) for item in found] == [("s", "I9"), ("nobody", "I8")]
    assert found[0].command == "clawbus session kill a s"
    world.state = DaemonState.DOWN
    assert one_command(world, "ORPHANED_CONTAINER") == "clawbus serve"


def one_command(world: ForensicWorld, code: str) -> str:
    return next(item.command for item in world.look().diagnoses if item.code == code)


def test_a_hot_journal(world: ForensicWorld) -> None:
    session = working(world)
    (session.files.folder.outbox / "outbound.db-journal").write_bytes(b"")
    assert world.look().healthy, "a live container writes one with every commit"
    world.running.clear()
    world.registry.end_incarnation("I1", NOW, 137, "crashed")
    assert one(world, "HOT_JOURNAL").command == "clawbus session release a s"


def test_dead_letters(world: ForensicWorld) -> None:
    session = working(world)
    session.ack("failed", "m1", by="I1")
    session.say("a1", in_reply_to="m1", content='{"text": "no", "error": {"code": "E", "message": "it broke"}}')
    world.settled(session, "m1", "I1", "failed")
    found = one(world, "DEAD_LETTERS")
    assert found.command == "clawbus dead show m1 --session a/s"
    assert found.summary == "1 open dead letter waits for an operator."
    assert found.evidence[0] == "1 message was given up, 0 answers could not be delivered."


def test_a_dead_answer_s_id_is_quoted_for_the_shell(world: ForensicWorld) -> None:
    session = world.session()
    session.change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at) VALUES (?, 1, 'x', 'dead', ?)",
        ("$(reboot)", NOW),
    )
    assert one(world, "DEAD_LETTERS").command == "clawbus dead show '$(reboot)' --session a/s"


def test_a_session_s_name_is_quoted_for_the_shell(world: ForensicWorld) -> None:
    session = world.session("it $(reboot)")
    session.change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at, next_attempt_at, attempts)"
        " VALUES ('a1', 1, 'web\x1fhook\x1f', 'retrying', ?, ?, 7)",
        (NOW, NOW + HOUR),
    )
    assert one(world, "ANSWER_RETRYING").command == "clawbus delivery retry a1 --session 'a/it $(reboot)'"


def test_messages_held_back_by_an_earlier_one_are_not_due_and_are_named_when_they_wait_long(
    world: ForensicWorld,
) -> None:
    session = world.session()
    session.accept("m1")
    session.accept("m2")
    with session.files.inbound() as db, db.transaction():
        defer(db, "m1", 1, NOW + 3_600_000, NOW, incarnation="i", reason="429", holds=True)
    assert world.codes() == []
    later(world, session, HELD_MS)
    found = one(world, "HELD_BACK")
    assert "WORK_WAITING" not in world.codes(), "nothing is due"
    assert found.command == "clawbus message retry m1 --session a/s"
    assert 'its agent asked for that, once: "429"' in found.evidence[0]
    message_repair.retry(session.files, "m1", Operator("ada"), world.clock.now)
    assert "HELD_BACK" not in world.codes(), "its repair ends it"


def test_docker_down(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    later(world)
    world.runtime_error = "Docker does not answer: gone."
    assert one(world, "RUNTIME_UNAVAILABLE").command == "systemctl start docker"
    waiting = one(world, "WORK_WAITING")
    assert waiting.cause == "RUNTIME_UNAVAILABLE"


def test_a_container_whose_life_nobody_can_tell_is_no_ghost(world: ForensicWorld) -> None:
    working(world)
    later(world)
    world.runtime_error = "Docker does not answer: gone."
    assert world.codes() == ["RUNTIME_UNAVAILABLE"]


def test_a_broken_image(world: ForensicWorld) -> None:
    world.image_error = "the image x is missing."
    session = world.session()
    session.accept("m1")
    world.registry.spawn_failed(KEY, 3, world.clock.now + 60_000, "the image x is missing.")
    assert one(world, "IMAGE_UNUSABLE").command == "clawbus image build"
    failing = one(world, "SPAWN_FAILING")
    assert failing.cause == "IMAGE_UNUSABLE"
    assert "3 failed starts" in failing.evidence[0]
    world.image_error = "the image postgres:16 is foreign: it has no label."
    world.image_repair = "clawbus image build --tag postgres:16"
    found = one(world, "IMAGE_UNUSABLE")
    assert found.command == "clawbus image build --tag postgres:16"
    assert any("takes the name away" in line for line in found.evidence)
    assert any("correct that key" in line for line in found.evidence)


def test_every_unusable_image_is_named_with_the_command_that_builds_it(world: ForensicWorld) -> None:
    world.image_error, world.image_repair = "the image x is missing.", "clawbus image build --tag x"
    world.image_others = (("the image y is missing.", "clawbus image build --tag y"),)
    found = one(world, "IMAGE_UNUSABLE")
    assert found.evidence[:2] == ("the image x is missing.", "the image y is missing.")
    assert [choice.command for choice in found.choices] == ["clawbus image build --tag y"]


def test_a_word_of_the_daemon_about_an_image_that_was_mended_since_is_no_finding(world: ForensicWorld) -> None:
    assert world.live is not None
    world.live["degraded"] = [{"what": "image", "why": "the image x is missing.", "since": NOW}]
    assert world.codes() == ["IMAGE_UNUSABLE"]
    world.images_checked = True
    assert world.look().healthy


def test_a_full_disk(world: ForensicWorld) -> None:
    assert world.live is not None
    world.live["degraded"] = [{"what": "storage", "why": "database or disk is full", "since": NOW}]
    assert one(world, "STORAGE_FAILING").evidence[0] == "database or disk is full"
    world.live["degraded"].append({"what": "disk", "why": "0 MiB are free", "since": NOW})
    found = one(world, "DISK_FULL")
    assert found.command.startswith("df -h ")
    assert "is full" in found.summary


def test_a_clock_that_was_set_back(world: ForensicWorld) -> None:
    session = working(world)
    world.retried(session, "m1", "I1", world.clock.now + 5_000)
    world.running.clear()
    world.registry.end_incarnation("I1", NOW, 1, "crashed")
    later(world, by=-24 * HOUR)
    found = one(world, "CLOCK_JUMP")
    assert found.command == "clawbus message retry m1 --session a/s"
    assert "24 h in the future" in found.evidence[0]


def test_a_jump_that_the_daemon_saw(world: ForensicWorld) -> None:
    assert world.live is not None
    world.live["clock"] = {"jumped_at": NOW - 1000, "by_ms": 7_200_000}
    found = one(world, "CLOCK_JUMP")
    assert found.command == "timedatectl status"
    assert "forward by 2 h" in found.evidence[0]
    later(world, by=2 * HOUR)
    assert world.look().healthy, "it is past"


def test_a_quarantined_session_covers_its_runs(world: ForensicWorld) -> None:
    working(world)
    world.registry.quarantine(KEY, "outbound.db is a link.", NOW)
    world.running.clear()
    world.registry.end_incarnation("I1", NOW, 137, "quarantine")
    later(world)
    found = one(world, "QUARANTINED")
    assert found.command == "clawbus session release a s"
    assert "outbound.db is a link." in found.evidence[0]
    assert "GHOST_RUN" not in world.codes()


def test_a_quarantine_lasts_as_long_as_its_file_cannot_be_read(world: ForensicWorld) -> None:
    outbound = world.session().files.folder.outbound_db
    world.registry.quarantine(KEY, "outbound.db: file is not a database (SQLITE_NOTADB)", NOW)
    kept = outbound.read_bytes() if outbound.exists() else None
    outbound.write_bytes(b"\xa5" * 9000)
    assert one(world, "QUARANTINED").command == "clawbus session reset a s --discard", "a release would not last"
    outbound.unlink()
    if kept is not None:
        outbound.write_bytes(kept)
    assert one(world, "QUARANTINED").command == "clawbus session release a s", "it was mended"
    world.session().files.folder.inbound_db.unlink()
    found = one(world, "QUARANTINED")
    assert found.command == "clawbus session show a s", "neither a release nor a reset gives our own file back"
    assert [choice.command.split()[:2] for choice in found.choices] == [["clawbus", "session"], ["find", "/"]]
    assert "clawbus restore" in found.choices[1].when


def test_due_work_and_nothing_running(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    session.accept("m2", process_after=NOW + 24 * HOUR)
    assert world.look().healthy, "the wake is on its way"
    later(world)
    found = one(world, "WORK_WAITING")
    assert found.evidence == ("1 due, the oldest for 60 min, and no container runs.",)
    assert found.command == "clawbus session release a s"
    world.state = DaemonState.DOWN
    waiting = one(world, "WORK_WAITING")
    assert (waiting.command, waiting.cause) == ("clawbus serve", "DAEMON_DOWN")


def test_a_container_that_takes_nothing(world: ForensicWorld) -> None:
    session = world.session()
    world.incarnation("s", "I1")
    session.accept("m1")
    later(world)
    assert one(world, "UNCLAIMED").command == "clawbus session stop a s"


def test_a_container_between_two_turns_of_a_long_queue_takes_what_is_due(world: ForensicWorld) -> None:
    session = world.session()
    world.incarnation("s", "I1")
    session.accept("m1")
    session.accept("m2")
    later(world)
    now = world.clock.now_ms()
    session.change(
        "INSERT INTO attempts(message_id, incarnation, claimed_at, ended_at, outcome) VALUES ('m1', 'I1', ?, ?, 'completed')",
        (now - 3000, now - 1000),
    )
    assert not [found for found in world.look().diagnoses if found.code == "UNCLAIMED"]
    later(world)
    assert "2 due for 60 min" in one(world, "UNCLAIMED").evidence[0]


def test_answers_that_nobody_sends(world: ForensicWorld) -> None:
    session = world.session()
    for identity, state, until in (("a1", "queued", None), ("a2", "retrying", NOW + 9 * HOUR), ("a3", "queued", None)):
        session.change(
            "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at, next_attempt_at)"
            " VALUES (?, 1, ?, ?, ?, ?)",
            (identity, "x" if identity == "a1" else "y", state, NOW, until),
        )
    assert "DELIVERY_STUCK" not in world.codes()
    later(world)
    assert one(world, "DELIVERY_STUCK").evidence == ("1 answer is due to be sent, the oldest for 60 min.",)


def test_an_answer_that_keeps_failing_is_named_with_what_waits_behind_it(world: ForensicWorld) -> None:
    session = world.session()
    rows = (("a1", "retrying", NOW + HOUR, 7), ("a2", "queued", None, 0), ("a3", "queued", NOW + 24 * HOUR, 0))
    for identity, state, until, attempts in rows:
        session.change(
            "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at, next_attempt_at, attempts,"
            " last_error) VALUES (?, 1, 'web\x1fhook\x1f', ?, ?, ?, ?, 'answered 500')",
            (identity, state, NOW, until, attempts),
        )
    found = one(world, "ANSWER_RETRYING")
    assert found.evidence[0] == "Answer a1 to web/hook: 7 attempts failed; the last error: answered 500"
    assert "The next attempt is in 60 min." in found.evidence
    assert "1 later answer waits behind it." in found.evidence
    assert found.command == "clawbus delivery retry a1 --session a/s"
    session.change(
        "UPDATE delivery_attempts SET attempts = 1, next_attempt_at = ? WHERE state = 'retrying'", (NOW + 9,)
    )
    assert world.look().healthy, "one failure is no news"


def test_an_answer_for_a_channel_that_is_gone_is_not_told_to_be_retried(world: ForensicWorld) -> None:
    world.session().change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at, next_attempt_at, attempts,"
        " last_error_code, last_error) VALUES ('a1', 1, 'web\x1fhook\x1f', 'retrying', ?, ?, 7, 'NO_CHANNEL', 'none')",
        (NOW, NOW + HOUR),
    )
    found = one(world, "ANSWER_RETRYING")
    assert found.command == "clawbus channel list"
    assert [choice.command for choice in found.choices] == [
        "clawbus delivery retry a1 --session a/s",
        "clawbus delivery drop a1 --session a/s --reason 'its channel is gone'",
    ]


def test_answers_of_a_restored_file_are_known_by_their_receipts(world: ForensicWorld) -> None:
    session = world.session()
    session.say("a1", in_reply_to="m1")
    session.say("a2", in_reply_to="m2")
    session.change("INSERT INTO delivery_cursor(id, seq, file_id) VALUES (1, 99, 'the file that was backed up')")
    session.change("INSERT INTO delivered(message_out_id, delivered_at) VALUES ('a1', 'then')")
    session.change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at) VALUES ('a2', 3, 'x', 'dead', 1)"
    )
    world.state = DaemonState.DOWN
    world.clock.now += 1000 * 24 * HOUR
    assert "DELIVERY_STUCK" not in world.codes()
    session.say("a3", in_reply_to="m3")
    assert "DELIVERY_STUCK" in world.codes()


def test_the_daemon_down_or_silent(world: ForensicWorld) -> None:
    world.state, world.live = DaemonState.DOWN, None
    assert one(world, "DAEMON_DOWN").command == "clawbus serve"
    world.state = DaemonState.SILENT
    assert world.codes() == ["DAEMON_SILENT"]


def test_a_sweep_that_stands_still(world: ForensicWorld) -> None:
    world.clock.now += HOUR
    assert world.codes() == ["SWEEP_STALLED"]


def test_a_missing_registry(world: ForensicWorld) -> None:
    session = working(world)
    session.now = NOW
    (world.root / "central.db").unlink()
    world.state, world.live = DaemonState.DOWN, None
    found = one(world, "REGISTRY_GONE")
    assert found.command == "clawbus serve"
    assert "ORPHANED_CONTAINER" not in world.codes(), "which containers are supervised is not known"
    assert world.look().sessions == 1, "its folder is there"


def test_a_registry_that_is_no_database(world: ForensicWorld) -> None:
    working(world)
    (world.root / "central.db").write_bytes(b"no database" * 100)
    found = one(world, "REGISTRY_UNREADABLE")
    assert found.command == f"mv {world.root}/central.db {world.root}/central.db.broken-{file_stamp(world.clock.now)}"
    world.state, world.live = DaemonState.DOWN, None
    assert one(world, "DAEMON_DOWN").cause == "REGISTRY_UNREADABLE", "a start over it is refused"


def test_a_session_that_the_registry_does_not_know(world: ForensicWorld) -> None:
    SessionWorld(world.root / "sessions" / AGENT / "stranger")
    found = one(world, "UNREGISTERED")
    assert (found.session, found.command) == ("stranger", "clawbus session release a stranger")
    world.state = DaemonState.DOWN
    assert one(world, "UNREGISTERED").command == "clawbus serve"


def test_files_that_cannot_be_read(world: ForensicWorld) -> None:
    session = working(world)
    outbound = session.files.folder.outbound_db
    outbound.unlink()
    outbound.symlink_to("/etc/passwd")
    assert one(world, "FILES_UNREADABLE").command == "clawbus session reset a s --discard"
    session.files.folder.inbound_db.unlink()
    assert one(world, "FILES_UNREADABLE").command == "clawbus session show a s"


def test_sources_that_contradict_each_other(world: ForensicWorld) -> None:
    session = working(world)
    session.ack("failed", "m1", by="I1")
    world.settled(session, "m1", "I1", "completed")
    session.change("UPDATE attempts SET outcome = NULL")
    later(world)
    found = one(world, "CONTRADICTION")
    assert found.command == "clawbus run show m1@I1 --session a/s"
    assert any("finish says failed" in line for line in found.evidence)


def test_a_status_without_its_history(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    session.change("UPDATE messages_in SET status = 'completed'")
    assert one(world, "STALE_RUN").message_id == "m1"


def test_a_history_without_its_status(world: ForensicWorld) -> None:
    session = working(world)
    session.say("a1", in_reply_to="m1")
    session.ack("completed", "m1", by="I1")
    world.settled(session, "m1", "I1")
    session.change("UPDATE messages_in SET status = 'pending'")
    later(world)
    found = one(world, "STALE_RUN")
    assert found.summary.startswith("It is listed as waiting and is completed")
    assert found.evidence == ("The history says completed, the list waiting.",)
    world.state = DaemonState.DOWN
    assert one(world, "STALE_RUN").command == "clawbus serve"


def test_a_message_that_is_tried_again_is_fine(world: ForensicWorld) -> None:
    session = working(world)
    world.retried(session, "m1", "I1", NOW + HOUR)
    world.running.clear()
    world.registry.end_incarnation("I1", NOW, 1, "crashed")
    assert world.look().healthy


def test_what_passes_while_a_daemon_works_is_not_told(world: ForensicWorld) -> None:
    working(world)
    world.running.clear()
    later(world, by=60_000)

    def settle() -> None:
        world.registry.end_incarnation("I1", NOW, 1, "exited")
        session = SessionWorld(world.root / "sessions" / AGENT / "s")
        world.retried(session, "m1", "I1", world.clock.now + HOUR)

    world.on_pause = settle
    assert world.look().healthy
    assert len(world.pauses) == 1


def test_what_begins_with_the_second_look_is_not_told_yet(world: ForensicWorld) -> None:
    session = working(world)
    world.running.clear()
    later(world)

    def settle_and_strand() -> None:
        world.registry.end_incarnation("I1", NOW, 1, "exited")
        world.retried(session, "m1", "I1", world.clock.now + HOUR)
        (session.files.folder.outbox / "outbound.db-journal").write_bytes(b"")

    world.on_pause = settle_and_strand
    assert world.look().healthy
    world.on_pause = None
    assert world.codes() == ["HOT_JOURNAL"]


def test_one_session_can_be_asked_for(world: ForensicWorld) -> None:
    working(world)
    other = world.session("t")
    other.accept("m2")
    later(world)
    found = world.look((AGENT, "t"))
    assert found.sessions == 1
    assert {item.session for item in found.diagnoses} == {"t"}
    with pytest.raises(UnknownSessionError, match="a/typo"):
        world.look((AGENT, "typo"))
    world.running.append(Container("c8", AGENT, "nobody", "I8", NOW))
    assert world.look((AGENT, "nobody")).sessions == 1, "known from its container alone"


def test_a_channel_that_failed(world: ForensicWorld) -> None:
    assert world.live is not None
    world.live["degraded"] = [{"what": "channel webhook", "why": "its port is taken", "since": NOW}]
    found: Any = one(world, "CHANNEL_FAILING")
    assert found.evidence[0] == "channel webhook: its port is taken"
    assert "end the program that has taken its address" in found.evidence[1]
    assert found.command == "ss -ltnp"


def test_a_folder_that_a_crash_left_before_anything_was_accepted_is_no_finding(world: ForensicWorld) -> None:
    for name, empty in (("bare", False), ("hollow", True)):
        folder = world.root / "sessions" / AGENT / name / "in"
        folder.mkdir(parents=True)
        (folder / "inbound.db.new").write_bytes(b"SQLite")
        if empty:
            (folder / "inbound.db").touch()
    assert world.look().healthy


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("HOST_TROUBLE", "HOST_TROUBLE"),
        ("STORAGE", "STORAGE_FAILING"),
        ("INTERNAL", "DEGRADED"),
        ("NOT_FOUND", "DEGRADED"),
    ],
)
def test_a_daemon_that_answers_with_an_error_is_not_healthy(world: ForensicWorld, code: str, finding: str) -> None:
    world.up()
    assert world.codes() == []
    world.refusal = code
    (found,) = world.look().diagnoses
    assert found.code == finding
    assert any(f"{code}: this request could not be answered." in line for line in found.evidence)


def test_the_process_of_a_daemon_that_refuses_to_answer_is_known_by_its_lock(world: ForensicWorld) -> None:
    """Its limit of open files is why it refuses, and the repair needs its pid."""
    world.up()
    world.refusal = "HOST_TROUBLE"
    with DataFolder.open(world.root):
        facts = world.look().host
    assert facts is not None
    assert facts.holder_pid == os.getpid()
