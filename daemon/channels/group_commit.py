"""Group commit for the mailbox: entries that arrive while one commit runs all go into the next one.

A durable commit costs the same for one row as for many. Tasks and threads wait in one queue; the one that holds the file
commits for everyone who waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread

from daemon.store.mailbox import Mailbox, NewEntry
from schema.errors import FileBusyError

_MAX_GROUP: Final = 256  # the most rows in one commit


@dataclass(slots=True, eq=False)
class Ticket:
    """One entry's place in the queue. When decided, it has a cursor or an error."""

    entry: NewEntry
    before: Ticket | None = (
        None  # the entry before it in the same run: if that one was not stored, this one must not be
    )
    here: bool = False  # the thread that brought it reports it, not the one that stored it
    cursor: int | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether the entry was stored or has failed."""
        return self.cursor is not None or self.error is not None


class GroupCommit:
    """Commits runs. A run is one caller's entries, in order: after one that cannot be stored, none is stored.

    `on_stored` is called in the event loop with every entry of a task that a task's thread stored. A caller of `put_here`
    must report the entries that `put_here` returns as stored.
    """

    def __init__(self, mailbox: Mailbox, on_stored: Callable[[Sequence[Ticket]], None]) -> None:
        self._mailbox = mailbox
        self._on_stored = on_stored
        self._runs: list[list[Ticket]] = []  # entries that wait for a commit
        self._mutex = threading.Lock()  # guards `_runs`, held only briefly
        self._gate = threading.Lock()  # lets one thread use the file: a second one would wait in SQLite's sleep loop
        self._turn = anyio.Lock()  # lets one task's thread wait at the gate: the other tasks wait without a thread

    async def put(self, entry: NewEntry) -> int:
        """Commit the entry, alone or with others, and return its cursor. If cancelled, the entry may still be committed."""
        (ticket,) = await self.put_many([entry])
        if ticket.error is not None:
            raise ticket.error
        assert ticket.cursor is not None
        return ticket.cursor

    async def put_many(self, entries: Sequence[NewEntry]) -> list[Ticket]:
        """Commit several entries as one run, in order. Return their tickets."""
        run = self._join(entries)
        try:
            async with self._turn:
                stored: Sequence[Ticket] | None = None
                if not _done(run):
                    # This task also commits other callers' entries: its cancellation must not drop them.
                    with anyio.CancelScope(shield=True):
                        stored = await anyio.to_thread.run_sync(self._commit, run)
                # Report here, not in the callers: a cancelled caller would leave its waiting readers asleep.
                self._on_stored([ticket for ticket in stored or () if not ticket.here])
        finally:
            self._leave(run)
        return run

    def put_here(self, entries: Sequence[NewEntry], timeout_s: float) -> tuple[list[Ticket], Sequence[Ticket]] | None:
        """Do what `put_many` does, in this thread. Return the entries' tickets, and those that the caller must report.

        The latter are the entries' own that are stored, and the tasks' that this thread stored. Return None when the file is
        not free within `timeout_s` seconds; another thread may still have stored the entries.
        """
        run = self._join(entries, here=True)
        try:
            stored = self._commit(run, timeout_s)
        finally:
            self._leave(run)
        if stored is None:
            return None
        own = [ticket for ticket in run if ticket.cursor is not None]
        return run, [*own, *(ticket for ticket in stored if not ticket.here)]

    def _join(self, entries: Sequence[NewEntry], *, here: bool = False) -> list[Ticket]:
        run: list[Ticket] = []
        for entry in entries:
            run.append(Ticket(entry, before=run[-1] if run else None, here=here))
        with self._mutex:
            self._runs.append(run)
        return run

    def _leave(self, run: list[Ticket]) -> None:
        with self._mutex:
            self._runs = [other for other in self._runs if other is not run]

    def _commit(self, own: list[Ticket], timeout_s: float = -1) -> list[Ticket] | None:
        """Commit every waiting run, unless another thread has already committed `own`. Return the stored tickets.

        Return None when the gate is not free within `timeout_s` seconds (-1: wait forever).
        """
        if not self._gate.acquire(timeout=timeout_s):
            return None
        try:
            return [] if _done(own) else self._put_waiting(own)
        finally:
            self._gate.release()

    def _put_waiting(self, own: list[Ticket]) -> list[Ticket]:
        with self._mutex:
            runs, self._runs = self._runs, []
        if not any(run is own for run in runs):  # another thread took it from the queue and failed
            runs.append(own)
        group = [ticket for run in runs for ticket in run]
        for start in range(0, len(group), _MAX_GROUP):
            self._put(group[start : start + _MAX_GROUP])
        return [ticket for ticket in group if ticket.cursor is not None]

    def _put(self, group: list[Ticket]) -> None:
        for ticket in group:
            ticket.error = ticket.before.error if ticket.before is not None else None
        group = [ticket for ticket in group if ticket.error is None]
        if not group:
            return
        try:
            cursors = self._mailbox.put_many([ticket.entry for ticket in group])
        except Exception as error:  # noqa: BLE001 - every waiter gets it; nothing is swallowed
            if len(group) > 1 and not isinstance(error, FileBusyError):
                # One entry that cannot be stored must not hold back the others. (A lock would hold back all of them.)
                for ticket in group:
                    self._put([ticket])
                return
            for ticket in group:
                ticket.error = error
            return
        for ticket, cursor in zip(group, cursors, strict=True):
            ticket.cursor = cursor


def _done(run: Sequence[Ticket]) -> bool:
    return all(ticket.done for ticket in run)
