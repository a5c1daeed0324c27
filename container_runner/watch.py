"""When to look into inbound.db: at once on a file event, and in any case after poll_s.

VM mounts give no file events and a machine may be out of watches, so events only ever make the look come earlier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import anyio
from structlog.typing import FilteringBoundLogger
from watchfiles import Change, awatch  # pyright: ignore[reportUnknownVariableType] -- a Trio type in its signature

from schema.layout import INBOUND_DB

_RETRY_S: Final = 30.0
# A burst of commits is looked at after this many steps at the latest.
_BURST_STEPS: Final = 4


class InboundWatch:
    """One waiter's alarm. Times in seconds; `step_ms` is the quiet time after which an event is told."""

    def __init__(self, folder: Path, *, step_ms: int, poll_s: float, log: FilteringBoundLogger) -> None:
        self._folder = folder
        self._step_ms = step_ms
        self._poll_s = poll_s
        self._log = log
        self._changed = anyio.Event()
        self._closed = anyio.Event()

    def poke(self) -> None:
        """End the current or the next wait at once."""
        self._changed.set()

    def close(self) -> None:
        """Let `run` return within a step: the thread under it hears this event, and no cancellation."""
        self._closed.set()

    async def wait(self, at_most_s: float | None = None) -> None:
        """Return on a change since the last return, or after poll_s (or `at_most_s`, where that is less)."""
        with anyio.move_on_after(self._poll_s if at_most_s is None else min(at_most_s, self._poll_s)):
            await self._changed.wait()
        # Replaced before the caller looks: a change during its look ends the next wait.
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Turn file events into pokes until closed. Without events the poll goes on alone."""
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
                    self.poke()
            except (OSError, RuntimeError) as error:
                self._log.warning("watch_unavailable", error=str(error), poll_s=self._poll_s)
                with anyio.move_on_after(_RETRY_S):
                    await self._closed.wait()


def _is_inbound(_: Change, path: str) -> bool:
    # The journal counts too: the commit is the moment at which it goes.
    return Path(path).name.startswith(INBOUND_DB)
