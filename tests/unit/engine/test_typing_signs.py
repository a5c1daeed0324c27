"""Typing signs: from the claim to the turn's end, renewed while the container makes progress, and never in anybody's way."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from daemon.channels.protocol import Typing
from daemon.core.events import ContainerExited, Event, MessageClaimed, MessageExpired, MessageSettled, TurnStopped
from daemon.engine.events import Events
from daemon.engine.typing_signs import TypingSigns
from schema.layout import HEARTBEAT, SessionFolder
from schema.rows import Address
from tests.support.clock import MovedClock

pytestmark = [pytest.mark.anyio]
ROOM, OTHER = Address("room", "r"), Address("silent", "r")


class Room:
    """A channel that shows signs, or fails to."""

    def __init__(self) -> None:
        self.signs: list[Typing] = []
        self.fails = False
        self.shown = anyio.Event()

    def shows_typing(self, address: Address) -> bool:
        return address.platform_id == "r"

    async def typing(self, sign: Typing) -> None:
        await anyio.lowlevel.checkpoint()
        self.signs.append(sign)
        self.shown.set()
        if self.fails:
            raise OSError("no network")

    async def until(self, number: int) -> list[bool]:
        with anyio.fail_after(30):
            while len(self.signs) < number:
                self.shown = anyio.Event()
                await self.shown.wait()
        return [one.on for one in self.signs]


class World:
    def __init__(self, root: Path) -> None:
        self.room, self.clock, self.events = Room(), MovedClock(), Events()
        self.folder = SessionFolder(root)
        self.folder.outbox.mkdir()
        self.beat()
        session: Any = SimpleNamespace(files=SimpleNamespace(folder=self.folder))
        self.signs = TypingSigns(
            {"room": self.room, "silent": object()}, lambda _: session, self.clock, self.events, renew_s=0.01
        )

    def beat(self) -> None:
        path = self.folder.outbox / HEARTBEAT
        path.touch()
        at = self.clock.now_ms() * 1_000_000
        os.utime(path, ns=(at, at))

    def claim(self, message_id: str, address: Address | None = ROOM) -> None:
        self.events.publish(MessageClaimed(1, "a", "s", message_id, "I1", address))

    def settle(self, message_id: str) -> None:
        self.events.publish(MessageSettled(1, "a", "s", message_id, "I1", True, None))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    async with anyio.create_task_group() as tasks:
        await tasks.start(made.signs.run)
        yield made
        tasks.cancel_scope.cancel()


async def test_a_sign_is_renewed_and_ends_with_the_last_message_of_its_place(world: World) -> None:
    world.claim("m1")
    world.claim("m2")
    assert all(await world.room.until(3))
    world.settle("m1")
    assert all(await world.room.until(len(world.room.signs) + 2))
    world.settle("m2")
    with anyio.fail_after(30):
        while world.room.signs[-1].on:
            await world.room.until(len(world.room.signs) + 1)
    sign = world.room.signs[-1]
    assert (sign.address, sign.agent, sign.session, sign.about) == (ROOM, "a", "s", "m1")
    assert sum(not one.on for one in world.room.signs) == 1


async def test_a_container_without_progress_is_not_shown_as_working(world: World) -> None:
    world.clock.advance(120)
    world.claim("m1")
    world.events.publish(ContainerExited(1, "a", "s", "I1", "exited", 1, False))
    assert await world.room.until(1) == [False]


async def test_signs_that_fail_are_no_matter_and_other_channels_get_none(world: World) -> None:
    world.room.fails = True
    world.claim("m0", OTHER)
    world.claim("m0", None)
    world.claim("m0", Address("room", "elsewhere"))
    world.claim("m1")
    assert all(await world.room.until(2))
    assert {one.about for one in world.room.signs} == {"m1"}


@pytest.mark.parametrize(
    "end", [TurnStopped(1, "a", "s", "m1", None, None), MessageExpired(1, "a", "s", "m1")], ids=["stopped", "expired"]
)
async def test_a_turn_that_was_cancelled_takes_its_sign_with_it(world: World, end: Event) -> None:
    """The container lives on, for as long as idle containers do."""
    world.claim("m1")
    assert all(await world.room.until(2))
    world.events.publish(end)
    with anyio.fail_after(30):
        while world.room.signs[-1].on:
            await world.room.until(len(world.room.signs) + 1)
    assert world.signs._open == {}, "a sign that is never taken away leaves no room for others"
