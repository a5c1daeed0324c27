"""File events where the C library has no inotify: uses watchfiles, restarted whenever the set of folders changes.

It reports later than the kernel's own events and costs a little while idle, but works on other systems. Its failures are logged
from time to time; the stat poll then finds the changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import structlog
from watchfiles import Change, awatch  # pyright: ignore[reportUnknownVariableType] - its stop_event names trio's type

from daemon.core.session_key import SessionKey
from daemon.engine.watch_trouble import TroubleLog, hint_of
from schema.layout import BELL, OUTBOUND_DB

_STEP_MS = 5
_DEBOUNCE_MS = 20


class PortableEvents:
    """Watches folders. `on_change` is called with a folder's key after a commit in it, and once when its watch starts."""

    def __init__(self, on_change: Callable[[SessionKey], None], rearm_s: float) -> None:
        self._on_change = on_change
        self._rearm_s = rearm_s
        self._by_folder: dict[str, SessionKey] = {}
        self._rearm = anyio.Event()
        self._trouble = TroubleLog()
        self._log = structlog.get_logger("watch")

    def add(self, key: SessionKey, folder: Path) -> None:
        """Watch this folder as well."""
        self._by_folder[str(folder.absolute())] = key
        self._rearm.set()

    def remove(self, key: SessionKey) -> None:
        """Stop watching the folder of this session."""
        for folder in [folder for folder, owner in self._by_folder.items() if owner == key]:
            del self._by_folder[folder]
            self._rearm.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_with_us, name="end the watcher")
            while True:
                self._rearm = anyio.Event()
                folders = [folder for folder in self._by_folder if Path(folder).is_dir()]
                if not folders:
                    await self._rearm.wait()
                    continue
                try:
                    # The scan runs when this task first waits, so after the watcher has started.
                    tasks.start_soon(self._scan, name="scan live sessions")
                    await self._events(folders)
                except Exception as error:  # noqa: BLE001 - the stat poll continues, whatever fails here
                    # A folder is gone, or the machine is out of watches.
                    if self._trouble.is_news(error, anyio.current_time()):
                        self._log.warning("watch_failed", error=str(error), fallback="poll", hint=hint_of(error))
                    with anyio.move_on_after(self._rearm_s):
                        await self._rearm.wait()

    async def _events(self, folders: list[str]) -> None:
        """Run one watcher until the set of folders changes."""
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
                self._trouble.recovered()
                if folder in self._by_folder:
                    self._on_change(self._by_folder[folder])

    async def _end_with_us(self) -> None:
        """End the watcher through its event when cancelled: it waits in a thread that a cancellation does not end."""
        try:
            await anyio.sleep_forever()
        finally:
            self._rearm.set()

    async def _scan(self) -> None:
        """Report what happened while no watcher was armed."""
        for key in tuple(self._by_folder.values()):
            self._on_change(key)


def _is_outbound(_: Change, path: str) -> bool:
    return path.endswith((f"/{OUTBOUND_DB}", f"/{OUTBOUND_DB}-journal", f"/{BELL}"))
