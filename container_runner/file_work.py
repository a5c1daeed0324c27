"""Runs blocking work on the session's files: on the event loop's thread or in a worker, once or until it succeeds.

It turns what this host cannot do now into typed errors, and logs each problem once. What the work does is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from container_runner.logs import Logger
from container_runner.shared.errors import ClaimLostError, InboundUnreadableError
from container_runner.stopping import Stopping
from schema.errors import ClawbusError, SchemaTooNewError
from schema.os_faults import typed_host_errors

_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_T = TypeVar("_T")


class GraceOverError(Exception):
    """The grace of a stop ended before the work could be done."""


async def run_here(work: Callable[[], _T]) -> _T:
    """Run file work on the event loop's own thread. Use it only while no turn runs: it blocks the loop.

    Switching to a worker thread and back costs half as much as a durable commit, and nothing else needs the loop then.
    """
    await checkpoint()  # let signals be handled even during a long backlog
    with typed_host_errors("the files cannot be used"):
        return work()


async def run_in_thread(work: Callable[..., _T], *arguments: object) -> _T:
    """Run file work in a worker thread, while a turn runs. Raise HostTroubleError when no thread can be started."""
    with typed_host_errors("the files cannot be used"):
        return await to_thread.run_sync(work, *arguments)


class FileWork:
    """Repeats and logs the file work of one runner.

    `repair` is called after each failure. It repairs what it can, and returns the names of what it repaired.
    """

    def __init__(self, stopping: Stopping, log: Logger, repair: Callable[[ClawbusError], list[str]]) -> None:
        self._stopping = stopping
        self._log = log
        self._repair = repair
        self._last_problem: str | None = None

    async def until_done(self, event: str, work: Callable[[], _T]) -> _T:
        """Repeat `work` with `run_here` until it succeeds. Log each new problem as `event`.

        After a stop request, repeat it only until the grace is over; then raise GraceOverError. Raise SchemaTooNewError and
        ClaimLostError at once.
        """
        for attempt in range(2**31):
            try:
                return await run_here(work)
            except (SchemaTooNewError, ClaimLostError):
                raise
            except ClawbusError as error:
                self.note_problem(event, error)
            if self._stopping.grace_is_over():
                break
            with anyio.move_on_after(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]):
                await self._stopping.wait_for_grace_end()
        raise GraceOverError(event)

    def note_problem(self, event: str, error: ClawbusError) -> None:
        """Log a problem once, and again when it changes, and repair what the agent did to the files.

        InboundUnreadableError (the host commits) is logged as debug only.
        """
        quiet = isinstance(error, InboundUnreadableError) or self._last_problem == error.code
        (self._log.debug if quiet else self._log.warning)(event, code=error.code, error=str(error))
        if isinstance(error, InboundUnreadableError):
            return
        self._last_problem = error.code
        if repaired := self._repair(error):
            self._log.warning("files_repaired", names=repaired)

    def note_success(self) -> None:
        """Log the next problem again, even if it is the same as the last one."""
        self._last_problem = None
