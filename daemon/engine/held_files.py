"""A lock that keeps the host from writing its own inbound.db: whose it is, and how long it may last.

The container has the file through a read-only mount, and a read lock needs no more. Every read of the host's passes it,
so a sweep that reads well proves nothing: only a write that is committed does. While none comes through, the senders are
refused with a retryable error; after `limit_s` the container is ended, unless the lock is provably somebody else's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio.to_thread
import structlog

from daemon.core.clock import Clock
from daemon.engine.sessions import Session
from daemon.engine.troubles import WRITE, Troubles
from daemon.runtimes.members import Members, lock_holders, name_of
from schema.errors import ClawbusError, FileBusyError

_PROBE_MS = 1000


class HeldFiles:
    """Built once; `refused` is called in the event loop by the session whose write was refused."""

    def __init__(
        self,
        clock: Clock,
        troubles: Troubles,
        *,
        limit_s: float,
        container_of: Callable[[Session], str | None],
        members: Members,
        end_container: Callable[[Session, str], None],
        wake_at: Callable[[Session, int], None],
        later: Callable[[Callable[[], Awaitable[object]]], None],
    ) -> None:
        self._clock = clock
        self._troubles = troubles
        self._limit_s = limit_s
        self._container_of = container_of
        self._members = members
        self._end_container = end_container
        self._wake_at = wake_at
        self._later = later
        self._log = structlog.get_logger("held_files")

    def refused(self, session: Session, error: FileBusyError) -> None:
        """Handle a write of inbound.db that met a lock: the sweep tries again soon, even without a sender."""
        now, now_ms = self._clock.monotonic(), self._clock.now_ms()
        self._wake_at(session, now_ms + _PROBE_MS)
        if session.unwritable_since is None:
            session.unwritable_since, session.held_by = now, ()
            self._log.warning("session_unwritable", agent=session.key.agent, session=session.key.session,
                              error=str(error), limit_s=self._limit_s)  # fmt: skip
        self._note(session, error)
        seconds = now - session.unwritable_since
        container = self._container_of(session)
        if seconds >= self._limit_s and container is not None:
            session.unwritable_since = now  # counted again, should this end not come
            self._later(partial(self._end, session, container, seconds, error))

    def unreadable(self, session: Session, seconds: float, error: ClawbusError) -> None:
        """No read of the session's files has succeeded for too long. End its container, unless others hold the lock."""
        container = self._container_of(session)
        if container is not None:
            self._later(partial(self._end, session, container, seconds, error))

    async def _end(self, session: Session, container: str, seconds: float, error: ClawbusError) -> None:
        log = self._log.bind(agent=session.key.agent, session=session.key.session, seconds=round(seconds))
        session.held_by = tuple(await anyio.to_thread.run_sync(self._others, session, container))
        if session.held_by:
            self._note(session, error)
            log.warning("file_held_by_others", processes=session.held_by)
            return
        log.error("container_keeps_files", code=error.code, error=str(error))
        self._end_container(session, "unreadable")

    def _note(self, session: Session, error: ClawbusError) -> None:
        hint = end_others(session.held_by) if session.held_by else None
        held = f" It is held by process {', '.join(session.held_by)}, not by its container." if session.held_by else ""
        self._troubles.failed(session.key, WRITE, FileBusyError(f"{error}{held}", hint=hint), self._clock.now_ms())

    def _others(self, session: Session, container: str) -> list[str]:
        """Return the processes that hold a lock on either file, when none of them is the container's."""
        folder = session.files.folder
        holders = lock_holders(folder.inbound_db) | lock_holders(folder.outbound_db)
        members = self._members(container)
        if members is None or holders & members:
            return []
        return [name_of(pid) for pid in sorted(holders)]


def end_others(processes: tuple[str, ...]) -> str:
    """Return what to do about a lock that these processes hold."""
    return f"End process {', '.join(processes)}, or wait until it releases the lock. The container is not to blame."
