"""Keeps channels running: restarts a channel after a failure and reports it as degraded until then. Others are unaffected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import anyio
import structlog
from anyio.abc import TaskStatus

from daemon.channels.protocol import Accept, Channel
from daemon.core.clock import Clock
from schema.errors import ClawbusError

START_S: Final = 10.0  # seconds that the daemon's start waits for its channels


class Running(Protocol):
    """`run_channel`, bound to one channel."""

    def __call__(self, *, task_status: ChannelStart) -> Awaitable[None]:
        """Run until cancelled."""
        ...


class ChannelStart(TaskStatus[None]):
    """Tracks whether the daemon's start still waits for a channel. Every call of `started` marks the channel as healthy."""

    def __init__(self, healthy: Callable[[], object] = lambda: None) -> None:
        self._healthy = healthy
        self._over = anyio.Event()

    @property
    def over(self) -> bool:
        """Whether the daemon's start has continued. From then on no failure of the channel may end the daemon."""
        return self._over.is_set()

    def started(self, value: None = None) -> None:
        """See TaskStatus."""
        self._healthy()
        self._over.set()

    def go_on(self) -> None:
        """Let the daemon's start continue without this channel."""
        self._over.set()

    async def wait(self) -> None:
        """Wait until it is over."""
        await self._over.wait()


async def run_channels(
    running: Mapping[str, Running],
    problems: dict[str, tuple[int, str]],
    clock: Clock,
    *,
    start_s: float = START_S,
    task_status: TaskStatus[None],
) -> None:
    """Run every channel until cancelled. Report as started when each is ready or has failed, at most after `start_s` seconds.

    A channel that has not reported that it is ready counts as degraded: the others, and the control socket, must not wait for
    it.
    """
    starts = {name: ChannelStart(lambda name=name: problems.pop(name, None)) for name in running}
    async with anyio.create_task_group() as tasks:
        for name, run in running.items():
            tasks.start_soon(_run, run, starts[name], name=f"channel {name}")
        with anyio.move_on_after(start_s):
            for start in starts.values():
                await start.wait()
        for name, start in starts.items():
            if not start.over:
                start.go_on()
                why = f"it has not reported within {start_s:g} s that it takes messages (task_status.started())"
                problems[name] = (clock.now_ms(), why)
                structlog.get_logger("daemon").error("channel_not_started", channel=name, error=why)
        task_status.started()


async def _run(run: Running, start: ChannelStart) -> None:
    await run(task_status=start)


async def run_channel(
    name: str,
    channel: Channel,
    accept: Accept,
    problems: dict[str, tuple[int, str]],
    clock: Clock,
    *,
    retry_s: float = 1.0,
    retry_max_s: float = 60.0,
    task_status: ChannelStart,
) -> None:
    """Run a channel until cancelled.

    A channel that fails to start makes the daemon's start fail. One that fails or ends later is restarted after a delay and
    counts as degraded until then; the other channels are unaffected.
    """
    log = structlog.get_logger("daemon").bind(channel=name)
    wait_s = retry_s
    while True:
        begun = clock.monotonic()
        try:
            await channel.run(accept, task_status=task_status)
            why = "it ended by itself"
        except Exception as error:
            if not task_status.over:
                raise
            why = f"{type(error).__name__}: {error}"
            log.error("channel_failed", error=why, exc_info=not isinstance(error, ClawbusError))
        if clock.monotonic() - begun > retry_max_s:
            wait_s = retry_s
        problems[name] = (clock.now_ms(), why)
        task_status.go_on()
        log.warning("channel_restarts", reason=why, retry_s=wait_s)
        await anyio.sleep(wait_s)
        wait_s = min(wait_s * 2, retry_max_s)
