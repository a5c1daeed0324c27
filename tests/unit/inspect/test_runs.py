"""Runs over real files: which runs a message has, the list and its filters, one run's whole life, hostile rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon.core.errors import AmbiguousIdError, UnknownMessageError, UnknownSessionError
from daemon.core.facts import Container
from daemon.inspect.life import life_of
from daemon.inspect.log_reading import container_lines
from daemon.inspect.reading import answers_to
from daemon.inspect.runs import RunQuery
from schema.instants import to_text
from tests.support.forensic_world import AGENT, ForensicWorld
from tests.support.session_world import NOW, SessionWorld

HOUR = 3_600_000
# Message ids and incarnations may both look like this.
FIRST, SECOND = "01JD0000000000000000000001", "01JD0000000000000000000002"


@pytest.fixture
def world(tmp_path: Path) -> ForensicWorld:
    world = ForensicWorld(tmp_path / "d")
    world.up()
    return world


def tick(world: ForensicWorld, session: SessionWorld, by: int) -> None:
    world.clock.now += by
    session.now = world.clock.now


def two_runs(world: ForensicWorld) -> SessionWorld:
    """A message whose first container died, and whose second one answered."""
    session = world.session()
    session.accept("m1")
    tick(world, session, 100)
    world.incarnation("s", FIRST)
    tick(world, session, 100)
    world.claimed(session, "m1", FIRST)
    tick(world, session, 1000)
    world.retried(session, "m1", FIRST, world.clock.now + 5000)
    world.registry.end_incarnation(FIRST, world.clock.now, 137, "crashed")
    world.running.clear()
    tick(world, session, 5000)
    world.incarnation("s", SECOND)
    world.claimed(session, "m1", SECOND)
    tick(world, session, 2000)
    session.say("a1", in_reply_to="m1", content='{"text": "done"}')
    session.ack("completed", "m1", by=SECOND)
    world.settled(session, "m1", SECOND)
    return session


def ids(found: dict[str, Any]) -> list[str]:
    return [run["run_id"] for run in found["runs"]]


def test_a_message_has_a_run_in_each_incarnation(world: ForensicWorld) -> None:
    two_runs(world)
    found = world.runs().newest(RunQuery())
    assert ids(found) == [f"m1@{SECOND}", f"m1@{FIRST}"]
    assert [run["status"] for run in found["runs"]] == ["completed", "orphaned"]
    assert not any(run["stale"] for run in found["runs"])
    assert found["runs"][0]["duration_ms"] == 2000


def test_a_message_that_nobody_claimed_has_a_run_of_its_own_id(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    (run,) = world.runs().newest(RunQuery())["runs"]
    assert (run["run_id"], run["status"], run["incarnation"]) == ("m1", "waiting", None)


def test_a_message_that_wakes_nobody_is_no_run_before_it_is_given_to_one(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    session.accept("dead-letter:m0", trigger=False)
    assert ids(world.runs().newest(RunQuery())) == ["m1"]
    assert ids(world.runs().newest(RunQuery(status="waiting"))) == ["m1"]


def test_an_interrupted_message_waits_as_a_run_of_its_own(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.incarnation("s", FIRST)
    world.claimed(session, "m1", FIRST)
    world.retried(session, "m1", FIRST, NOW + HOUR)
    world.running.clear()
    found = world.runs().newest(RunQuery())
    assert {(run["run_id"], run["status"]) for run in found["runs"]} == {("m1", "waiting"), (f"m1@{FIRST}", "orphaned")}


def test_a_claim_that_the_host_has_not_seen_yet_is_a_run(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.incarnation("s", FIRST)
    session.claim("m1", by=FIRST)
    (run,) = world.runs().newest(RunQuery())["runs"]
    assert (run["run_id"], run["status"], run["listed"]) == (f"m1@{FIRST}", "running", "running")


def test_a_runner_that_stamps_nothing_is_believed_by_its_times(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.incarnation("s", FIRST)
    session.ack("completed", "m1", by=None, at=NOW + 10)
    with session.files.inbound() as db, db.transaction():
        db.execute("INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES ('m1', ?, ?)", (FIRST, NOW))
    (run,) = world.runs().newest(RunQuery())["runs"]
    assert (run["run_id"], run["status"]) == (f"m1@{FIRST}", "completed")


@pytest.mark.parametrize("stamp", ["../../etc", "a b", "x" * 500, "\x1b[31m"])
def test_a_stamp_that_can_be_no_incarnation_becomes_no_run(world: ForensicWorld, stamp: str) -> None:
    session = world.session()
    session.accept("m1")
    session.claim("m1", by=stamp)
    (run,) = world.runs().newest(RunQuery())["runs"]
    assert run["run_id"] == "m1"


def test_filters(world: ForensicWorld) -> None:
    session = two_runs(world)
    other = world.session("t")
    other.now = world.clock.now
    other.accept("m2")
    runs = world.runs()
    assert ids(runs.newest(RunQuery(status="orphaned"))) == [f"m1@{FIRST}"]
    assert ids(runs.newest(RunQuery(session=(AGENT, "t")))) == ["m2"]
    assert ids(runs.newest(RunQuery(since=NOW + 2000))) == [f"m1@{SECOND}", "m2"]
    limited = runs.newest(RunQuery(limit=1))
    assert (len(limited["runs"]), limited["total"]) == (1, 3)
    assert ids(runs.newest(RunQuery(stale=True))) == []
    session.change("UPDATE messages_in SET status = 'pending'")
    world.clock.now += HOUR
    stale = world.runs().newest(RunQuery(status="completed", stale=True))["runs"]
    assert [(run["run_id"], run["listed"]) for run in stale] == [(f"m1@{SECOND}", "waiting")]
    with pytest.raises(UnknownSessionError):
        runs.newest(RunQuery(session=(AGENT, "nobody")))


def test_one_run_is_found_by_message_and_by_run_id(world: ForensicWorld) -> None:
    two_runs(world)
    runs = world.runs()
    assert runs.find("m1").wanted.run_id == f"m1@{SECOND}"
    assert runs.find(f"m1@{FIRST}").wanted.run_id == f"m1@{FIRST}"
    with pytest.raises(UnknownMessageError, match="no run in incarnation"):
        runs.find("m1@I7")
    with pytest.raises(UnknownMessageError):
        runs.find("m9")


def test_an_id_with_an_at_is_a_message_first(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    session.accept("m1@host")
    assert world.runs().find("m1@host").wanted.evidence.message_id == "m1@host"


def test_an_id_of_several_sessions_asks_for_one(world: ForensicWorld) -> None:
    for name in ("s", "t"):
        world.session(name).accept("m1")
    with pytest.raises(AmbiguousIdError, match="a/s, a/t"):
        world.runs().find("m1")
    assert world.runs().find("m1", (AGENT, "t")).key == (AGENT, "t")


def life(world: ForensicWorld, identity: str) -> dict[str, Any]:
    runs = world.runs()
    return life_of(world.config, runs.find(identity), runs.install_id)


def names(found: dict[str, Any]) -> list[str]:
    return [event["event"] for event in found["events"]]


def test_the_whole_life_of_a_run_with_times_and_durations(world: ForensicWorld) -> None:
    session = two_runs(world)
    tick(world, session, 300)
    session.change(
        "INSERT INTO delivered(message_out_id, platform_message_id, delivered_at) VALUES ('a1', 'p7', ?)",
        (to_text(world.clock.now),),
    )
    found = life(world, "m1")
    assert names(found) == [
        *("accepted", "woken", "spawned", "claimed", "answered", "acked_completed", "completed", "delivered"),
    ]
    # It waited through its first run, too: that is not this run's doing, and it is its message's time.
    assert found["durations"] == {"waited_ms": 6200, "worked_ms": 2000, "delivered_ms": 300, "total_ms": 8500}
    assert [event["after_ms"] for event in found["events"]][:2] == [0, 6200]
    assert found["events"][-1]["detail"]["platform_message_id"] == "p7"
    assert [run["run_id"] for run in found["other_runs"]] == [f"m1@{FIRST}"]
    assert found["container_lives"] == "alive"


def test_the_life_of_a_run_that_was_cut_short(world: ForensicWorld) -> None:
    two_runs(world)
    found = life(world, f"m1@{FIRST}")
    assert names(found) == ["accepted", "woken", "spawned", "claimed", "exited", "retry_scheduled", "attempt_orphaned"]
    exited = found["events"][4]["detail"]
    assert (exited["exit_code"], exited["reason"]) == (137, "crashed")
    assert (found["status"], found["container"]["exit_code"]) == ("orphaned", 137)


def test_the_life_of_a_message_that_waits_for_its_next_try(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.incarnation("s", FIRST)
    world.claimed(session, "m1", FIRST)
    world.retried(session, "m1", FIRST, NOW + HOUR)
    world.running.clear()
    found = life(world, "m1")
    assert (found["run_id"], found["tries"], found["next_try_at"]) == ("m1", 1, NOW + HOUR)
    assert names(found) == ["accepted", "retry_scheduled"]
    assert found["events"][-1]["detail"]["process_after"] == to_text(NOW + HOUR)
    assert life(world, f"m1@{FIRST}")["next_try_at"] is None


def line(at: int, event: str, **fields: object) -> str:
    return json.dumps({"event": event, "timestamp": to_text(at), **fields}) + "\n"


def write_log(session: SessionWorld, lines: Sequence[str]) -> None:
    session.files.folder.logs.mkdir(exist_ok=True)
    (session.files.folder.logs / "container.log").write_text("".join(lines))


def test_the_container_s_last_words_are_those_of_this_incarnation(world: ForensicWorld) -> None:
    session = two_runs(world)
    write_log(
        session,
        [
            line(NOW + 150, "runner_started"),
            line(NOW + 210, "turn_started", messages=["m1"]),
            line(NOW + 300, "tool_started", messages=["m1"], tool="Bash"),
            "Traceback (most recent call last):\n",
            line(NOW + 7000, "turn_started", messages=["m1"]),
        ],
    )
    first = life(world, f"m1@{FIRST}")
    assert len(first["container_log"]) == 4
    assert first["container_log"][-1].startswith("Traceback")
    told = [event["event"] for event in first["events"]]
    assert told[told.index("claimed") :] == [
        *("claimed", "turn_started", "tool_started", "exited", "retry_scheduled", "attempt_orphaned"),
    ]
    tool = next(event for event in first["events"] if event["event"] == "tool_started")
    assert tool["detail"] == {"tool": "Bash"}
    assert len(life(world, f"m1@{SECOND}")["container_log"]) == 1


def test_a_line_s_stamp_counts_before_its_time(world: ForensicWorld) -> None:
    session = two_runs(world)
    write_log(
        session,
        [line(NOW + 300, "theirs", incarnation=SECOND), "a trace\n", line(NOW + 300, "ours", incarnation=FIRST)],
    )
    (only,) = life(world, f"m1@{FIRST}")["container_log"]
    assert "ours" in only
    assert len(life(world, f"m1@{SECOND}")["container_log"]) == 2


def test_a_container_log_that_is_a_link_is_not_followed(world: ForensicWorld) -> None:
    session = two_runs(world)
    session.files.folder.logs.mkdir(exist_ok=True)
    (session.files.folder.logs / "container.log").symlink_to("/etc/passwd")
    assert container_lines(session.files.folder, FIRST, 0, None) == []


def test_the_daemon_s_own_events_about_the_run(world: ForensicWorld) -> None:
    session = two_runs(world)
    log = world.root / "logs" / "clawbus.log"
    log.parent.mkdir()
    log.write_text(
        line(NOW, "message_accepted", message="m1")
        + line(NOW, "container_spawned", incarnation=FIRST)
        + line(NOW, "container_spawned", incarnation=SECOND)
        + line(NOW, "message_retry_scheduled", incarnation=FIRST, message="m1")
        + line(NOW, "message_accepted", message="m11")
    )
    assert session is not None
    told = [event["event"] for event in life(world, f"m1@{FIRST}")["daemon_log"]]
    assert told == ["message_accepted", "container_spawned", "message_retry_scheduled"]


def test_a_run_in_flight_names_its_tool(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.incarnation("s", FIRST)
    world.claimed(session, "m1", FIRST)
    with session.runner() as db, db.transaction():
        db.execute(
            "INSERT INTO container_state(id, current_tool, tool_declared_timeout_ms, tool_started_at, updated_at)"
            " VALUES (1, 'Bash', 9000, ?, '')",
            (to_text(NOW + 5),),
        )
    event = life(world, "m1")["events"][-1]
    assert (event["event"], event["detail"]) == ("tool_in_flight", {"tool": "Bash", "declared_timeout_ms": 9000})


def test_an_undelivered_answer_says_why(world: ForensicWorld) -> None:
    session = two_runs(world)
    session.change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error)"
        " VALUES ('a1', 3, 'webhook', 'retrying', 2, ?, 'it answered 503')",
        (world.clock.now,),
    )
    (delivery,) = life(world, "m1")["deliveries"]
    assert (delivery["event"], delivery["detail"]["last_error"]) == ("delivery_retrying", "it answered 503")


def test_a_question_and_a_message_in_mid_turn_answer_nothing(world: ForensicWorld) -> None:
    """A sweep would have called a turn that waits for a person completed."""
    session = world.session()
    session.accept("m1")
    world.incarnation("s", FIRST)
    world.claimed(session, "m1", FIRST)
    session.say("q-asked", in_reply_to="m1", kind="system")
    with session.runner() as db, db.transaction():
        db.execute("UPDATE messages_out SET final = 0")
    session.say("a1", in_reply_to="m1")
    with session.runner() as db:
        assert [one.message_out_id for one in answers_to(db, frozenset({"m1"}))["m1"]] == ["a1"]


def test_an_answer_to_a_batch_answers_each(world: ForensicWorld) -> None:
    session = world.session()
    for name in ("m1", "m2"):
        session.accept(name)
    world.incarnation("s", FIRST)
    world.claimed(session, "m1", FIRST)
    world.claimed(session, "m2", FIRST)
    session.say("a1", in_reply_to="m2", content='{"text": "both", "answers": ["m1", "m2"]}')
    session.ack("completed", "m1", "m2", by=FIRST)
    found = world.runs().newest(RunQuery())["runs"]
    assert {(run["message_id"], run["decided_by"]) for run in found} == {("m2", "trace"), ("m1", "trace")}


def test_outbound_that_cannot_be_read_lowers_the_confidence(world: ForensicWorld) -> None:
    session = two_runs(world)
    outbound = session.files.folder.outbound_db
    outbound.unlink()
    outbound.symlink_to("/etc/passwd")
    found = world.runs().newest(RunQuery(status="completed"))
    assert found["runs"][0]["confidence"] == "low"
    assert found["errors"][0]["error"].startswith("HOSTILE_FILE")


def test_a_container_of_another_session_is_no_sign_of_life(world: ForensicWorld) -> None:
    session = world.session()
    session.accept("m1")
    world.claimed(session, "m1", FIRST)
    world.running.append(Container("c", AGENT, "t", SECOND, NOW))
    world.clock.now += HOUR
    (run,) = world.runs().newest(RunQuery(status="orphaned"))["runs"]
    assert run["stale"]
