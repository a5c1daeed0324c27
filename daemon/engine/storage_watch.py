"""Whether the data folder can be written: reported by the operations that failed, and checked by the sweep.

It decides nothing and stops no attempt; it is what `status` shows of a full disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from daemon.core.clock import Clock
from daemon.core.errors import RegistryGoneError
from daemon.store.data_folder import LOW_BYTES, LOW_INODES, free_room
from schema.errors import ClawbusError, HostTroubleError, StorageError, UnusableFileError
from schema.os_faults import as_host_error

_PROBE: Final = "write-probe"
_PROBE_BYTES: Final = 64 * 1024


class StorageWatch:
    """`problem` and `low` are (since epoch ms, why) while they last. `folder` is on the data folder's file system.

    `code` is the problem's: STORAGE for the disk, HOST_TROUBLE when this host has run out of something else.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self.problem: tuple[int, str] | None = None
        self.code = StorageError.code
        self.resource: str | None = None  # what this host has run out of
        self.low: tuple[int, str] | None = None
        self._again = False  # whether something failed since the last look
        self._one = anyio.Lock()
        self._log = structlog.get_logger("storage")

    def failed(self, error: ClawbusError) -> bool:
        """Note that an operation on our files failed; False for a file that is gone or corrupt: that is not the disk."""
        if not isinstance(error, StorageError) or isinstance(error, UnusableFileError | RegistryGoneError):
            return False
        if self.problem is None:
            self._log.error("storage_failing", error=str(error), hint=error.hint)
        self.code, self._again = error.code, True
        self.resource = error.resource if isinstance(error, HostTroubleError) else None
        # What has run out is not to be seen in the data folder, so the limit is named with it.
        why = f"{error} {error.hint}" if isinstance(error, HostTroubleError) else str(error)
        self.problem = (self.problem[0] if self.problem else self._clock.now_ms()), why
        return True

    async def look(self) -> None:
        """Look at the free space; after a failure also try whether writing works again (reading proves nothing).

        May be called by several; they look one after the other.
        """
        async with self._one:
            await self._look()

    async def _look(self) -> None:
        try:
            free = await anyio.to_thread.run_sync(free_room, self._folder)
            # What the probe cannot see may fail on: it is over when a whole round of looks has passed without a failure.
            again, self._again = self._again, False
            works = self.problem is not None and not again and await anyio.to_thread.run_sync(self._can_write)
        except RuntimeError as error:  # no thread can be started
            host = as_host_error(error, "the data folder cannot be looked at")
            if host is None:
                raise
            self.failed(host)
            return
        if free is not None and free.is_low:
            if self.low is None:
                self._log.warning("disk_low", free_bytes=free.bytes, threshold_bytes=LOW_BYTES,
                                  free_inodes=free.inodes, threshold_inodes=LOW_INODES)  # fmt: skip
            self.low = (self.low[0] if self.low else self._clock.now_ms()), f"{free} on the data folder's disk"
        elif free is not None:
            self.low = None
        if works and self.problem is not None:
            self._log.info("storage_recovered", since=self.problem[0])
            self.problem = None

    def _can_write(self) -> bool:
        probe = self._folder / _PROBE
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return True
