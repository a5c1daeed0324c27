"""A few odd sessions among many idle ones: every report finds them, examines all, and opens only what may have changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import schema.connect
from daemon.core.facts import DaemonState
from daemon.core.session_key import SessionKey
from daemon.inspect.answer_reading import open_answers_report
from daemon.inspect.dead_reading import dead_letters_report
from daemon.inspect.runs import RunQuery
from daemon.inspect.status_report import status_report
from daemon.store import verified_idle
from tests.support.forensic_world import AGENT, ForensicWorld
from tests.support.idle_sessions import finished, idle, verify
from tests.support.session_world import SessionWorld

HOUR = 3_600_000
MANY = 120
FEW = 10
DEAD, STUCK, GHOST = "s040", "s060", "s080"


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written just now may be recorded: nobody else writes them."""
    monkeypatch.setattr(verified_idle, "SETTLED_NS", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The sessions of which a file was opened."""
    found: set[str] = set()
    connect = schema.connect._connect

    def watched(path: Path, *more: Any) -> sqlite3.Connection:
        if path.parent.name in ("in", "out"):
            found.add(path.parent.parent.name)
        return connect(path, *more)

    monkeypatch.setattr(schema.connect, "_connect", watched)
    return found


@pytest.fixture
def world(tmp_path: Path) -> ForensicWorld:
    world = ForensicWorld(tmp_path / "d")
    finished(world, [f"s{number:03d}" for number in range(MANY)])
    return world


@pytest.fixture
def few(tmp_path: Path) -> ForensicWorld:
    few = ForensicWorld(tmp_path / "d")
    finished(few, [f"s{number:03d}" for number in range(FEW)])
    return few


def existing(world: ForensicWorld, name: str) -> SessionWorld:
    """A session that is there, without a word to the registry."""
    return SessionWorld(world.root / "sessions" / AGENT / name, world.clock.now)


def dead_letter(world: ForensicWorld, name: str) -> None:
    session = existing(world, name)
    session.accept("dead1")
    world.claimed(session, "dead1", "I0")
    session.ack("failed", "dead1", by="I0")
    world.settled(session, "dead1", "I0", "failed")


def claim(world: ForensicWorld, name: str, message_id: str, by: str) -> None:
    session = existing(world, name)
    session.accept(message_id)
    world.claimed(session, message_id, by)


def odd_ones(world: ForensicWorld) -> None:
    """One dead letter, one claim without progress under a container that lives, one run whose container is gone."""
    dead_letter(world, DEAD)
    world.incarnation(STUCK, "I1")
    claim(world, STUCK, "stuck1", "I1")
    claim(world, GHOST, "ghost1", "I2")


def told(world: ForensicWorld) -> dict[str, Any]:
    """What the four reports say of the folder, an hour later."""
    world.clock.now += HOUR
    if world.state is DaemonState.UP and world.live is not None:
        world.live["last_sweep"] = {"at": world.clock.now}
    status = status_report(world.root, world.clock)
    dead = dead_letters_report(world.root, world.clock)
    doctor = world.look()
    runs = world.runs().newest(RunQuery(stale=True))
    assert doctor.sessions == status["sessions"]["total"] == MANY
    return {
        "not_examined": [status["not_examined"], dead["not_examined"], doctor.not_examined, runs["not_examined"]],
        "status": (status["queues"]["dead_letters"], status["queues"]["pending"]),
        "dead": [(letter["session"], letter["id"]) for letter in dead["letters"]],
        "doctor": {(one.code, one.session) for one in doctor.diagnoses if one.session is not None},
        "stale": {(run["session"], run["message_id"]) for run in runs["runs"]},
    }


def assert_all_found(found: dict[str, Any]) -> None:
    assert found["not_examined"] == [0, 0, 0, 0]
    assert found["status"] == (1, 2)
    assert found["dead"] == [(DEAD, "dead1")]
    assert found["stale"] == {(GHOST, "ghost1")}
    assert found["doctor"] >= {("DEAD_LETTERS", DEAD), ("STUCK_CLAIM", STUCK), ("GHOST_RUN", GHOST)}
    assert {session for _, session in found["doctor"]} == {DEAD, STUCK, GHOST}


@pytest.fixture(params=[DaemonState.UP, DaemonState.DOWN])
def both_ways(request: pytest.FixtureRequest, world: ForensicWorld) -> None:
    """While a daemon runs, and while none does."""
    if request.param is DaemonState.UP:
        world.up()


@pytest.mark.usefixtures("both_ways")
def test_they_are_found_before_anything_was_recorded(world: ForensicWorld) -> None:
    odd_ones(world)
    assert_all_found(told(world))


@pytest.mark.usefixtures("both_ways")
def test_they_are_found_among_recorded_sessions(world: ForensicWorld, opened: set[str]) -> None:
    odd_ones(world)
    assert len(verify(world)) == MANY - 3
    opened.clear()
    assert_all_found(told(world))
    assert opened == {DEAD, STUCK, GHOST}


@pytest.mark.usefixtures("both_ways")
def test_they_are_found_when_the_registry_and_its_records_are_older_than_the_files(
    world: ForensicWorld, opened: set[str]
) -> None:
    """As after the restore of an older central.db: it calls all of them idle, and has read all of them."""
    assert len(verify(world)) == MANY
    older = (world.root / "central.db").read_bytes()
    odd_ones(world)
    for name in (DEAD, GHOST):
        world.registry.activate(SessionKey(AGENT, name), world.clock.now)
    (world.root / "central.db").write_bytes(older)
    opened.clear()
    assert_all_found(told(world))
    assert opened == {DEAD, STUCK, GHOST}


@pytest.mark.usefixtures("both_ways")
def test_nothing_to_tell_opens_nothing(world: ForensicWorld, opened: set[str]) -> None:
    verify(world)
    opened.clear()
    found = told(world)
    assert (found["not_examined"], found["doctor"], found["stale"]) == ([0, 0, 0, 0], set(), set())
    assert open_answers_report(world.root, world.clock)["not_examined"] == 0
    assert opened == set()


def put_back(world: ForensicWorld, file: str) -> None:
    """An older copy in the place of a file, of the same size and with the same modification time."""
    path = world.root / "sessions" / AGENT / "s007" / file
    before = path.stat()
    other = path.with_name("copy")
    shutil.copyfile(path, other)
    other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def add_file(world: ForensicWorld, file: str) -> None:
    (world.root / "sessions" / AGENT / "s007" / file).write_bytes(b"")


def accept(world: ForensicWorld) -> None:
    existing(world, "s007").accept("m9")


def answer(world: ForensicWorld) -> None:
    existing(world, "s007").say("a9")


def activate(world: ForensicWorld) -> None:
    world.registry.activate(SessionKey(AGENT, "s007"), world.clock.now)


def quarantine(world: ForensicWorld) -> None:
    world.registry.quarantine(SessionKey(AGENT, "s007"), "its file is broken", world.clock.now)


def fail_to_spawn(world: ForensicWorld) -> None:
    world.registry.spawn_failed(SessionKey(AGENT, "s007"), 3, world.clock.now, "no such image")


def count_dead(world: ForensicWorld) -> None:
    world.registry.deactivate(SessionKey(AGENT, "s007"), None, 1)


def schedule(world: ForensicWorld) -> None:
    world.registry.deactivate(SessionKey(AGENT, "s007"), world.clock.now, 0)


def start(world: ForensicWorld) -> None:
    world.incarnation("s007", "I7")


def change_mode(world: ForensicWorld) -> None:
    (world.root / "sessions" / AGENT / "s007" / "in" / "inbound.db").chmod(0o600)


def remove(world: ForensicWorld) -> None:
    (world.root / "sessions" / AGENT / "s007" / "in" / "inbound.db").unlink()


CHANGES: dict[str, Callable[[ForensicWorld], None]] = {
    "a message": accept,
    "an answer": answer,
    "an older inbound.db": lambda world: put_back(world, "in/inbound.db"),
    "an older outbound.db": lambda world: put_back(world, "out/outbound.db"),
    "a journal": lambda world: add_file(world, "out/outbound.db-journal"),
    "a journal of ours": lambda world: add_file(world, "in/inbound.db-journal"),
    "a WAL": lambda world: add_file(world, "out/outbound.db-wal"),
    "another mode": change_mode,
    "a lost file": remove,
    "work on record": activate,
    "a quarantine": quarantine,
    "a failed start": fail_to_spawn,
    "a dead letter on record": count_dead,
    "a schedule on record": schedule,
    "a container on record": start,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_session_is_read_again_after(few: ForensicWorld, opened: set[str], change: str) -> None:
    assert len(verify(few)) == FEW
    CHANGES[change](few)
    opened.clear()
    status = status_report(few.root, few.clock)
    few.look()
    few.runs().newest(RunQuery(stale=True))
    if change == "a lost file":  # there is nothing to open
        assert "s007" in [one["session"] for one in status["attention"]]
    else:
        assert opened == {"s007"}


def test_a_container_that_the_registry_does_not_know_has_its_session_read(few: ForensicWorld, opened: set[str]) -> None:
    few.up()
    verify(few)
    few.incarnation("s007", "I7")
    few.registry.end_incarnation("I7", few.clock.now, 0, "exited")
    idle(few, "s007")
    opened.clear()
    assert {(one.code, one.session) for one in few.look().diagnoses} == {("ORPHANED_CONTAINER", "s007")}
    assert opened == {"s007"}


def test_a_record_of_the_future_counts_for_nothing(few: ForensicWorld, opened: set[str]) -> None:
    """The clock was set back: what was dated then is ahead of it now."""
    verify(few)
    few.clock.now -= HOUR
    opened.clear()
    assert status_report(few.root, few.clock)["not_examined"] == 0
    assert len(opened) == FEW


def test_a_session_that_the_daemon_fails_at_is_read(few: ForensicWorld, opened: set[str]) -> None:
    few.up()
    verify(few)
    assert few.live is not None
    trouble = {"agent": AGENT, "session": "s007", "code": "STORAGE", "sentence": "It fails.", "since": 1, "times": 9}
    few.live["troubles"] = [trouble]
    opened.clear()
    assert "s007" in {one.session for one in few.look().diagnoses}
    assert opened == {"s007"}


def test_a_record_is_not_believed_for_ever(few: ForensicWorld, opened: set[str]) -> None:
    """Bytes may rot without a change that lstat could see."""
    verify(few)
    few.clock.now += verified_idle.VALID_MS + 1
    opened.clear()
    assert status_report(few.root, few.clock)["not_examined"] == 0
    assert len(opened) == FEW
