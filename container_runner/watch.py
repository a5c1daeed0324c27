"""Decides when to poll inbound.db: at once when the host notifies, soon after a commit, and otherwise every poll_s seconds.

VM mounts pass on no file events and a machine may be out of watches, so events only make a poll happen earlier. If the
stat poll keeps finding changes without an event, the file is checked more often. Where events do arrive, a poll of a file that
has not changed is only a stat (`rest.py`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import anyio
from watchfiles import Change, awatch  # pyright: ignore[reportUnknownVariableType] -- a Trio type in its signature

from container_runner.logs import Logger
from container_runner.rest import Mark, Poll, Rest
from schema.bell import BELL_EVENTS, is_commit, is_ring
from schema.inotify import IN_IGNORED, IN_Q_OVERFLOW, Inotify
from schema.layout import INBOUND_DB

_RETRY_S: Final = 30.0
# During a burst of commits, poll after this many steps at the latest.
_BURST_STEPS: Final = 4
_DEAF_POLL_S: Final = 0.05
_DEAF_AFTER: Final = 2


class InboundWatch:
    """Wakes the waiting tasks. Times are in seconds, except `step_ms`: milliseconds from a commit without a bell to the wake-up.

    `open_events` opens the kernel's event source. If it raises OSError, watchfiles is used instead.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step_ms: int,
        poll_s: float,
        log: Logger,
        open_events: type[Inotify] = Inotify,
    ) -> None:
        self._folder = folder
        self._step_ms = step_ms
        self._poll_s = poll_s
        self._log = log
        self._open_events = open_events
        self._changed = anyio.Event()
        self.pokes = 0  # how often a waiter was woken; see `after`
        self._poked = anyio.Event()
        self._closed = anyio.Event()
        self._rung = False  # whether this host rings at all; if so, ignore its commits without a bell
        self._mark: Mark | None = None
        self._events_arrive = False  # whether any event has reported a change
        self._unheard = 0  # changes since then that no event reported
        self._rest = Rest(poll_s)
        self._poll_due = 0.0  # monotonic seconds
        self._timer: asyncio.TimerHandle | None = None

    def silent_since(self, pokes: int) -> bool:
        """Return whether this host rings and has not rung since `self.pokes` had this value: then nothing new is in the file."""
        return self._rung and self._unheard < _DEAF_AFTER and self.pokes == pokes

    def begin_poll(self) -> Poll:
        """Note that inbound.db is about to be read."""
        return self._rest.begin(self._look_at_file(), _now())

    def end_poll(self, poll: Poll, quiet_s: float) -> None:
        """Note that a poll left nothing to do, and that time alone changes nothing for `quiet_s` seconds."""
        self._rest.end(poll, quiet_s)

    def poke(self) -> None:
        """End the current or the next wait at once."""
        self._changed.set()
        self.pokes += 1
        self._poked.set()
        self._poked = anyio.Event()

    def close(self) -> None:
        """Let `run` return. It may wait in a thread, which notices this event but not a cancellation."""
        self._closed.set()

    async def wait(self, at_most_s: float | None = None) -> None:
        """Wait until inbound.db should be read again, at most `at_most_s` seconds."""
        with anyio.move_on_after(at_most_s):
            await self._changed.wait()
        # Replace the event before the caller polls, so that a change during its poll ends the next wait.
        self._changed = anyio.Event()

    async def after(self, pokes: int, at_most_s: float) -> None:
        """Wait for a change since `self.pokes` had this value, at most poll_s or `at_most_s` seconds. Any number may wait."""
        if self.pokes == pokes:
            with anyio.move_on_after(min(at_most_s, self._poll_s)):
                await self._poked.wait()

    async def changed_since(self, pokes: int) -> None:
        """Wait for a change since `self.pokes` had this value, however long it takes. Any number may wait."""
        while self.pokes == pokes:
            await self._poked.wait()

    async def run(self) -> None:
        """Turn file events into pokes until closed. Without events, only the stat poll continues."""
        self._mark = self._look_at_file()
        self._poll_due = _now() + self._poll_s
        self._set_timer()
        try:
            try:
                events = self._open_events()
            except OSError as error:
                self._log.warning("watch_portable", error=str(error))
                await self._run_portably()
            else:
                await self._listen(events)
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _listen(self, events: Inotify) -> None:
        loop = asyncio.get_running_loop()
        try:
            events.watch(self._folder, BELL_EVENTS)
            # A reader callback instead of a task: an event then costs only one iteration of the event loop.
            loop.add_reader(events.fileno(), self._hear, events)
            self.poke()  # for anything that happened before the watch was armed
        except OSError as error:
            self._log.warning("watch_unavailable", error=str(error), poll_s=self._poll_s)
        try:
            await self._closed.wait()
        finally:
            loop.remove_reader(events.fileno())
            events.close()

    def _hear(self, events: Inotify) -> None:
        try:
            heard = events.read()
        except OSError as error:
            self._log.warning("watch_unavailable", error=str(error), poll_s=self._poll_s)
            self.poke()
            return
        for event in heard:
            if event.mask & IN_IGNORED:
                self._log.warning("watch_unavailable", error=f"{self._folder} is gone", poll_s=self._poll_s)
                self._rung = self._events_arrive = False  # no notification arrives from now on
                continue
            ring = is_ring(event)
            self._rung = self._rung or ring
            if ring or event.mask & IN_Q_OVERFLOW:
                self._heard()
                self._events_arrive = True
                self.poke()
            elif is_commit(event, INBOUND_DB):
                self._heard()
                self._events_arrive = True
                # An older host does not ring, so any of its commits may be a message.
                if not self._rung:
                    asyncio.get_running_loop().call_later(self._step_ms / 1000, self.poke)

    def _heard(self) -> None:
        self._unheard = 0
        self._mark = self._look_at_file()

    def _set_timer(self) -> None:
        # One timer for both the stat and the poll, and a callback instead of a task: an idle runner does little else.
        wait_s = self._poll_due - _now()
        if self._unheard >= _DEAF_AFTER:
            wait_s = min(wait_s, _DEAF_POLL_S)
        self._timer = asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._tick)

    def _tick(self) -> None:
        try:
            self._check(_now())
        finally:
            self._set_timer()  # whatever went wrong: without the timer, a lost ring would never be noticed

    def _check(self, now: float) -> None:
        """Stat the file, and poke if it has changed without an event. End a wait when a poll is due that must read it."""
        mark = self._look_at_file()
        if mark != self._mark:
            self._mark = mark
            self._unheard += 1
            if self._unheard == _DEAF_AFTER:
                self._log.warning("watch_deaf", poll_s=_DEAF_POLL_S)
            self.poke()
        if now >= self._poll_due:
            self._poll_due = now + self._poll_s
            if not (self._events_arrive and not self._unheard and self._rest.covers(mark, now)):
                self._changed.set()

    def _look_at_file(self) -> Mark | None:
        try:
            status = (self._folder / INBOUND_DB).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    async def _run_portably(self) -> None:
        while not self._closed.is_set():
            try:
                async for _ in awatch(
                    self._folder,
                    watch_filter=_is_inbound,
                    step=self._step_ms,
                    debounce=self._step_ms * _BURST_STEPS,
                    stop_event=self._closed,
                    recursive=False,
                ):
                    self._heard()
                    self.poke()
            except (OSError, RuntimeError) as error:
                self._log.warning("watch_unavailable", error=str(error), poll_s=self._poll_s)
                with anyio.move_on_after(_RETRY_S):
                    await self._closed.wait()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_inbound(_: Change, path: str) -> bool:
    # Include the journal: deleting it is the commit.
    return Path(path).name.startswith(INBOUND_DB)
