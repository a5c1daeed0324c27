"""Tracks whether the data folder can be written. Failed operations report to it, and the sweep checks it.

It decides nothing and prevents no attempt; `status` uses it to report a full disk.
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
from daemon.store.free_room import free_room
from schema.errors import ClawbusError, HostTroubleError, StorageError, UnusableFileError
from schema.os_faults import as_host_error

_PROBE: Final = "write-probe"
_PROBE_BYTES: Final = 64 * 1024


class StorageWatch:
    """`problem` and `low` are (since epoch ms, why) while they last, else None. `folder` is on the data folder's file system.

    `code` is the problem's code: STORAGE for the disk, HOST_TROUBLE when the host has run out of another resource.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self.problem: tuple[int, str] | None = None
        self.code = StorageError.code
        self.resource: str | None = None  # the resource that this host has run out of
        self.low: tuple[int, str] | None = None
        self._again = False  # whether an operation has failed since the last check
        self._one = anyio.Lock()
        self._log = structlog.get_logger("storage")

    def failed(self, error: ClawbusError) -> bool:
        """Record that an operation on our files failed. Return False if the disk is not at fault (a lost or corrupt file)."""
        if not isinstance(error, StorageError) or isinstance(error, UnusableFileError | RegistryGoneError):
            return False
        if self.problem is None:
            self._log.error("storage_failing", error=str(error), hint=error.hint)
        self.code, self._again = error.code, True
        self.resource = error.resource if isinstance(error, HostTroubleError) else None
        # The exhausted resource is not visible in the data folder, so add the hint, which names the limit.
        why = f"{error} {error.hint}" if isinstance(error, HostTroubleError) else str(error)
        self.problem = (self.problem[0] if self.problem else self._clock.now_ms()), why
        return True

    async def look(self) -> None:
        """Check the free space. After a failure, also test whether writing works again (reading proves nothing).

        Concurrent calls run one after the other.
        """
        async with self._one:
            await self._look()

    async def _look(self) -> None:
        try:
            free = await anyio.to_thread.run_sync(free_room, self._folder)
            # The test cannot detect every failure, so the problem ends only when nothing failed since the last check.
            again, self._again = self._again, False
            works = self.problem is not None and not again and await anyio.to_thread.run_sync(self._can_write)
        except RuntimeError as error:  # no thread can be started
            host = as_host_error(error, "the data folder cannot be examined")
            if host is None:
                raise
            self.failed(host)
            return
        if free is not None and free.is_low:
            if self.low is None:
                self._log.warning("disk_low", free_bytes=free.bytes, threshold_bytes=free.low_bytes,
                                  free_inodes=free.inodes, threshold_inodes=free.low_inodes)  # fmt: skip
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
