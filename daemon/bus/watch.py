"""Notices that a container wrote: one file watcher over the live sessions' out/ folders, and a cheap poll beside it.

An event is a hint: the callback looks into the file. The poll (a stat a session) covers file systems whose events do not
cross, and the moments in which the watcher is being re-armed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus
from watchfiles import Change, awatch  # pyright: ignore[reportUnknownVariableType] - its stop_event names trio's type

from daemon.bus.sessions import Session
from daemon.store.registry import SessionKey
from schema.layout import OUTBOUND_DB

_POLL_S = 0.5
_REARM_S = 5.0
_STEP_MS = 5
_DEBOUNCE_MS = 20


class Watch:
    """`add` and `remove` sessions as their containers come and go; `on_change` is called in the event loop."""

    def __init__(
        self, on_change: Callable[[Session], None], *, poll_s: float | None = None, rearm_s: float | None = None
    ) -> None:
        self._on_change = on_change
        self._poll_s = _POLL_S if poll_s is None else poll_s
        self._rearm_s = _REARM_S if rearm_s is None else rearm_s
        self._sessions: dict[SessionKey, Session] = {}
        self._by_folder: dict[str, Session] = {}
        self._marks: dict[SessionKey, tuple[int, int] | None] = {}
        self._rearm = anyio.Event()
        self._log = structlog.get_logger("watch")

    def add(self, session: Session) -> None:
        """Watch this session from now on, beginning with a look."""
        if session.key in self._sessions:
            return
        self._sessions[session.key] = session
        self._by_folder[str(session.files.folder.outbox.absolute())] = session
        self._marks[session.key] = None
        self._rearm.set()

    def remove(self, session: Session) -> None:
        """Stop watching it."""
        if self._sessions.pop(session.key, None) is not None:
            self._by_folder.pop(str(session.files.folder.outbox.absolute()), None)
            self._marks.pop(session.key, None)
            self._rearm.set()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll, name="poll live sessions")
            tasks.start_soon(self._end_with_us, name="end the watcher")
            task_status.started()
            while True:
                self._rearm = anyio.Event()
                folders = [folder for folder in self._by_folder if Path(folder).is_dir()]
                if not folders:
                    await self._rearm.wait()
                    continue
                try:
                    # It runs at this task's first wait, which is after the watcher has been armed.
                    tasks.start_soon(self._scan, name="scan live sessions")
                    await self._events(folders)
                except Exception as error:  # noqa: BLE001 - the poll carries on, whatever the watcher's trouble
                    # A folder that went away, or the machine is out of inotify watches.
                    self._log.warning("watch_failed", error=str(error), fallback="poll")
                    with anyio.move_on_after(self._rearm_s):
                        await self._rearm.wait()

    async def _events(self, folders: list[str]) -> None:
        """One armed watcher, until the set of sessions changes."""
        changes = awatch(
            *folders,
            watch_filter=_is_outbound,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            stop_event=self._rearm,
            rust_timeout=60_000,
            yield_on_timeout=False,
            recursive=False,
        )
        async for batch in changes:
            for folder in {str(Path(path).parent) for _, path in batch}:
                session = self._by_folder.get(folder)
                if session is not None:
                    self._on_change(session)

    async def _end_with_us(self) -> None:
        """The watcher waits in a thread that a cancelled task cannot leave by itself: end it through its event."""
        try:
            await anyio.sleep_forever()
        finally:
            self._rearm.set()

    async def _scan(self) -> None:
        """What happened while no watcher was armed."""
        for session in tuple(self._sessions.values()):
            self._on_change(session)

    async def _poll(self) -> None:
        while True:
            await anyio.sleep(self._poll_s)
            for key, session in tuple(self._sessions.items()):
                mark = session.files.outbound_mark()
                if mark != self._marks.get(key):
                    self._marks[key] = mark
                    self._on_change(session)


def _is_outbound(_: Change, path: str) -> bool:
    return path.endswith((f"/{OUTBOUND_DB}", f"/{OUTBOUND_DB}-journal"))
