"""Runs small pieces of asynchronous work that synchronous code asks for. Built before every part that uses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus


class Background:
    """Runs background work. `later` may be called from anywhere in the event loop; unless `run` is running, it does nothing."""

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None
        self._log = structlog.get_logger("background")

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Accept work until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None

    def later(self, work: Callable[[], Awaitable[object]]) -> None:
        """Run `work` soon. An exception that it raises is logged and affects nothing else."""
        # A task started in a group that was already cancelled would not be cancelled itself, and would spin forever.
        if self._tasks is not None and not self._tasks.cancel_scope.cancel_called:
            self._tasks.start_soon(self._run, work)

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - no caller waits that could handle the error, and it must not end the daemon
            self._log.error("later_raised", work=repr(work), exc_info=True)
