"""The word for a session's state, from its row and its files; and what is scheduled is never late."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core.session_state import SESSION_STATES
from daemon.inspect.explain import state_of
from daemon.inspect.queues import read_queues
from daemon.inspect.work import read_work
from schema.instants import to_text
from schema.plain_file import ReadLimits
from tests.support.session_world import NOW, SessionWorld

DAY = 86_400_000
LIVE = {"container_id": "c1"}
ACTIVE = {"active": 1}


def retried(world: SessionWorld) -> None:
    world.accept("m1", process_after=NOW + 5000)
    world.change("UPDATE messages_in SET tries = 2")


def later(world: SessionWorld) -> None:
    retried(world)
    world.change("UPDATE messages_in SET deferrals = 1")


def claimed(world: SessionWorld) -> None:
    world.accept("m1")
    world.change("INSERT INTO attempts VALUES ('m1', 'i1', ?, NULL, NULL)", (NOW - 120_000,))


def answer(world: SessionWorld, due: int) -> None:
    world.change(
        "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, next_attempt_at)"
        " VALUES ('o1', 3, 'local\x1fcli\x1f', 'queued', 0, ?, ?)",
        (NOW - DAY, due),
    )


CASES: list[tuple[str, Callable[[SessionWorld], object] | None, dict[str, Any], dict[str, Any] | None]] = [
    ("quarantined", claimed, {"quarantined_at": NOW, "active": 1}, LIVE),
    ("starting", None, ACTIVE, {"container_id": None}),
    ("working", claimed, ACTIVE, LIVE),
    ("resting", None, ACTIVE, LIVE),
    ("resting", lambda world: world.accept("m1", process_after=NOW + DAY), ACTIVE, LIVE),
    ("backing_off", lambda world: world.accept("m1"), {"active": 1, "next_spawn_at": NOW + 1}, None),
    ("backing_off", retried, ACTIVE, None),
    # Nothing is started for a message that was cancelled.
    ("idle", None, {"next_spawn_at": NOW + 1}, None),
    ("scheduled", lambda world: world.accept("m1", process_after=NOW + DAY), {"active": 1, "next_spawn_at": NOW + 1}, None),
    ("scheduled", later, ACTIVE, None),
    ("scheduled", lambda world: world.accept("m1", process_after=NOW + DAY), ACTIVE, None),
    ("scheduled", lambda world: answer(world, NOW + DAY), ACTIVE, None),
    ("scheduled", None, {"next_due_at": NOW + DAY}, None),
    ("waiting", lambda world: world.accept("m1"), ACTIVE, None),
    ("waiting", lambda world: answer(world, NOW - 1), ACTIVE, None),
    ("waiting", lambda world: [retried(world), world.accept("m2")] and world.change("UPDATE messages_in SET holds = 0"), ACTIVE, None),
    ("idle", None, {}, None),
]  # fmt: skip


def test_every_state_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(SESSION_STATES)


@pytest.mark.parametrize(("state", "make", "row", "live"), CASES)
def test_a_state(
    tmp_path: Path,
    state: str,
    make: Callable[[SessionWorld], object] | None,
    row: dict[str, Any],
    live: dict[str, Any] | None,
) -> None:
    world = SessionWorld(tmp_path / "s")
    if make is not None:
        make(world)
    assert state_of(row, live, read_queues(world.files.folder, NOW), NOW) == state


def test_what_was_not_read_is_as_the_registry_says() -> None:
    assert [state_of(row, None, None, NOW) for row in (ACTIVE, {"next_due_at": NOW + 1}, {})] == [
        "waiting", "scheduled", "idle",
    ]  # fmt: skip


def test_the_oldest_message_is_never_one_that_was_meant_for_later(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "s", now=NOW - DAY)
    world.accept("tomorrow", process_after=NOW + DAY)
    queues = read_queues(world.files.folder, NOW)
    assert (queues.pending, queues.scheduled, queues.backing_off, queues.oldest_pending_at) == (1, 1, 0, None)
    world.now = NOW - 5000
    world.accept("retried", process_after=NOW + 1000)
    world.change("UPDATE messages_in SET tries = 1 WHERE id = 'retried'")
    queues = read_queues(world.files.folder, NOW)
    assert (queues.pending, queues.scheduled, queues.backing_off) == (2, 1, 1)
    assert queues.oldest_pending_at == NOW - 5000, "a message that is tried again is late since it came"


def test_work_is_the_oldest_open_turn_with_the_container_s_tool(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "s")
    assert read_work(world.files.folder, ReadLimits()) is None
    claimed(world)
    world.accept("m2")
    world.change("INSERT INTO attempts VALUES ('m2', 'i1', ?, NULL, NULL)", (NOW - 1000,))
    with world.runner() as db, db.transaction():
        db.execute("INSERT INTO container_state VALUES (1, 'pytest', 60000, ?, ?)", (to_text(NOW - 9000), to_text(NOW)))
    work = read_work(world.files.folder, ReadLimits())
    assert work is not None
    assert (work.message_id, work.since, work.messages, work.text) == ("m1", NOW - 120_000, 2, "hello")
    assert (work.tool, work.tool_since, work.tool_timeout_ms) == ("pytest", NOW - 9000, 60_000)
    world.files.folder.outbound_db.write_bytes(b"\xff" * 5000)
    hostile = read_work(world.files.folder, ReadLimits())
    assert hostile is not None
    assert (hostile.message_id, hostile.tool) == ("m1", None), "a hostile file costs the tool's name alone"
    world.files.folder.inbound_db.unlink()
    assert read_work(world.files.folder, ReadLimits()) is None
