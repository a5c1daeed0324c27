"""What agents write while they work: published while somebody watches, each line once, and nothing that is older."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from container_runner.words import PROGRESS, STDERR, Words
from daemon.core.events import AgentWrote
from daemon.core.session_key import SessionKey
from daemon.engine.progress import Progress
from schema.layout import SessionFolder
from tests.support.clock import MovedClock

NOW = 1_763_000_000_000
LOG: Any = structlog.wrap_logger(structlog.ReturnLogger())

pytestmark = [pytest.mark.anyio]


class World:
    def __init__(self, root: Path) -> None:
        self.clock = MovedClock(NOW)
        self.published: list[AgentWrote] = []
        self.watched = True
        self.live: list[Any] = []
        self.root = root
        self.progress = Progress(lambda: self.live, lambda: self.watched, self.published.append, self.clock)

    def session(self, name: str) -> Words:
        folder = SessionFolder(self.root / name)
        folder.outbox.mkdir(parents=True, exist_ok=True)
        self.live.append(SimpleNamespace(key=SessionKey("a", name), files=SimpleNamespace(folder=folder)))
        return Words(folder.outbox, "I1", self.clock.now_ms)

    async def texts(self) -> list[str]:
        self.published.clear()
        await self.progress.look()
        return [one.text for one in self.published]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_each_line_is_published_once_with_what_it_is_about(world: World) -> None:
    words = world.session("s")
    assert await world.texts() == []
    words.keep(LOG, ["m1"], PROGRESS, "reading")
    words.keep(LOG, ["m1"], STDERR, "oops")
    assert await world.texts() == ["reading", "oops"]
    assert [(one.session, one.messages, one.kind) for one in world.published] == [
        ("s", ("m1",), "progress"),
        ("s", ("m1",), "stderr"),
    ]
    assert await world.texts() == []


async def test_nothing_is_read_while_nobody_watches_and_nothing_of_then_is_shown(world: World) -> None:
    words = world.session("s")
    world.watched = False
    words.keep(LOG, ["m1"], PROGRESS, "unseen")
    world.clock.advance(1)
    assert await world.texts() == []
    world.watched = True
    assert await world.texts() == []
    words.keep(LOG, ["m1"], PROGRESS, "seen")
    assert await world.texts() == ["seen"]


async def test_a_container_that_starts_or_ends_between_two_polls_loses_no_line(world: World) -> None:
    await world.texts()
    words = world.session("late")
    words.keep(LOG, ["m1"], PROGRESS, "first")
    assert await world.texts() == ["first"]
    words.keep(LOG, ["m1"], STDERR, "last words")
    world.live.clear()
    assert await world.texts() == ["last words"]
    world.clock.advance(1)
    assert await world.texts() == []
    world.session("late").keep(LOG, ["m1"], PROGRESS, "again")
    assert await world.texts() == ["again"], "what the container before it wrote is not published a second time"
