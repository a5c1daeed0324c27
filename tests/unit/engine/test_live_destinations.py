"""The list of destinations of a container that runs: written at each change, tried again, and forgotten with the container."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import anyio
import anyio.lowlevel
import pytest

from daemon.core.destinations import DestinationSource, NamedPlace
from daemon.core.events import ContainerAdopted
from daemon.core.session_key import SessionKey
from daemon.engine import live_destinations
from daemon.engine.background import Background
from daemon.engine.events import Events
from daemon.engine.live_destinations import LiveDestinations
from daemon.engine.supervisor.supervisor import Supervisor
from schema.errors import FileBusyError
from tests.support.session_kit import eventually

pytestmark = [pytest.mark.anyio]
T = TypeVar("T")
KEY = SessionKey("a", "s")
HALL, TEAM = ("local", "hall"), ("local", "team")


class World:
    """One session with a container, a file that may be busy, and an agent's places."""

    def __init__(self) -> None:
        self.places: list[tuple[str, str]] = [TEAM]
        self.file = frozenset(self.places)
        self.writes = 0
        self.busy = 0
        self.slot: Any = None
        self.session: Any = SimpleNamespace(
            key=KEY, files=None, quarantined=None, lost_places=frozenset[tuple[str, str]](), call=self.call
        )
        self.background, self.events = Background(), Events()
        self.lists = LiveDestinations(cast("Supervisor", self), self.background, self.named, self.write)
        self.lists.subscribe(self.events)

    def start(self, incarnation: str) -> None:
        self.slot = SimpleNamespace(session=self.session, incarnation=incarnation, exited=anyio.Event())
        self.file = frozenset(self.places)

    def live_sessions(self) -> tuple[Any, ...]:
        return () if self.slot is None else (self.session,)

    def slot_of(self, _: SessionKey) -> Any:
        return self.slot

    async def call(self, work: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()
        return work()

    def named(self, _: str) -> tuple[NamedPlace, ...]:
        return tuple(
            NamedPlace(place, channel, place, place, DestinationSource.ROUTE) for channel, place in self.places
        )

    def write(self, *_: object) -> frozenset[tuple[str, str]]:
        self.writes += 1
        if self.busy:
            self.busy -= 1
            raise FileBusyError("inbound.db is busy.")
        before, self.file = self.file, frozenset(self.places)
        return before - self.file


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    monkeypatch.setattr(live_destinations, "_RETRY_S", 0.01)
    made = World()
    # The supervisor's own name for it is that of this class's attribute.
    made.lists._supervisor = cast("Supervisor", SimpleNamespace(live_sessions=made.live_sessions, slot=made.slot_of))
    async with anyio.create_task_group() as tasks:
        await tasks.start(made.background.run)
        yield made
        tasks.cancel_scope.cancel()


async def test_a_change_is_written_once_and_what_was_lost_is_remembered(world: World) -> None:
    world.start("I1")
    await world.lists.bring_up_to_date()
    assert world.writes == 1, "what the container was started with is not known here"
    world.places = [HALL]
    await world.lists.bring_up_to_date()
    await world.lists.bring_up_to_date()
    assert (world.file, world.writes, world.session.lost_places) == (frozenset([HALL]), 2, frozenset([TEAM]))
    world.places = [HALL, TEAM]
    await world.lists.bring_up_to_date()
    assert world.file == frozenset([HALL, TEAM])


async def test_a_file_that_is_busy_is_tried_again_and_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_destinations, "_PATIENCE_S", 0.0)
    world.start("I1")
    world.places, world.busy = [HALL], 3
    await world.lists.bring_up_to_date()
    await eventually(lambda: world.file == frozenset([HALL]))
    assert world.writes == 4


async def test_another_container_was_told_at_its_start_and_its_list_is_checked_again(world: World) -> None:
    world.start("I1")
    await world.lists.bring_up_to_date()
    world.places = [HALL]
    world.start("I2")
    world.places = [TEAM]  # as before I2, and not as at its start
    await world.lists.bring_up_to_date()
    assert world.file == frozenset([TEAM])
    assert world.session.lost_places == frozenset([HALL])


async def test_an_adopted_container_gets_the_present_list_and_one_that_has_ended_none(world: World) -> None:
    world.start("I1")
    world.file = frozenset([HALL])
    world.events.publish(ContainerAdopted(1, *KEY, "I1", "c1", 1, 1))
    await eventually(lambda: world.file == frozenset([TEAM]))
    world.slot.exited.set()
    world.places = [HALL]
    await world.lists.bring_up_to_date()
    assert world.writes == 1
