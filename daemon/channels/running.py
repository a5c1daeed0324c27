"""Keeps a channel running: begun again after a failure, named as degraded meanwhile, a disturbance to nobody else."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskStatus

from daemon.channels.protocol import Accept, Channel
from daemon.clock import Clock
from schema.errors import ClawbusError


class _Started(TaskStatus[None]):
    """Passes a channel's first `started` on, and takes every one as a sign of health."""

    def __init__(self, first: TaskStatus[None], healthy: Callable[[], None]) -> None:
        self._first = first
        self._healthy = healthy
        self.once = False

    def started(self, value: None = None) -> None:
        """See TaskStatus."""
        self._healthy()
        if not self.once:
            self.once = True
            self._first.started(value)


async def run_channel(
    name: str,
    channel: Channel,
    accept: Accept,
    problems: dict[str, tuple[int, str]],
    clock: Clock,
    *,
    retry_s: float = 1.0,
    retry_max_s: float = 60.0,
    task_status: TaskStatus[None],
) -> None:
    """Run a channel until cancelled. One that cannot start stops the daemon's start; one that fails later is begun
    again after a while, is named as degraded meanwhile, and disturbs nobody else."""
    log = structlog.get_logger("daemon").bind(channel=name)
    status = _Started(task_status, lambda: problems.pop(name, None) and None)
    wait_s = retry_s
    while True:
        begun = clock.monotonic()
        try:
            await channel.run(accept, task_status=status)
            why = "it ended by itself"
        except Exception as error:
            if not status.once:
                raise
            why = f"{type(error).__name__}: {error}"
            log.error("channel_failed", error=why, exc_info=not isinstance(error, ClawbusError))
        if clock.monotonic() - begun > retry_max_s:
            wait_s = retry_s
        problems[name] = (clock.now_ms(), why)
        log.warning("channel_restarts", reason=why, retry_s=wait_s)
        await anyio.sleep(wait_s)
        wait_s = min(wait_s * 2, retry_max_s)
