"""A message cancelled while an agent works on it: the sweep waits for the turn to stop, and ends a container that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.core.lifecycle import CANCEL_IGNORED, Container, Kill, Policy
from daemon.engine.cancelled_turns import STOP_LOOK
from daemon.engine.incarnation_steps import finish_incarnation
from daemon.engine.sweep_steps import Settings, Swept, sweep_files
from daemon.maintenance import message_repair
from daemon.store.dead_letters import Operator
from schema.instants import to_text
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld

GRACE = 15_000
SETTINGS = Settings(Policy(cancel_grace=GRACE))


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    """One message that incarnation `i` works on, cancelled; and one that waits."""
    made = SessionWorld(tmp_path / "sessions" / "echo" / "s", NOW)
    made.accept("m")
    made.accept("next")
    made.claim("m", by="i")
    message_repair.cancel(made.files, "m", Operator("ada", "enough"), NOW, live="i")
    return made


def sweep(world: SessionWorld, later: int = 0, alive: str | None = "i") -> Swept:
    container = Container(alive, NOW - 60_000, heartbeat_at=NOW, last_activity=NOW) if alive is not None else None
    return sweep_files(world.files, container, NOW + later, SETTINGS, occupied=False, floor=0)


def test_while_it_stops_nothing_happens_to_it(world: SessionWorld) -> None:
    world.files.folder.outbox.joinpath(".heartbeat").touch()
    swept = sweep(world, GRACE)
    assert swept.actions == ()
    assert swept.stop_at == NOW + GRACE + STOP_LOOK
    assert world.events("m")[-1] == "cancelled"


@pytest.mark.parametrize("swept_before", [0, 1])
def test_one_that_goes_on_after_the_grace_is_ended_whoever_sweeps(world: SessionWorld, swept_before: int) -> None:
    for _ in range(swept_before):
        sweep(world)
    (action,) = sweep(world, GRACE + 1).actions
    assert isinstance(action, Kill)
    assert (action.reason, action.message_id) == (CANCEL_IGNORED, "m")


def use(world: SessionWorld, tokens: int) -> None:
    with world.runner() as db, db.transaction():
        db.execute(
            "INSERT INTO turn_usage(message_id, incarnation, at, input_tokens) VALUES ('m', 'i', ?, ?)",
            (to_text(NOW), tokens),
        )


@pytest.mark.parametrize("exits", [False, True])
def test_what_it_used_is_counted_once_whether_its_container_lives_or_not(world: SessionWorld, *, exits: bool) -> None:
    use(world, 30)
    world.unclaim("m")
    if exits:
        done = finish_incarnation(world.files, "i", "exited", NOW + 300, SETTINGS)
        assert [(name, usage.input_tokens) for name, usage in done.stopped] == [("m", 30)]
    else:
        (turn,) = sweep(world, 300).stopped
        assert turn.usage is not None
        assert turn.usage.input_tokens == 30
    assert sweep(world, 600).stopped == ()
    assert finish_incarnation(world.files, "i", "exited", NOW + 900, SETTINGS).stopped == ()


def test_one_that_has_stopped_is_noted_once_and_costs_no_try(world: SessionWorld) -> None:
    world.unclaim("m")
    sweep(world, 300)
    assert world.events("m")[-1] == "turn_stopped"
    before = world.events("m")
    sweep(world, 600)
    assert world.events("m") == before
    assert [row["outcome"] for row in world.read("SELECT outcome FROM attempts")] == ["released"]
    assert (world.message("m")["tries"], world.message("m")["status"]) == (0, "cancelled")
    check_session(world.root)


def test_the_end_of_its_container_ends_the_turn(world: SessionWorld) -> None:
    finish_incarnation(world.files, "i", "exited", NOW + 500, SETTINGS)
    sweep(world, 600, alive=None)
    assert [row["outcome"] for row in world.read("SELECT outcome FROM attempts")] == ["released"]
    assert (world.message("m")["tries"], world.message("next")["tries"]) == (0, 0)
    check_session(world.root, at_rest=False)


def test_company_of_a_cancelled_message_loses_no_try_when_the_runner_gives_it_back(world: SessionWorld) -> None:
    world.claim("next", by="i")
    sweep(world)
    world.unclaim("m", "next")
    sweep(world, 300)
    assert (world.message("next")["status"], world.message("next")["tries"]) == ("pending", 0)


@pytest.mark.parametrize(("stop_late", "status"), [(0, "pending"), (1, "cancelled")])
def test_a_deadline_stops_a_turn_only_where_the_sender_wants_it(
    world: SessionWorld, stop_late: int, status: str
) -> None:
    world.unclaim("m")
    sweep(world)
    world.claim("next", by="i")
    world.change("UPDATE messages_in SET not_after = ?, stop_late = ? WHERE id = 'next'", (to_text(NOW), stop_late))
    swept = sweep(world, 3_000)
    assert world.message("next")["status"] == status
    if stop_late:
        assert swept.stop_at == NOW + 3_000 + STOP_LOOK
        assert "not answered before" in world.read("SELECT content FROM host_messages")[-1]["content"]
        world.unclaim("next")
        sweep(world, 3_200)
        assert world.events("next")[-1] == "turn_stopped"
    check_session(world.root)
