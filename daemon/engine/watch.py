"""Notices when a container writes: kernel events on the live sessions' out/ folders, with a cheap stat poll as a backup.

An event is only a hint; the callback reads the file. A runner's bell triggers the callback at once. A commit without a bell
triggers it a moment later, so that the read does not collide with the turn in progress. The stat poll (one stat for each
session) covers file systems that pass on no events, and runs more often for a session whose changes arrive without any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from daemon.core.events import ContainerAdopted, ContainerExited, ContainerSpawned, SessionEvent, Subscriptions
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.watch_portable import PortableEvents
from daemon.engine.watch_trouble import TroubleLog, hint_of
from schema.bell import BELL_EVENTS, is_ring
from schema.inotify import IN_CREATE, IN_DELETE, IN_IGNORED, IN_MOVED_TO, IN_Q_OVERFLOW, FileEvent, Inotify
from schema.layout import OUTBOUND_DB

_POLL_S = 0.5
_DEAF_POLL_S = 0.05
_DEAF_AFTER = 2  # consecutive changes that the stat poll saw without an event
_REARM_S = 5.0
_LINGER_S = 0.02
# A commit creates and deletes a journal. Any other file that appears beside the database triggers a check as well.
_TOUCHED = IN_CREATE | IN_MOVED_TO | IN_DELETE
_BURST_S = 0.005  # at most one check in this time for a container that rings without end


@dataclass(eq=False, slots=True)
class _Watched:
    """One live session. `mark`: its file's state at the last check. `missed_events`: consecutive changes without an event."""

    session: Session
    mark: tuple[int, int] | None = None
    watch: int | None = None  # inotify's watch descriptor
    missed_events: int = 0
    looked_at: float = field(default=float("-inf"))


