"""Puts into the mailbox share commits: those that come while one commit runs go into the next one.

A durable commit costs the same for one row as for many. Tasks and threads wait in one queue, and the one that has the file commits for all that wait.
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

_MAX_GROUP: Final = 256  # rows in one commit


@dataclass(slots=True, eq=False)
class Ticket:
    """One entry's place in the queue; in the end it has a cursor or an error."""

    entry: NewEntry
    before: Ticket | None = None  # of the same run: this one must not be stored when that one was not
    cursor: int | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it is decided."""
        return self.cursor is not None or self.error is not None


class GroupCommit:
    """A run is the entries of one caller, in order: behind one that cannot be stored none is.

    `on_stored` is called in the event loop with every row that a task's thread stored. A caller of `put_here` reports its own.
    """

    def __init__(self, mailbox: Mailbox, on_stored: Callable[[Sequence[Ticket]], None]) -> None:
        self._mailbox = mailbox
        self._on_stored = on_stored
        self._runs: list[list[Ticket]] = []  # that wait
        self._mutex = threading.Lock()  # of that list, for moments
        self._gate = threading.Lock()  # one thread in the file: SQLite would make a second one wait by sleeping
        self._turn = anyio.Lock()  # one task in a thread at the gate: the others wait as tasks

    async def put(self, entry: NewEntry) -> int:
        """Commit the entry, alone or with others; its cursor. Cancelled: it may or may not have been committed."""
        (ticket,) = await self.put_many([entry])
        if ticket.error is not None:
            raise ticket.error
        assert ticket.cursor is not None
        return ticket.cursor

    async def put_many(self, entries: Sequence[NewEntry]) -> list[Ticket]:
        """Put several entries, in order."""
        run = self._join(entries)
        try:
            async with self._turn:
                stored: Sequence[Ticket] | None = None
                if not _done(run):
                    # One task commits for others: its own cancellation must not take their rows along.
                    with anyio.CancelScope(shield=True):
                        stored = await anyio.to_thread.run_sync(self._commit, run)
                # Not left to the callers: one that was cancelled meanwhile would leave its readers asleep.
                self._on_stored(stored or ())
        finally:
            self._leave(run)
        return run

    def put_here(self, entries: Sequence[NewEntry], timeout_s: float) -> tuple[list[Ticket], Sequence[Ticket]] | None:
        """`put_many` in this thread: its tickets, and all that this thread stored, which the caller reports.

        None when the file is not free within `timeout_s` seconds; then they may have been stored by another one.
        """
        run = self._join(entries)
        try:
            stored = self._commit(run, timeout_s)
        finally:
            self._leave(run)
        return None if stored is None else (run, stored)

    def _join(self, entries: Sequence[NewEntry]) -> list[Ticket]:
        run: list[Ticket] = []
        for entry in entries:
            run.append(Ticket(entry, before=run[-1] if run else None))
        with self._mutex:
            self._runs.append(run)
        return run

    def _leave(self, run: list[Ticket]) -> None:
        with self._mutex:
            self._runs = [other for other in self._runs if other is not run]

    def _commit(self, own: list[Ticket], timeout_s: float = -1) -> list[Ticket] | None:
        """Put all that waits, unless another one has put `own` meanwhile; what was stored. None when it took too long."""
        if not self._gate.acquire(timeout=timeout_s):
            return None
        try:
            return [] if _done(own) else self._put_waiting(own)
        finally:
            self._gate.release()

    def _put_waiting(self, own: list[Ticket]) -> list[Ticket]:
        with self._mutex:
            runs, self._runs = self._runs, []
        if not any(run is own for run in runs):  # taken by a thread that failed with it
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
                # One entry that cannot be stored must not hold back its neighbours. (A lock holds back all alike.)
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
