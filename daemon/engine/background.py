"""Runs small pieces of asynchronous work that synchronous code asks for. Built before every part that uses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus


class Background:
    """`later` may be called from anywhere in the event loop; before `run` and after its end it does nothing."""

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
        """Run `work` soon. What it raises is logged and ends nothing else."""
        # In a group whose cancellation has been delivered a new task would never learn of it: it would spin until the end.
        if self._tasks is not None and not self._tasks.cancel_scope.cancel_called:
            self._tasks.start_soon(self._run, work)

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - nobody waits for it who could handle it, and the daemon must not end by it
            self._log.error("later_raised", work=repr(work), exc_info=True)
