"""Handles locks that keep the host from writing its own inbound.db: who holds them, and how long they may last.

The container has the file through a read-only mount, which is enough for a read lock. The host can still read, so a
successful sweep proves nothing; only a committed write does. While writes fail, senders are refused with a retryable error.
After `limit_s` seconds the container is ended, unless another process provably holds the lock. The holder is looked up at the
first refusal and again for every report, so a report never names an outdated holder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import structlog

from daemon.core.clock import Clock
from daemon.core.events import FilesLocked, Subscriptions
from daemon.core.session_key import SessionKey
from daemon.engine.background import Background
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.troubles import WRITE
from daemon.runtimes.members import Members, lock_holders, name_of
from schema.errors import ClawbusError, FileBusyError, StorageError
from schema.frozen import frozen
from schema.os_faults import typed_host_errors

_PROBE_MS: Final = 1000
_LOOKUP_S: Final = 2.0


@frozen
class Holders:
    """The processes that hold a lock on a session's files. `own`: whether one belongs to its container; None: unknown."""

    processes: tuple[str, ...]
    own: bool | None

    @property
    def others(self) -> tuple[str, ...]:
        """The processes, when none of them is the container's."""
        return self.processes if self.own is False else ()

    @property
    def sentence(self) -> str:
        """Who holds the lock, for people."""
        if not self.processes:
            return "No process of this machine is seen to hold it now."
        whose = {True: ", of its container", False: ", not by its container", None: ""}[self.own]
        return f"It is held by process {', '.join(self.processes)}{whose}."


class HeldFiles:
    """Tracks locks on sessions' files. It subscribes to events about locks that block work on a session."""

    def __init__(
        self,
        sessions: Sessions,
        supervisor: Supervisor,
        schedule: Schedule,
        background: Background,
        clock: Clock,
        members: Members,
        *,
        limit_s: float,
    ) -> None:
        self._sessions = sessions
        self._supervisor = supervisor
        self._schedule = schedule
        self._background = background
        self._clock = clock
        self._members = members
        self._limit_s = limit_s
        self._troubles = sessions.troubles
        self._log = structlog.get_logger("held_files")

    def subscribe(self, events: Subscriptions) -> None:
        """Subscribe to events about locks that block work on a session."""
        events.subscribe(FilesLocked, self._locked)

    def _locked(self, event: FilesLocked) -> None:
        """Look up the holder of a lock that was just met."""
        session = self._sessions.known(SessionKey(event.agent, event.session))
        if session is None:
            return
        self._background.later(partial(self.check, session))
        if session.files.write_refused:
            self._write_refused(session, FileBusyError(event.error))

    def has_container(self, session: Session) -> bool:
        """Return whether a container of the session may be running."""
        return self._supervisor.slot(session.key) is not None

    def members_of(self, session: Session) -> Callable[[], frozenset[int] | None] | None:
        """Return a function that lists the processes of the session's running container; None when none runs."""
        container = self._container_of(session)
        return partial(self._members, container) if container is not None else None

    def _container_of(self, session: Session) -> str | None:
        slot = self._supervisor.slot(session.key)
        return slot.container_id if slot is not None and not slot.exited.is_set() else None

    async def check(self, session: Session) -> bool:
        """Look up who holds a lock on the session's files now, and name them in its troubles and in senders' errors.

        Return whether the lookup succeeded in time.
        """
        with anyio.move_on_after(_LOOKUP_S):  # a hung disk must not delay the report
            container = self._container_of(session)
            try:
                with typed_host_errors("who holds a file cannot be found out"):
                    found = await anyio.to_thread.run_sync(self._holders, session, container, abandon_on_cancel=True)
            except StorageError:
                return False
            session.held_by = found.others
            self._troubles.hold(session.key, found.sentence)
            return True
        return False

    async def check_all(self) -> None:
        """Check every session whose work is blocked by a lock."""
        async with anyio.create_task_group() as tasks:
            for key in self._troubles.locked_out():
                session = self._sessions.known(key)
                if session is not None:
                    tasks.start_soon(self.check, session)

    def _write_refused(self, session: Session, error: FileBusyError) -> None:
        """Let the sweep try again soon, even without a sender; end the container when the lock has lasted too long."""
        now, now_ms = self._clock.monotonic(), self._clock.now_ms()
        self._schedule.at(session.key, now_ms + _PROBE_MS)
        if session.unwritable_since is None:
            session.unwritable_since = now
            self._log.warning("session_unwritable", agent=session.key.agent, session=session.key.session,
                              error=str(error), limit_s=self._limit_s)  # fmt: skip
        self._note(session, error)
        seconds = now - session.unwritable_since
        container = self._container_of(session)
        if seconds >= self._limit_s and container is not None:
            session.unwritable_since = now  # start counting again, in case the container does not end
            self._background.later(partial(self._end, session, container, seconds, error))

    def unreadable(self, session: Session, seconds: float, error: ClawbusError) -> None:
        """End the container of a session whose reads have failed for `seconds`, unless others hold the lock."""
        container = self._container_of(session)
        if container is not None:
            self._background.later(partial(self._end, session, container, seconds, error))

    async def _end(self, session: Session, container: str, seconds: float, error: ClawbusError) -> None:
        log = self._log.bind(agent=session.key.agent, session=session.key.session, seconds=round(seconds))
        if not await self.check(session):
            return  # it is unknown who holds the lock, so end nothing; start counting again
        if session.held_by:
            log.warning("file_held_by_others", processes=session.held_by)
            return
        log.error("container_keeps_files", code=error.code, error=str(error))
        self._supervisor.begin_end(session.key, "unreadable", graceful=False)

    def _note(self, session: Session, error: ClawbusError) -> None:
        self._troubles.failed(session.key, WRITE, error, self._clock.now_ms())

    def _holders(self, session: Session, container: str | None) -> Holders:
        folder = session.files.folder
        pids = lock_holders(folder.inbound_db) | lock_holders(folder.outbound_db)
        members = self._members(container) if container is not None else frozenset[int]()
        names = tuple(name_of(pid) for pid in sorted(pids))
        return Holders(names, None if members is None else bool(pids & members))


def end_others(processes: tuple[str, ...]) -> str:
    """Return what to do about a lock that these processes hold."""
    return f"End process {', '.join(processes)}, or wait until it releases the lock. The container is not to blame."
