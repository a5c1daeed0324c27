"""Counts what waits in the active sessions: read from their files at a scrape, and remembered.

It opens no idle session: what those hold is in central.db. A session whose files are busy keeps its last figures; nobody
waits for it. Only the host's own file is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.store.backlog import Backlog, read_backlog
from daemon.store.session_rows import Totals
from schema.errors import ClawbusError, StorageError
from schema.frozen import frozen
from schema.os_faults import typed_host_errors

_AT_ONCE: Final = 4


@frozen
class Disk:
    """The data folder's file system, in bytes."""

    size: int
    free: int


@dataclass(slots=True)
class BacklogWatch:
    """Built once. `known` is by session, `totals` what central.db says of all of them, `disk` None where it cannot be asked."""

    sessions: Sessions
    data_dir: Path
    known: dict[SessionKey, Backlog] = field(default_factory=dict[SessionKey, Backlog])
    totals: Totals = field(default_factory=Totals)
    disk: Disk | None = None
    missed: int = 0  # sessions that the last pass could not read

    async def look(self, now: int) -> None:
        """Read every active session. `now` is epoch milliseconds.

        Never cut from outside: an operation that is left behind would keep its session's files from everybody else.
        """
        active = [session for session in self.sessions if session.quarantined is None]
        room = anyio.CapacityLimiter(_AT_ONCE)
        read: set[SessionKey] = set()

        async def one(session: Session) -> None:
            async with room:
                try:
                    self.known[session.key] = await session.call(partial(_read, session, now))
                except ClawbusError:
                    return  # operations on this session report the error; keep its last figures
                read.add(session.key)

        async with anyio.create_task_group() as tasks:
            for session in active:
                tasks.start_soon(one, session, name=f"backlog {session.key}")
            tasks.start_soon(self._ask_registry)
            tasks.start_soon(self._ask_disk)
        self.missed = len(active) - len(read)
        # What became idle has nothing that waits, and its dead letters are in central.db.
        there = {session.key for session in active}
        for key in [key for key in self.known if key not in there]:
            del self.known[key]

    async def _ask_registry(self) -> None:
        try:
            self.totals = await self.sessions.central(lambda registry: registry.totals())
        except ClawbusError:
            return  # keep the last totals; readiness reports the error

    async def _ask_disk(self) -> None:
        with suppress(StorageError), typed_host_errors("the disk cannot be examined"):  # keep the last figures
            self.disk = await anyio.to_thread.run_sync(_disk, self.data_dir)

    def dead_letters(self) -> Mapping[SessionKey, int]:
        """Open dead letters by session: of idle ones as central.db has them, of active ones as just read."""
        return {**self.totals.dead_letters, **{key: found.dead for key, found in self.known.items()}}


def _read(session: Session, now: int) -> Backlog:
    with session.files.inbound() as db:
        return read_backlog(db, now)


def _disk(folder: Path) -> Disk | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return Disk(status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail)
