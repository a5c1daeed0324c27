"""A file that an agent's table names is on a disk or mount that hangs: what it holds up, and what it does not."""

import os
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.config.agents import Agent
from daemon.core.events import SpawnFailed
from tests.support.bus_kit import AGENT, QUICK, BusKit, until

pytestmark = [pytest.mark.anyio]


class Mount:
    """The file `key`. While the mount hangs, its opening waits, for 10 s at most."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "key"
        self.key.write_text("a secret")
        self.answers = threading.Event()
        self.answers.set()
        self.gave_up = False  # it hung for longer than these tests take
        self._open = os.open

    def open(self, path: Any, *arguments: Any, **more: Any) -> int:
        if str(path) == str(self.key):
            self.gave_up |= not self.answers.wait(10)
        return self._open(path, *arguments, **more)


@pytest.fixture
async def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Mount]:
    made = Mount(tmp_path)
    monkeypatch.setattr(os, "open", made.open)
    yield made
    made.answers.set()


def keeper(tmp_path: Path, mount: Mount) -> BusKit:
    agents = {AGENT: Agent(), "keeper": Agent(secret_file={"KEY": str(mount.key)})}
    kit = BusKit(tmp_path / "data", agents=agents, runtime={"max_containers": 10})
    kit.timings = replace(QUICK, files_s=0.2)
    return kit


async def test_only_its_agent_waits_and_then_goes_on(tmp_path: Path, mount: Mount) -> None:
    kit = keeper(tmp_path, mount)
    sessions = {f"k{number}" for number in range(8)}
    failed: list[SpawnFailed] = []
    async with kit.running() as bus:
        bus.events.subscribe(SpawnFailed, failed.append)
        mount.answers.clear()
        before = threading.active_count()
        for session in sessions:
            await kit.send(session, agent="keeper")
        await kit.send("quick")
        await kit.started("quick")
        await until(lambda: {one.session for one in failed} == sessions)
        assert not mount.gave_up
        assert threading.active_count() - before < 8 + 4  # 4 of its starts, and those that other work takes
        assert {one.code for one in failed} == {"AGENT_FILE"}
        assert all(f"{mount.key}: not read within 0.2 s" in one.error for one in failed)
        mount.answers.set()
        await until(lambda: not bus.supervisor._state.spec_threads._agents["keeper"].under_way)
        kit.advance(60)
        for session in sessions:
            await kit.started(session)


async def test_a_daemon_starts_beside_it_and_keeps_the_container(tmp_path: Path, mount: Mount) -> None:
    kit = keeper(tmp_path, mount)
    async with kit.running():
        await kit.send("k", agent="keeper")
        await kit.started("k")
        kit.crash()
    mount.answers.clear()
    async with kit.running():
        await until(lambda: kit.slot("k", "keeper") is not None)
        await kit.send("quick")
        await kit.started("quick")
        assert not mount.gave_up
        assert kit.spawned("k") == 1
