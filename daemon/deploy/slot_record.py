"""The state of slots, as the daemon that serves reads and changes it: one change at a time, each on disk before it has an effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import structlog

from daemon.core.deploy_errors import SlotStateError
from daemon.core.slots import SlotState
from daemon.deploy.state_file import read_state, write_state
from schema.errors import StorageError
from schema.os_faults import typed_host_errors

_RETRY_S: Final = 1.0

_T = TypeVar("_T")


class SlotRecord:
    """The state in a data folder. `seen` is called with every state that is read or written."""

    def __init__(self, data_dir: Path, seen: Callable[[SlotState], None]) -> None:
        self._data_dir, self._seen = data_dir, seen
        # Operators and gates change the state in different tasks; no change may come between another's read and write.
        self._lock = anyio.Lock()
        self._log = structlog.get_logger("deploy")

    async def read(self) -> SlotState:
        """Return the state. Raise SlotStateError or StorageError."""
        with typed_host_errors("the state of slots cannot be read"):
            state = await anyio.to_thread.run_sync(read_state, self._data_dir)
        self._seen(state)
        return state

    async def change(self, change: Callable[[SlotState], SlotState]) -> SlotState:
        """Replace the state by `change` of it, and return the new one.

        Raise the errors of `change`. Raise SlotStateError or StorageError; then the new state is usually not on disk.
        """
        async with self._lock:
            found = await self.read()
            state = change(found)
            if state is not found:
                with typed_host_errors("the state of slots cannot be written"):
                    await anyio.to_thread.run_sync(write_state, self._data_dir, state)
                self._seen(state)
        return state

    async def insist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat work on the state until the host can do it: a full disk must not end the daemon that serves."""
        trouble = ""
        while True:
            try:
                return await work()
            except (SlotStateError, StorageError) as error:
                if str(error) != trouble:
                    self._log.error("deploy_state_failing", error=str(error), hint=error.hint)
                trouble = str(error)
            await anyio.sleep(_RETRY_S)

    async def insist_on(self, change: Callable[[SlotState], SlotState]) -> SlotState:
        """Change the state, and retry until the host can do it. No operator waits for it."""
        return await self.insist(lambda: self.change(change))
