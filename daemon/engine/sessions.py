"""The sessions that have work, in memory: one object and one lock each. Idle sessions are rows in central.db only.

Everything that opens a session's files goes through `Session.call`, which serialises it: closing one descriptor of a
file drops this process's SQLite locks on it, so two threads must never have the same outbound.db open.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import structlog

from daemon.core.clock import Clock
from daemon.core.errors import RegistryGoneError, UnknownSessionError
from daemon.core.events import FilesLocked
from daemon.core.message_fate import Fate
from daemon.core.poll_budget import PollBudget
from daemon.engine.events import Events
from daemon.engine.storage_watch import StorageWatch
from daemon.engine.troubles import Troubles
from daemon.store.kept_files import KeptFiles
from daemon.store.out_folder import OutUse
from daemon.store.rebuild import found_sessions, is_session, remake
from daemon.store.registry import IncarnationRow, Memory, Registry, SessionKey, SessionRow
from daemon.store.session_files import SessionFiles
from daemon.store.session_trash import finish_deletions
from schema.connect import ReadLimits
from schema.errors import ClawbusError, FileBusyError, ReadDeadlineError, ReadRaceError, StorageError
from schema.handles import once_more
from schema.ids import session_path
from schema.os_faults import in_own_folder, typed_host_errors
from schema.rows import ToolInFlight

T = TypeVar("T")

_RACES: Final = 40
_RACE_S: Final = 0.05
_KEPT: Final = 128  # descriptors; well below the 1,024 that a process has unless it is given more
OPERATION_S: Final = 24.0  # two busy time-outs, a read's deadline, and a slow disk


class _Job(Generic[T]):
    """An operation on its way to a thread: either it runs and then says so, or it is withdrawn and never runs."""

    def __init__(self, operation: Callable[[], T], came_back: Callable[[], None]) -> None:
        self._operation = operation
        self._came_back = came_back
        self._gate = threading.Lock()
        self._decided = False

    def run(self) -> T:
        if not self._decide():
            raise RuntimeError("withdrawn")  # nobody waits for this
        try:
            return self._operation()
        finally:
            self._came_back()

    def withdraw(self) -> None:
        if self._decide():
            self._came_back()

    def _decide(self) -> bool:
        """Return True for the first caller."""
        with self._gate:
            first, self._decided = not self._decided, True
            return first


class Session:
    """One active session. `operation_s` is the seconds that one operation may take.

    `last_activity` (epoch ms) is when a message was last accepted, claimed, answered or settled; `moved_at` the same
    without acceptances, which are no work of the container's.
    """

    def __init__(
        self,
        key: SessionKey,
        files: SessionFiles,
        limiter: anyio.CapacityLimiter,
        operation_s: float = OPERATION_S,
        on_storage_error: Callable[[StorageError], object] = lambda _: None,
        on_refused: Callable[[Session, FileBusyError], None] = lambda _, __: None,
        fate_of: Callable[[str], Fate] = lambda _: Fate(),
    ) -> None:
        self._on_storage_error = on_storage_error
        self._on_refused = on_refused
        self._fate_of = fate_of
        self.key = key
        self.files = files
        self.lock = anyio.Lock()
        self.quarantined: str | None = None
        self.active = False
        self.last_activity = 0
        self.moved_at = 0
        self.held_at = 0  # epoch ms: when the sweep last saw messages that wait for an earlier one's next try
        self.tool: ToolInFlight | None = None  # the container's declared tool as the host last saw it
        self.sending: dict[str, frozenset[str]] = {}  # destination -> ids under way
        self.unconfirmed: set[str] = set()  # ids whose intent was committed with an error: nothing of them was sent
        self.behind: set[str] = set()  # destinations with rows that wait for a send under way
        self.strikes: dict[str, int] = {}  # which look -> how often in a row it took too long
        self.unreadable_since: float | None = None  # monotonic: since when no look has come through
        self.unwritable_since: float | None = None  # monotonic: since when no write of inbound.db has come through
        self.use: OutUse | None = None  # what the last sweep counted in its out/
        self.deleted = False
        self.budget = PollBudget()
        self.cpu_s = 0.0  # processor time of all operations on its files
        self.charged_s = 0.0  # of these, what the budget has been asked for
        self.throttled = False
        self.held_by: tuple[str, ...] = ()  # processes outside of its container that hold a lock on inbound.db
        self._limiter = limiter
        self._unbounded = anyio.CapacityLimiter(math.inf)  # the bound is `limiter`, whose wait does not count as work
        self.operation_s = operation_s
        self._in_thread = False

    def moved(self, now_ms: int) -> None:
        """Its container claimed, answered or settled something."""
        self.last_activity = self.moved_at = now_ms

    def shows_tool(self, tool: ToolInFlight | None, now_ms: int) -> None:
        """Its container declares this tool; another one than before is progress."""
        if tool is not None and tool != self.tool:
            self.moved_at = now_ms
        self.tool = tool

    @property
    def fate(self) -> Fate:
        """Its agent's rules for what is tried again, as they are configured now."""
        return self._fate_of(self.key.agent)

    async def call(self, operation: Callable[[], T]) -> T:
        """Run a synchronous operation on the session's files in a thread, alone. Not re-entrant."""
        async with self.lock:
            return await self.call_locked(operation)

    async def call_locked(self, operation: Callable[[], T]) -> T:
        """Run an operation for a caller that holds `lock`.

        An operation that does not come back in time, or whose caller is cancelled, is left behind: a container can make
        an open hang for ever (a fifo put in a file's place between our check and SQLite's open). Until its thread is
        back, every call raises ReadDeadlineError: the lock alone no longer keeps a second thread from the same files.
        """
        if self.deleted:
            raise UnknownSessionError(f"session {self.key} was deleted.")
        if self._in_thread:
            raise ReadDeadlineError(f"an earlier operation on the files of {self.key} has not come back.")
        job = _Job(partial(self._watched, operation), self._came_back)
        self._in_thread = True
        try:
            # Only the operation's own time counts: to wait for a thread is no fault of this session's.
            me = object()
            try:
                self._limiter.acquire_on_behalf_of_nowait(me)  # without a turn of the loop, when there is room
            except anyio.WouldBlock:
                await self._limiter.acquire_on_behalf_of(me)
            try:
                with anyio.fail_after(self.operation_s):
                    with typed_host_errors(f"the files of {self.key}"):  # no thread may be left
                        done = await anyio.to_thread.run_sync(job.run, limiter=self._unbounded, abandon_on_cancel=True)
                if not self.files.write_refused:
                    self.unwritable_since = None
                return done
            finally:
                self._limiter.release_on_behalf_of(me)
        except FileBusyError as error:
            self._on_refused(self, error)
            raise
        except TimeoutError as error:
            job.withdraw()
            raise ReadDeadlineError(
                f"an operation on the files of {self.key} has not come back within {self.operation_s:g} s."
            ) from error
        except BaseException:
            job.withdraw()
            raise

    def _watched(self, operation: Callable[[], T]) -> T:
        began = time.thread_time()
        try:
            with typed_host_errors(f"the files of {self.key}"):
                return once_more(operation)
        except StorageError as error:
            self._on_storage_error(error)
            raise
        finally:
            self.cpu_s += time.thread_time() - began

    def _came_back(self) -> None:
        self._in_thread = False


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How sessions' files are worked on.

    `owner` is the (uid, gid) of what containers write, None for our own; `threads` work at once; an operation may take
    `operation_s` seconds; `fate_of` gives an agent's rules for what is tried again.
    """

    limits: ReadLimits
    owner: tuple[int, int] | None = None
    threads: int = 16
    operation_s: float = OPERATION_S
    fate_of: Callable[[str], Fate] = lambda _: Fate()


class Sessions:
    """Makes, finds and forgets Session objects; iterating gives those with work, and keeps central.db's `active` flag ahead of the truth."""

    def __init__(
        self,
        sessions_dir: Path,
        registry: Registry,
        clock: Clock,
        settings: SessionSettings,
        events: Events,
    ) -> None:
        self.fate_of = settings.fate_of
        self._events = events
        self._dir = self.folder = sessions_dir
        self._registry = registry
        self._clock = clock
        self._limits = settings.limits
        self._owner = settings.owner
        self._kept = KeptFiles(_KEPT)
        # Every Session object that anybody still holds: a second one for the same files would bring a second lock.
        self._known: WeakValueDictionary[SessionKey, Session] = WeakValueDictionary()
        self._table: dict[SessionKey, Session] = {}
        self._making: WeakValueDictionary[SessionKey, anyio.Lock] = WeakValueDictionary()
        self._unregistered: set[SessionKey] = set()  # made, and not in central.db yet
        self._central = anyio.Lock()
        self.storage = StorageWatch(sessions_dir.parent, clock)
        self.troubles = Troubles()
        self._memory: Callable[[], Memory] | None = None
        self.registry_problem: tuple[int, str] | None = None  # (since epoch ms, why), while central.db cannot be remade
        self.central_problem: tuple[int, str] | None = None  # the same, while no operation on it succeeds
        self._log = structlog.get_logger("registry")
        self._limiter = anyio.CapacityLimiter(settings.threads)
        self.operation_s = settings.operation_s

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._table.values()))

    def __len__(self) -> int:
        return len(self._table)

    async def central(self, operation: Callable[[Registry], T]) -> T:
        """Run a registry operation in a thread, one at a time: SQLite would make them wait by sleeping.

        A registry that is gone is remade first; while that cannot be done, its error is raised and nothing has happened.
        """
        async with self._central:
            try:
                with typed_host_errors("central.db"):
                    done = await self._ask(operation)
            except ClawbusError as error:
                if isinstance(error, StorageError) and self.storage.failed(error):
                    raise  # the disk's trouble, not the file's
                since = self.central_problem[0] if self.central_problem is not None else self._clock.now_ms()
                self.central_problem = since, f"{error.code}: {error}"
                raise
            self.central_problem = None
            return done

    async def _ask(self, operation: Callable[[Registry], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(once_more, partial(operation, self._registry))
        except RegistryGoneError as error:
            await self._remake(error)
            return await anyio.to_thread.run_sync(partial(operation, self._registry))

    def remember_with(self, live: Callable[[], tuple[IncarnationRow, ...]], install_id: str) -> None:
        """From where a registry that vanishes is remade: the folders, these incarnations, and what is known here."""

        def memory() -> Memory:
            held = {key: one.quarantined for key, one in self._known.items() if one.quarantined is not None}
            return Memory(install_id, frozenset(self._table), held, live())

        self._memory = memory

    async def finish_deletions(self) -> list[SessionKey]:
        """Finish the deletions that an earlier daemon began, before anything searches for sessions."""
        now = self._clock.now_ms()
        return await self.central(lambda registry: finish_deletions(registry, self._dir, now))

    async def find_lost(self) -> int:
        """Record the sessions that have a folder and no row in central.db: how many. They count as having work."""
        now = self._clock.now_ms()
        # The folders are read outside the registry's turn: with many of them, everybody else would wait for it.
        try:
            keys = await anyio.to_thread.run_sync(lambda: list(found_sessions(self._dir)))
        except StorageError as error:
            self.storage.failed(error)
            raise
        found = await self.central(lambda registry: registry.add_sessions(keys, now))
        if found:
            self._log.warning("registry_rebuilt", sessions=len(found), cause="folders without a row")
        return len(found)

    async def _remake(self, error: RegistryGoneError) -> None:
        now = self._clock.now_ms()
        if self.registry_problem is None:
            self._log.error("registry_gone", error=str(error), hint=error.hint)
            self.registry_problem = now, str(error)
        if self._memory is None:
            raise error
        memory = self._memory()
        try:
            count = await anyio.to_thread.run_sync(remake, self._registry, self._dir, memory, now)
        except StorageError as why:
            self.registry_problem = self.registry_problem[0], f"{error} It cannot be remade: {why}"
            raise
        self.registry_problem = None
        self._log.warning("registry_rebuilt", sessions=count, live=len(memory.live), cause="central.db was gone")

    async def get(self, key: SessionKey) -> Session:
        """Return an existing session; raise UnknownSessionError."""
        session = self._known.get(key)
        if session is not None:
            self._table[key] = session
            return session
        row = await self.central(lambda registry: registry.session(key))
        if row is None and await anyio.to_thread.run_sync(self._is_made, key):
            # A folder that the registry does not know, as a crash leaves one: whoever names it takes it in.
            now = self._clock.now_ms()
            await self.central(lambda registry: registry.add_sessions([key], now))
            row = await self.central(lambda registry: registry.session(key))
        if row is None:
            raise UnknownSessionError(f"there is no session {key}.")
        return self.adopt(row)

    def _is_made(self, key: SessionKey) -> bool:
        """Whether the folder is a session's: one without a finished inbound.db holds nothing, and is completed by `create`."""
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
        """Return the session object for a row of the registry, marked active."""
        session = self._object(row)
        self._table[row.key] = session
        return session

    def _object(self, row: SessionRow) -> Session:
        session = self._known.get(row.key)
        if session is None:
            session = Session(
                row.key, self.files_of(row.key), self._limiter, self.operation_s, self.storage.failed, self._refused,
                self.fate_of,
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
        """Return the session's object if anything holds one, without reading a file."""
        return self._known.get(key)

    def files_of(self, key: SessionKey) -> SessionFiles:
        """Return the files of a session by name. Whoever made the key has checked the name."""
        return SessionFiles(session_path(self._dir, key.agent, key.session), self._limits, self._owner, self._kept)

    async def create(self, key: SessionKey) -> Session:
        """Return the session, creating it if needed: the folder first, then the registry, so that a known one is whole.

        A crash or a full disk between the two leaves a folder that the next attempt completes.
        """
        try:
            return await self.get(key)
        except UnknownSessionError:
            pass
        async with self._making.setdefault(key, anyio.Lock()):
            try:
                return await self.get(key)
            except UnknownSessionError:
                pass
            try:
                with typed_host_errors(f"the files of {key}"):
                    await anyio.to_thread.run_sync(self.files_of(key).create, limiter=self._limiter)
            except StorageError as error:
                self.storage.failed(error)
                raise
            now = self._clock.now_ms()
            # From here on there is a folder. Whatever keeps it out of the registry (a lock, a full disk, a client that
            # leaves), the sweep registers it later.
            self._unregistered.add(key)
            await self.central(lambda registry: registry.activate(key, now))
            self._unregistered.discard(key)
            return await self.get(key)

    async def register_made(self) -> None:
        """Register the sessions whose folders were made and whose rows could not be written then."""
        keys = tuple(self._unregistered)
        if not keys:
            return
        now = self._clock.now_ms()
        fresh = await self.central(lambda registry: registry.add_sessions(keys, now))
        self._unregistered.difference_update(keys)
        for key in fresh:
            await self.get(key)  # as one with work: the next sweep sees that there is none
        if fresh:
            self._log.info("sessions_registered_late", sessions=len(fresh))

    async def activate(self, session: Session) -> None:
        """Record that the session has work, before the work is written. Call with the session's lock held."""
        if session.deleted:
            raise UnknownSessionError(f"session {session.key} was deleted.")
        # Whoever waited for the lock may have got the object before it was retired.
        self._table[session.key] = session
        if not session.active:
            now = self._clock.now_ms()
            await self.central(lambda registry: registry.activate(session.key, now))
            session.active = True

    async def change(self, session: Session, work: Callable[[int], T]) -> T:
        """Write work into the session's files, recorded as active first; past the moments in which a container commits.

        `work` gets the time in epoch milliseconds. Raises what it raises; ReadRaceError only after two seconds of it.
        """
        for _ in range(_RACES):
            try:
                return await self._change(session, work)
            except ReadRaceError:
                await anyio.sleep(_RACE_S)
        return await self._change(session, work)

    async def _change(self, session: Session, work: Callable[[int], T]) -> T:
        async with session.lock:
            # Before the work is written, as everywhere: a crash in between errs on the side of looking.
            await self.activate(session)
            return await session.call_locked(partial(work, self._clock.now_ms()))

    def forget(self, session: Session) -> None:
        """Forget a deleted session, with its lock held: old references are refused, and its name makes a new one."""
        session.deleted, session.quarantined = True, session.quarantined or "It was deleted."
        self._table.pop(session.key, None)
        self._known.pop(session.key, None)
        self.troubles.forget(session.key)

    async def retire(self, session: Session, next_due_at: int | None, dead_letters: int | None = None) -> None:
        """Record that the session has nothing to do (before `next_due_at`) and forget it. Call with its lock held."""
        await self.central(lambda registry: registry.deactivate(session.key, next_due_at, dead_letters))
        session.active = False
        session.files.let_go()
        self._table.pop(session.key, None)
