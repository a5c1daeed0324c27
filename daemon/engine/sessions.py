"""The sessions that have work, in memory: one object and one lock for each. Idle sessions are only rows in central.db."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import structlog

from daemon.core.clock import Clock
from daemon.core.errors import RegistryGoneError, UnknownSessionError
from daemon.core.events import FilesLocked
from daemon.core.message_fate import Fate
from daemon.core.schedule_limits import ScheduleLimits
from daemon.core.session_key import SessionKey
from daemon.engine.events import Events
from daemon.engine.session import OPERATION_S, Session
from daemon.engine.storage_watch import StorageWatch
from daemon.engine.troubles import Troubles
from daemon.store.incarnations import IncarnationRow
from daemon.store.rebuild import found_sessions, is_session, rebuild
from daemon.store.registry import Memory, Registry
from daemon.store.session_files import SessionFiles
from daemon.store.session_rows import SessionRow
from daemon.store.session_trash import finish_deletions
from schema.errors import ClawbusError, FileBusyError, ReadRaceError, StorageError
from schema.file_pool import FilePool
from schema.frozen import frozen
from schema.handles import once_more
from schema.ids import session_path
from schema.os_faults import in_own_folder, typed_host_errors
from schema.plain_file import ReadLimits

T = TypeVar("T")

_RACES: Final = 40
_RACE_S: Final = 0.05
_LOST_WITH_IT: Final = (
    "If central.db was lost, routes and people that were made by command went with it: `clawbus route list` and"
    " `clawbus user list` show what is left; a backup has the rest."
)
_KEPT: Final = 128  # file descriptors; well below the usual limit of 1,024 for a process


@frozen
class SessionSettings:
    """Settings for work on sessions' files.

    `owner` is the (uid, gid) of files that containers write, None for our own. `threads` is how many operations run at once.
    One operation may take `operation_s` seconds. `fate_of` returns an agent's retry rules, `schedule_limits_of` what it may schedule.
    """

    limits: ReadLimits
    owner: tuple[int, int] | None = None
    threads: int = 16
    operation_s: float = OPERATION_S
    fate_of: Callable[[str], Fate] = lambda _: Fate()
    schedule_limits_of: Callable[[str], ScheduleLimits] = lambda _: ScheduleLimits()


class Sessions:
    """Creates, finds and forgets Session objects. Iterating yields those with work.

    central.db's `active` flag is set before a session gets work, and cleared only after it has none.
    """

    def __init__(
        self,
        sessions_dir: Path,
        registry: Registry,
        clock: Clock,
        settings: SessionSettings,
        events: Events,
    ) -> None:
        self.fate_of = settings.fate_of
        self._schedule_limits_of = settings.schedule_limits_of
        self._events = events
        self._dir = self.folder = sessions_dir
        self._registry = registry
        self._clock = clock
        self._limits = settings.limits
        self._owner = settings.owner
        self._kept = FilePool(_KEPT)
        # Every Session object that is still referenced: a second object for the same files would have a second lock.
        self._known: WeakValueDictionary[SessionKey, Session] = WeakValueDictionary()
        self._table: dict[SessionKey, Session] = {}
        self._making: WeakValueDictionary[SessionKey, anyio.Lock] = WeakValueDictionary()
        self._unregistered: set[SessionKey] = set()  # their folder was created, but their row is not in central.db yet
        self._central = anyio.Lock()
        self.storage = StorageWatch(sessions_dir.parent, clock)
        self.troubles = Troubles()
        self._memory: Callable[[], Memory] | None = None
        self.registry_problem: tuple[int, str] | None = None  # (since epoch ms, why) while central.db cannot be rebuilt
        # The same (since epoch ms, why), while every operation on central.db fails.
        self.central_problem: tuple[int, str] | None = None
        self._log = structlog.get_logger("registry")
        self._limiter = anyio.CapacityLimiter(settings.threads)
        self.operation_s = settings.operation_s

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._table.values()))

    def __len__(self) -> int:
        return len(self._table)

    async def central(self, operation: Callable[[Registry], T]) -> T:
        """Run a registry operation in a thread, one at a time: otherwise they would wait in SQLite's sleep loop.

        If central.db is gone, rebuild it first. If that fails, raise the rebuild's error; the operation was not run.
        """
        async with self._central:
            try:
                with typed_host_errors("central.db"):
                    done = await self._ask(operation)
            except ClawbusError as error:
                if isinstance(error, StorageError) and self.storage.failed(error):
                    raise  # the disk is at fault, not the file
                since = self.central_problem[0] if self.central_problem is not None else self._clock.now_ms()
                self.central_problem = since, f"{error.code}: {error}"
                raise
            self.central_problem = None
            if self.registry_problem is not None:
                # The same file is back: the data folder was moved away and returned.
                self.registry_problem = None
                self._log.info("registry_returned")
            return done

    async def _ask(self, operation: Callable[[Registry], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(once_more, partial(operation, self._registry))
        except RegistryGoneError as error:
            await self._rebuild(error)
            return await anyio.to_thread.run_sync(partial(operation, self._registry))

    def remember_with(self, live: Callable[[], tuple[IncarnationRow, ...]], install_id: str) -> None:
        """Set what a registry that vanishes is rebuilt from, besides the folders and this object: the live incarnations."""

        def memory() -> Memory:
            held = {key: one.quarantined for key, one in self._known.items() if one.quarantined is not None}
            return Memory(install_id, frozenset(self._table), held, live())

        self._memory = memory

    async def finish_deletions(self) -> list[SessionKey]:
        """Finish the deletions that an earlier daemon began, before anything searches for sessions."""
        now = self._clock.now_ms()
        return await self.central(lambda registry: finish_deletions(registry, self._dir, now))

    async def find_lost(self) -> int:
        """Record the sessions that have a folder but no row in central.db, as having work. Return how many there were."""
        now = self._clock.now_ms()
        # Read the folders without holding the registry: with many of them, everybody else would have to wait.
        try:
            with typed_host_errors("the session folders cannot be listed"):
                keys = await anyio.to_thread.run_sync(lambda: list(found_sessions(self._dir)))
        except StorageError as error:
            self.storage.failed(error)
            raise
        # A session may have been deleted since the listing.
        found = await self.central(lambda registry: registry.add_sessions(keys, now, self._is_made))
        if found and len(found) == len(keys):
            cause = "central.db knew none of the sessions"
            self._log.warning("registry_rebuilt", sessions=len(found), cause=cause, hint=_LOST_WITH_IT)
        elif found:
            self._log.warning("registry_rebuilt", sessions=len(found), cause="folders without a row")
        return len(found)

    async def _rebuild(self, error: RegistryGoneError) -> None:
        now = self._clock.now_ms()
        if self.registry_problem is None:
            self._log.error("registry_gone", error=str(error), hint=error.hint)
            self.registry_problem = now, str(error)
        if self._memory is None:
            raise error
        memory = self._memory()
        try:
            count = await anyio.to_thread.run_sync(rebuild, self._registry, self._dir, memory, now)
        except StorageError as why:
            self.registry_problem = self.registry_problem[0], f"{error} It cannot be rebuilt: {why}"
            raise
        self.registry_problem = None
        cause = "central.db was gone"
        self._log.warning("registry_rebuilt", sessions=count, live=len(memory.live), cause=cause, hint=_LOST_WITH_IT)

    async def get(self, key: SessionKey) -> Session:
        """Return an existing session; raise UnknownSessionError."""
        session = self._known.get(key)
        if session is not None:
            self._table[key] = session
            return session
        row = await self.central(lambda registry: registry.session(key))
        if row is None and await anyio.to_thread.run_sync(self._is_made, key):
            # A crash can leave a folder without a registry row. Register it when a caller names it.
            now = self._clock.now_ms()
            await self.central(lambda registry: registry.add_sessions([key], now))
            row = await self.central(lambda registry: registry.session(key))
        if row is None:
            raise UnknownSessionError(f"there is no session {key}.")
        return self.adopt(row)

    def _is_made(self, key: SessionKey) -> bool:
        """Return whether the session's folder is complete. Without a finished inbound.db it is empty; `create` completes it."""
        with in_own_folder(f"the folder of {key} cannot be looked at"):
            return is_session(self.files_of(key).folder)

    async def look_up(self, key: SessionKey) -> Session | None:
        """Return a session without marking it active (for maintenance), or None if it does not exist."""
        session = self._known.get(key)
        if session is not None:
            return session
        row = await self.central(lambda registry: registry.session(key))
        return self._object(row) if row is not None else None

    def adopt(self, row: SessionRow) -> Session:
        """Return the session object for a registry row that is marked active."""
        session = self._object(row)
        self._table[row.key] = session
        return session

    def _object(self, row: SessionRow) -> Session:
        session = self._known.get(row.key)
        if session is None:
            session = Session(
                row.key, self.files_of(row.key), self._limiter, self.operation_s, self.storage.failed, self._refused,
                self.fate_of, self._schedule_limits_of,
            )  # fmt: skip
            session.quarantined = row.quarantine_reason
            session.active = row.active
            session.moved(self._clock.now_ms())
            self._known[row.key] = session
        return session

    def _refused(self, session: Session, error: FileBusyError) -> None:
        key = session.key
        self._events.publish(FilesLocked(self._clock.now_ms(), key.agent, key.session, str(error)))

    def known(self, key: SessionKey) -> Session | None:
        """Return the session's object if one is still referenced, without reading a file."""
        return self._known.get(key)

    def files_of(self, key: SessionKey) -> SessionFiles:
        """Return the files of a session by name. The key's creator must have checked the name."""
        return SessionFiles(session_path(self._dir, key.agent, key.session), self._limits, self._owner, self._kept)

    async def create(self, key: SessionKey) -> Session:
        """Return the session, creating it if needed: first the folder, then the row, so that a registered one is complete.

        A crash or a full disk between the two leaves a folder that the next attempt completes.
        """
        try:
            return await self.get(key)
        except UnknownSessionError:
            pass
        async with self._making.setdefault(key, anyio.Lock()):
            made = self._known.get(key)  # by another task, while this one waited
            if made is not None:
                self._table[key] = made
                return made
            try:
                with typed_host_errors(f"the files of {key}"):
                    await anyio.to_thread.run_sync(once_more, self.files_of(key).create, limiter=self._limiter)
            except StorageError as error:
                self.storage.failed(error)
                raise
            now = self._clock.now_ms()
            # The folder exists from here on. If registering it fails (a lock, a full disk, a client that disconnects), the
            # sweep registers it later.
            self._unregistered.add(key)
            row = await self.central(lambda registry: _activated(registry, key, now))
            self._unregistered.discard(key)
            if row is None:
                raise UnknownSessionError(f"there is no session {key}.")
            return self.adopt(row)

    async def register_made(self) -> None:
        """Register the sessions whose folders were created but whose rows could not be written at the time."""
        keys = tuple(self._unregistered)
        if not keys:
            return
        now = self._clock.now_ms()
        fresh = await self.central(lambda registry: registry.add_sessions(keys, now, self._is_made))
        self._unregistered.difference_update(keys)
        for key in fresh:
            await self.get(key)  # loads it as having work; the next sweep finds out whether it has
        if fresh:
            self._log.info("sessions_registered_late", sessions=len(fresh))

    async def activate(self, session: Session) -> None:
        """Record that the session has work, before the work is written. Call with the session's lock held."""
        if session.deleted:
            raise UnknownSessionError(f"session {session.key} was deleted.")
        # The caller may have got this object before it was retired, and then waited for the lock.
        self._table[session.key] = session
        if not session.active:
            now = self._clock.now_ms()
            await self.central(lambda registry: registry.activate(session.key, now))
            session.active = True

    async def change(self, session: Session, work: Callable[[int], T]) -> T:
        """Write work into the session's files, after recording the session as active. Retry while a container commits.

        `work` receives the time in epoch milliseconds. Raise its errors; ReadRaceError only after two seconds of retries.
        """
        for _ in range(_RACES):
            try:
                return await self._change(session, work)
            except ReadRaceError:
                await anyio.sleep(_RACE_S)
        return await self._change(session, work)

    async def _change(self, session: Session, work: Callable[[int], T]) -> T:
        async with session.lock:
            # Activate before the work is written: after a crash in between, the session is swept for nothing, not forgotten.
            await self.activate(session)
            return await session.call_locked(partial(work, self._clock.now_ms()))

    def forget(self, session: Session) -> None:
        """Forget a deleted session. Call with its lock held. Old references are refused; its name creates a new session."""
        session.deleted, session.quarantined = True, session.quarantined or "It was deleted."
        self._table.pop(session.key, None)
        self._known.pop(session.key, None)
        self.troubles.forget(session.key)

    async def retire(
        self, session: Session, next_due_at: int | None, dead_letters: int | None = None, schedules: int | None = None
    ) -> None:
        """Record that the session has no work (until `next_due_at`) and drop it from memory. Call with its lock held."""
        await self.central(lambda registry: registry.deactivate(session.key, next_due_at, dead_letters, schedules))
        session.active = False
        session.files.evict()
        self._table.pop(session.key, None)


def _activated(registry: Registry, key: SessionKey, now: int) -> SessionRow | None:
    registry.activate(key, now)
    return registry.session(key)
