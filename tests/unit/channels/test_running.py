"""A channel that never says that it takes messages, or that ends at once, costs the daemon's start a bounded time."""

from functools import partial
from typing import Any, cast

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.channels.protocol import Channel
from daemon.channels.running import run_channel, run_channels
from daemon.core.clock import SystemClock

pytestmark = [pytest.mark.anyio]


class Odd:
    """A channel whose `run` does as its name says."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.runs = 0
        self.late = anyio.Event()

    async def run(self, _: Any, *, task_status: Any) -> None:
        self.runs += 1
        match self.way:
            case "good":
                task_status.started()
            case "ends":
                return
            case "late":
                await self.late.wait()
                task_status.started()
            case "fails late":
                await self.late.wait()
                raise ValueError("a bug")
            case _:
                pass
        await anyio.sleep_forever()


async def start(tasks: Any, *ways: str) -> tuple[dict[str, Odd], dict[str, tuple[int, str]]]:
    clock = SystemClock()
    problems: dict[str, tuple[int, str]] = {}
    channels = {way: Odd(way) for way in ways}
    running = {
        way: partial(run_channel, way, cast("Channel", channel), cast("Any", None), problems, clock, retry_s=3600.0)
        for way, channel in channels.items()
    }
    with anyio.fail_after(30):
        await tasks.start(partial(run_channels, running, problems, clock, start_s=0.05))
    return channels, problems


async def test_the_start_goes_on_and_names_the_channels_that_did_not_report() -> None:
    async with anyio.create_task_group() as tasks:
        with capture_logs() as logs:
            _, problems = await start(tasks, "good", "silent", "ends")
        assert sorted(problems) == ["ends", "silent"]
        assert problems["ends"][1] == "it ended by itself"
        assert "task_status.started()" in problems["silent"][1]
        assert [(one["event"], one["channel"]) for one in logs] == [
            ("channel_restarts", "ends"), ("channel_not_started", "silent"),
        ]  # fmt: skip
        tasks.cancel_scope.cancel()


async def test_a_channel_that_reports_late_is_healthy_then() -> None:
    async with anyio.create_task_group() as tasks:
        channels, problems = await start(tasks, "late")
        assert list(problems) == ["late"]
        channels["late"].late.set()
        with anyio.fail_after(30):
            while problems:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def test_a_channel_that_fails_after_the_start_went_on_ends_nothing() -> None:
    async with anyio.create_task_group() as tasks:
        channels, problems = await start(tasks, "fails late")
        channels["fails late"].late.set()
        with anyio.fail_after(30):
            while "ValueError" not in problems["fails late"][1]:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
