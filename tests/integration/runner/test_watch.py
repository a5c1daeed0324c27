"""The runner's alarm on real files: the host's bell at once, an older host's commit soon, and the poll for the deaf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from container_runner.watch import InboundWatch
from schema.bell import ring
from schema.connect import open_owner
from schema.inotify import Inotify
from schema.migrate import Role

pytestmark = [pytest.mark.anyio]

NEVER = 600.0


def commit(folder: Path, number: int = 0) -> None:
    with open_owner(folder / "inbound.db", Role.INBOUND) as db, db.transaction():
        db.execute("INSERT OR REPLACE INTO destinations(name, type) VALUES (?, ?)", (f"n{number}", "x" * number * 5000))


@asynccontextmanager
async def watching(folder: Path, **options: Any) -> AsyncGenerator[InboundWatch]:
    watch = InboundWatch(folder, **{"step_ms": 1, "poll_s": NEVER, "log": structlog.get_logger(), **options})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        with anyio.fail_after(60):
            await watch.wait()  # it begins with a look
            yield watch
        watch.close()


async def test_a_ring_ends_the_wait(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        for _ in range(3):
            ring(tmp_path)
            await watch.wait()


async def test_a_commit_of_a_host_that_does_not_ring_ends_the_wait(tmp_path: Path) -> None:
    commit(tmp_path)
    async with watching(tmp_path) as watch:
        commit(tmp_path)
        await watch.wait()


async def test_what_a_host_that_rings_commits_without_a_ring_is_not_looked_at(tmp_path: Path) -> None:
    commit(tmp_path)
    ring(tmp_path)
    async with watching(tmp_path) as watch:
        ring(tmp_path)
        await watch.wait()
        commit(tmp_path)
        (tmp_path / "marker").touch()
        ring(tmp_path)
        await watch.wait()  # the ring's: events come in order, so the commit has been read
        await anyio.wait_all_tasks_blocked()
        assert not watch._changed.is_set()


def rest(watch: InboundWatch) -> None:
    """Poll the file a minute after its last change, and find nothing to do."""
    watch.end_poll(replace(watch.begin_poll(), at=asyncio.get_running_loop().time() + 60), inf)


def reads_at_next_poll(watch: InboundWatch) -> bool:
    """Whether the next poll would read the file."""
    watch._check(now=asyncio.get_running_loop().time() + 2 * NEVER)
    return watch._changed.is_set()


async def test_where_rings_arrive_an_unchanged_file_is_not_read_at_every_poll(tmp_path: Path) -> None:
    commit(tmp_path)
    async with watching(tmp_path) as watch:
        ring(tmp_path)
        await watch.wait()
        rest(watch)
        assert not reads_at_next_poll(watch)


async def test_a_commit_without_its_ring_is_read_at_the_next_poll(tmp_path: Path) -> None:
    commit(tmp_path)
    async with watching(tmp_path) as watch:
        ring(tmp_path)
        await watch.wait()
        rest(watch)
        before = watch._mark
        commit(tmp_path, 4)  # the host died before its ring
        while watch._mark == before:
            await anyio.wait_all_tasks_blocked()
        assert not watch._changed.is_set()
        assert reads_at_next_poll(watch)


async def test_an_event_of_a_host_that_does_not_ring_is_evidence_too(tmp_path: Path) -> None:
    commit(tmp_path)
    async with watching(tmp_path) as watch:
        commit(tmp_path)
        await watch.wait()
        rest(watch)
        assert not reads_at_next_poll(watch)


@pytest.mark.parametrize("events", [False, True])
async def test_without_evidence_of_events_every_poll_reads_the_file(tmp_path: Path, events: bool) -> None:
    commit(tmp_path)
    async with watching(tmp_path) as watch:
        if events:
            ring(tmp_path)
            await watch.wait()
            watch._unheard = 1  # a change was found that no event told of
        rest(watch)
        assert reads_at_next_poll(watch)


async def test_where_events_do_not_cross_the_poll_takes_over(tmp_path: Path) -> None:
    commit(tmp_path)

    def deaf() -> Inotify:
        events = Inotify()
        events.watch = lambda folder, mask: 1  # type: ignore[method-assign]
        return events

    with capture_logs() as logs:
        async with watching(tmp_path, poll_s=0.001, open_events=deaf, log=structlog.get_logger()) as watch:
            for number in range(1, 5):
                before = watch._unheard
                commit(tmp_path, number)
                while watch._unheard == before:
                    await watch.wait()
    assert [entry["event"] for entry in logs] == ["watch_deaf"]


async def test_a_folder_that_is_gone_leaves_the_poll(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with capture_logs() as logs:
        async with watching(folder, poll_s=0.001, log=structlog.get_logger()) as watch:
            folder.rmdir()
            while not logs:
                await watch.wait()
            folder.mkdir()
            commit(folder)
            await watch.wait()
    assert logs[0]["event"] == "watch_unavailable"


async def test_it_ends_when_closed(tmp_path: Path) -> None:
    watch = InboundWatch(tmp_path, step_ms=1, poll_s=NEVER, log=structlog.get_logger())
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await watch.wait()
            watch.close()