class Watch:
    """Watches the sessions that were added. `on_change` is called in the event loop when one may have written.

    `open_events` opens the kernel's event source. If it raises OSError, watchfiles is used instead.
    """

    def __init__(
        self,
        on_change: Callable[[Session], object],
        *,
        poll_s: float | None = None,
        rearm_s: float | None = None,
        linger_s: float = _LINGER_S,
        burst_s: float = _BURST_S,
        open_events: Callable[[], Inotify] = Inotify,
    ) -> None:
        self._on_change = on_change
        self._poll_s = _POLL_S if poll_s is None else poll_s
        self._linger_s = linger_s
        self._burst_s = burst_s
        self._open_events = open_events
        self._watched: dict[SessionKey, _Watched] = {}
        self._by_number: dict[int, _Watched] = {}
        self._lingering: set[SessionKey] = set()
        self._events: Inotify | None = None
        self._tasks: TaskGroup | None = None
        self._trouble = TroubleLog()
        self._log = structlog.get_logger("watch")
        self._portable = PortableEvents(self._heard_portably, _REARM_S if rearm_s is None else rearm_s)

    def follow(self, events: Subscriptions, find: Callable[[SessionKey], Session | None]) -> None:
        """Subscribe: add a session when its container starts or is adopted, and remove it when the container has exited."""

        def began(event: SessionEvent) -> None:
            session = find(SessionKey(event.agent, event.session))
            if session is not None:
                self.add(session)

        events.subscribe(ContainerSpawned, began)
        events.subscribe(ContainerAdopted, began)
        events.subscribe(ContainerExited, lambda event: self.remove(SessionKey(event.agent, event.session)))

    def add(self, session: Session) -> None:
        """Watch this session from now on, and check it once at the start."""
        if session.key in self._watched:
            return
        watched = self._watched[session.key] = _Watched(session)
        if self._events is not None:
            self._arm(watched)
        self._portable.add(session.key, session.files.folder.outbox)

    def remove(self, key: SessionKey) -> None:
        """Stop watching a session."""
        watched = self._watched.pop(key, None)
        if watched is None:
            return
        self._lingering.discard(key)
        self._portable.remove(key)
        if watched.watch is not None and self._events is not None:
            self._by_number.pop(watched.watch, None)
            self._events.unwatch(watched.watch)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._poll, name="poll live sessions")
            try:
                self._events = self._open_events()
            except OSError as error:
                self._log.warning("watch_portable", error=str(error), hint=hint_of(error))
                task_status.started()
                await self._portable.run()
                return
            try:
                for watched in tuple(self._watched.values()):
                    self._arm(watched)
                # A reader callback instead of a task: an event then costs only one iteration of the event loop.
                asyncio.get_running_loop().add_reader(self._events.fileno(), self._hear)
                task_status.started()
                await anyio.sleep_forever()
            finally:
                asyncio.get_running_loop().remove_reader(self._events.fileno())
                self._events.close()
                self._events = None

    # --- the kernel's events

    def _arm(self, watched: _Watched) -> None:
        """Watch the session's folder, then check it: the check finds what was written before the watch began."""
        assert self._events is not None
        try:
            watched.watch = self._events.watch(watched.session.files.folder.outbox, BELL_EVENTS | _TOUCHED)
            self._by_number[watched.watch] = watched
        except OSError as error:
            # The folder is gone, or the machine is out of inotify watches.
            if self._trouble.is_news(error, anyio.current_time()):
                self._log.warning("watch_failed", error=str(error), fallback="poll", hint=hint_of(error),
                                  agent=watched.session.key.agent, session=watched.session.key.session)  # fmt: skip
        self._look(watched)

    def _hear(self) -> None:
        for event in self._events.read() if self._events is not None else ():
            if event.mask & IN_Q_OVERFLOW:
                for watched in tuple(self._watched.values()):
                    self._look(watched)
            elif event.watch in self._by_number:
                self._heard(self._by_number[event.watch], event)

    def _heard(self, watched: _Watched, event: FileEvent) -> None:
        if event.mask & IN_IGNORED:  # the folder is gone
            self._by_number.pop(event.watch, None)
            watched.watch = None
            return
        if is_ring(event):
            watched.missed_events = 0
            if anyio.current_time() - watched.looked_at < self._burst_s:
                self._look_soon(watched)
            else:
                self._look(watched)
        elif event.name.startswith(OUTBOUND_DB) and event.mask & _TOUCHED:
            watched.missed_events = 0
            if watched.session.key not in self._lingering:  # a commit makes three events; one check is enough
                watched.mark = watched.session.files.outbound_mark()
                self._look_soon(watched)

    def _heard_portably(self, key: SessionKey) -> None:
        if key in self._watched:
            self._look(self._watched[key])

    # --- polling

    def _look(self, watched: _Watched) -> None:
        watched.looked_at = anyio.current_time()
        watched.mark = watched.session.files.outbound_mark()
        self._lingering.discard(watched.session.key)
        self._on_change(watched.session)

    def _look_soon(self, watched: _Watched) -> None:
        if not self._lingering and self._tasks is not None:
            self._tasks.start_soon(self._linger, name="look at commits")
        self._lingering.add(watched.session.key)

    async def _linger(self) -> None:
        await anyio.sleep(self._linger_s)
        due, self._lingering = self._lingering, set()
        for key in due:
            if key in self._watched:
                self._look(self._watched[key])

    # --- the poll

    async def _poll(self) -> None:
        """Check the mark of every session each `poll_s` seconds, and more often for sessions whose events do not arrive."""
        slow_at = anyio.current_time() + self._poll_s
        while True:
            quick = [watched for watched in self._watched.values() if watched.missed_events >= _DEAF_AFTER]
            left = max(0.0, slow_at - anyio.current_time())
            await anyio.sleep(min(left, _DEAF_POLL_S) if quick else left)
            if anyio.current_time() >= slow_at:
                slow_at = anyio.current_time() + self._poll_s
                quick = list(self._watched.values())
            for watched in quick:
                self._compare(watched)

    def _compare(self, watched: _Watched) -> None:
        mark = watched.session.files.outbound_mark()
        key = watched.session.key
        if mark == watched.mark or key not in self._watched or key in self._lingering:
            return
        if watched.mark is not None:
            watched.missed_events += 1
            if watched.missed_events == _DEAF_AFTER:
                self._log.warning("watch_deaf", agent=watched.session.key.agent, session=watched.session.key.session,
                                  poll_s=_DEAF_POLL_S)  # fmt: skip
        self._look(watched)
