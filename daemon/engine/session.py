"""One active session in memory: its lock, what the daemon knows of it, and the one way to work on its files.

Everything that opens a session's files goes through `Session.call`, which serialises it. Closing one descriptor of a file
drops all of this process's SQLite locks on it, so two threads must never have the same outbound.db open.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar

import anyio
import anyio.to_thread

from daemon.core.errors import UnknownSessionError
from daemon.core.message_fate import Fate
from daemon.core.poll_budget import PollBudget
from daemon.core.schedule_limits import ScheduleLimits
from daemon.core.session_key import SessionKey
from daemon.store.folder_use import FolderUse
from daemon.store.session_files import SessionFiles
from schema.errors import FileBusyError, ReadDeadlineError, StorageError
from schema.handles import once_more
from schema.os_faults import typed_host_errors
from schema.rows import ToolInFlight

T = TypeVar("T")

OPERATION_S: Final = 24.0  # enough for two busy timeouts, one read deadline and a slow disk


class _Job(Generic[T]):
    """An operation handed to a thread. It either runs or is withdrawn and never runs. `came_back` is called after either."""

    def __init__(self, operation: Callable[[], T], came_back: Callable[[], None]) -> None:
        self._operation = operation
        self._came_back = came_back
        self._gate = threading.Lock()
        self._decided = False

    def run(self) -> T:
        if not self._decide():
            raise RuntimeError("withdrawn")  # the caller has left, so this is not seen
        try:
            return self._operation()
        finally:
            self._came_back()

    def withdraw(self) -> None:
        if self._decide():
            self._came_back()

    def _decide(self) -> bool:
        """Return True only to whichever of `run` and `withdraw` calls first."""
        with self._gate:
            first, self._decided = not self._decided, True
            return first


class Session:
    """One active session. `operation_s` is how many seconds one operation may take.

    `last_activity` (epoch milliseconds) is when a message was last accepted, claimed, answered or settled. `moved_at` is the
    same without acceptances, because the container does not do those.
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
        limits_of: Callable[[str], ScheduleLimits] = lambda _: ScheduleLimits(),
    ) -> None:
        self._on_storage_error = on_storage_error
        self._on_refused = on_refused
        self._fate_of = fate_of
        self._limits_of = limits_of
        self.key = key
        self.files = files
        self.lock = anyio.Lock()
        self.quarantined: str | None = None
        self.active = False
        self.last_activity = 0
        self.moved_at = 0
        self.held_at = 0  # epoch ms: when the sweep last saw messages wait behind one whose next try is not yet due
        self.tool: ToolInFlight | None = None  # the tool that the container last declared to be running
        self.sending: dict[str, frozenset[str]] = {}  # destination -> ids of the answers that are being sent
        self.unconfirmed: set[str] = (
            set()
        )  # answers not sent, as the commit of their intent failed (but may be on disk)
        self.behind: set[str] = set()  # destinations with more answers, which wait for the send under way
        self.consecutive_timeouts: dict[str, int] = {}  # kind of read -> how many times in a row it passed its deadline
        self.unreadable_since: float | None = None  # monotonic: since when every read has failed
        self.unwritable_since: float | None = None  # monotonic: since when every write to inbound.db has failed
        self.use: FolderUse | None = None  # how much its out/ folder held at the last sweep
        self.home_use: FolderUse | None = None  # the same for home/
        # (channel, place) pairs that its container still lists as destinations and may no longer write to
        self.lost_places = frozenset[tuple[str, str]]()
        self.deleted = False
        self.budget = PollBudget()
        self.cpu_s = 0.0  # CPU time of the operations that read its container's file because the container asked for it
        self.charged_s = 0.0  # the part of `cpu_s` that was charged to the budget
        self.throttled = False
        self.held_by: tuple[str, ...] = ()  # processes outside its container that hold a lock on inbound.db
        self._limiter = limiter
        # `limiter` bounds the threads: it is acquired first, so that waiting for it does not count toward `operation_s`.
        self._unbounded = anyio.CapacityLimiter(math.inf)
        self.operation_s = operation_s
        self._in_thread = False

    def moved(self, now_ms: int) -> None:
        """Record that the container claimed, answered or settled something."""
        self.last_activity = self.moved_at = now_ms

    def shows_tool(self, tool: ToolInFlight | None, now_ms: int) -> None:
        """Record the tool that the container declares to be running. A change of tool counts as progress."""
        if tool is not None and tool != self.tool:
            self.moved_at = now_ms
        self.tool = tool

    @property
    def fate(self) -> Fate:
        """The agent's current retry rules."""
        return self._fate_of(self.key.agent)

    @property
    def schedule_limits(self) -> ScheduleLimits:
        """The agent's current limits for schedules that it makes itself."""
        return self._limits_of(self.key.agent)

    async def call(self, operation: Callable[[], T]) -> T:
        """Run a synchronous operation on the session's files in a thread, holding `lock`. Not re-entrant.

        Raise UnknownSessionError, ReadDeadlineError, and what the operation raises.
        """
        async with self.lock:
            return await self.call_locked(operation)

    async def call_locked(self, operation: Callable[[], T], *, charged: bool = False) -> T:
        """Run an operation for a caller that holds `lock`. If it is `charged`, the container pays for its CPU time (`budget`).

        An operation that takes longer than `operation_s`, or whose caller is cancelled, is abandoned: a container can make an
        open hang forever, by putting a fifo in a file's place between our check and SQLite's open. Until the abandoned thread
        returns, every call raises ReadDeadlineError, because the lock no longer keeps a second thread from the same files.
        """
        if self.deleted:
            raise UnknownSessionError(f"session {self.key} was deleted.")
        if self._in_thread:
            raise ReadDeadlineError(f"an earlier operation on the files of {self.key} has not returned.")
        job = _Job(partial(self._watched, operation, charged=charged), self._came_back)
        self._in_thread = True
        try:
            # Only the operation's own time counts, not the wait for a thread, which is not this session's fault.
            me = object()
            try:
                self._limiter.acquire_on_behalf_of_nowait(me)  # without yielding to the event loop if a thread is free
            except anyio.WouldBlock:
                await self._limiter.acquire_on_behalf_of(me)
            try:
                with anyio.fail_after(self.operation_s):
                    with typed_host_errors(f"the files of {self.key}"):  # it may be impossible to start a thread
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
                f"an operation on the files of {self.key} has not returned within {self.operation_s:g} s."
            ) from error
        except BaseException:
            job.withdraw()
            raise

    def _watched(self, operation: Callable[[], T], *, charged: bool) -> T:
        began = time.thread_time()
        try:
            with typed_host_errors(f"the files of {self.key}"):
                return once_more(operation)
        except StorageError as error:
            self._on_storage_error(error)
            raise
        finally:
            # What senders and operators ask for is not the container's doing, and must not delay its answers.
            self.cpu_s += time.thread_time() - began if charged else 0.0

    def _came_back(self) -> None:
        self._in_thread = False
