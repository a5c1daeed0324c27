"""Keeps a channel running: restarts it after a failure, and names it as degraded until then. Others are not disturbed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import anyio
import structlog
from anyio.abc import TaskStatus

from daemon.channels.protocol import Accept, Channel
from daemon.core.clock import Clock
from schema.errors import ClawbusError

START_S: Final = 10.0  # so long does the daemon's start wait for its channels


class Running(Protocol):
    """`run_channel`, bound to one channel."""

    def __call__(self, *, task_status: ChannelStart) -> Awaitable[None]:
        """Run until cancelled."""
        ...


class ChannelStart(TaskStatus[None]):
    """Whether the daemon's start still waits for a channel. Takes every `started` as a sign of health."""

    def __init__(self, healthy: Callable[[], object] = lambda: None) -> None:
        self._healthy = healthy
        self._over = anyio.Event()

    @property
    def over(self) -> bool:
        """Whether the daemon's start has gone on. From then on nothing that the channel does may end the daemon."""
        return self._over.is_set()

    def started(self, value: None = None) -> None:
        """See TaskStatus."""
        self._healthy()
        self._over.set()

    def go_on(self) -> None:
        """Let the daemon's start go on without this channel."""
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
    """Run every channel until cancelled; started when each takes messages, has failed, or has used up `start_s` seconds.

    A channel that does not say that it takes messages is named as degraded: the others, and the operator's socket, must
    not wait for it.
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

    One that refuses to start stops the daemon's start; one that fails later, or ends, is begun again after a while,
    is named as degraded meanwhile, and disturbs nobody else.
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
