"""Decides when to poll inbound.db: at once when the host rings, soon after a commit, and at the latest after poll_s seconds.

VM mounts pass on no file events and a machine may be out of watches, so events only make a poll happen earlier. If the
stat poll keeps finding changes without an event, the file is checked more often.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import anyio
from structlog.typing import FilteringBoundLogger
from watchfiles import Change, awatch  # pyright: ignore[reportUnknownVariableType] -- a Trio type in its signature

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
        log: FilteringBoundLogger,
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
        self._mark: tuple[int, int] | None = None
        self._unheard = 0

    def silent_since(self, pokes: int) -> bool:
        """Return whether this host rings and has not rung since `self.pokes` had this value: then nothing new is in the file."""
        return self._rung and self._unheard < _DEAF_AFTER and self.pokes == pokes

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
        """Wait for a change since the last return, at most poll_s seconds, or `at_most_s` if that is less."""
        with anyio.move_on_after(self._poll_s if at_most_s is None else min(at_most_s, self._poll_s)):
            await self._changed.wait()
        # Replace the event before the caller polls, so that a change during its poll ends the next wait.
        self._changed = anyio.Event()

    async def after(self, pokes: int, at_most_s: float) -> None:
        """Wait for a change since `self.pokes` had this value, at most poll_s or `at_most_s` seconds. Any number may wait."""
        if self.pokes == pokes:
            with anyio.move_on_after(min(at_most_s, self._poll_s)):
                await self._poked.wait()

    async def run(self) -> None:
        """Turn file events into pokes until closed. Without events, only the stat poll continues."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll)
            try:
                events = self._open_events()
            except OSError as error:
                self._log.warning("watch_portable", error=str(error))
                await self._run_portably()
            else:
                await self._listen(events)
            tasks.cancel_scope.cancel()

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
                self._rung = False  # no ring arrives from now on
                continue
            ring = is_ring(event)
            self._rung = self._rung or ring
            if ring or event.mask & IN_Q_OVERFLOW:
                self._heard()
                self.poke()
            elif is_commit(event, INBOUND_DB):
                self._heard()
                # An older host does not ring, so any of its commits may be a message.
                if not self._rung:
                    asyncio.get_running_loop().call_later(self._step_ms / 1000, self.poke)

    def _heard(self) -> None:
        self._unheard = 0
        self._mark = self._look_at_file()

    async def _poll(self) -> None:
        """Stat the file every poll_s seconds, and more often once changes were found without an event."""
        self._mark = self._look_at_file()
        while True:
            await anyio.sleep(_DEAF_POLL_S if self._unheard >= _DEAF_AFTER else self._poll_s)
            mark = self._look_at_file()
            if mark != self._mark:
                self._mark = mark
                self._unheard += 1
                if self._unheard == _DEAF_AFTER:
                    self._log.warning("watch_deaf", poll_s=_DEAF_POLL_S)
                self.poke()

    def _look_at_file(self) -> tuple[int, int] | None:
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


def _is_inbound(_: Change, path: str) -> bool:
    # Include the journal: deleting it is the commit.
    return Path(path).name.startswith(INBOUND_DB)
