"""mailbox.db: answers on the `local` channel, kept so that a client that comes back later misses nothing.

The daemon is the only writer, and keeps the file open between writes. The command line reads it while the daemon is down.
Every read opens and closes the file. All functions block: on the event loop, call them in a worker thread.

Clients remember cursors. So nothing may change or reorder a stored entry or reuse a cursor; retention deletes only the oldest
entries. When the file was lost, or replaced by an older copy or a backup, new cursors are above all that were ever used.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from daemon.core.clock import Clock, SystemClock
from daemon.core.errors import CursorAheadError
from schema.connect import holds_pages, make_whole, open_owner, open_reader
from schema.errors import ReadRaceError, StorageError
from schema.file_pool import FilePool
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.migrate import Role

MAX_LIMIT: Final = 1000
MAX_ANSWERS: Final = 1000
# Limits what one read holds in memory. A read always returns at least one entry, so that the reader makes progress.
READ_BUDGET_CHARS: Final = 16 * 1024**2

_COLUMNS: Final = "cursor, mailbox, message_out_id, agent, session, in_reply_to, kind, thread_id, content, delivered_at"
_FINAL: Final = "final"  # an older file lacks this column: all its entries are final
_FILES: Final = "files"  # an older file lacks this column: none of its entries has files


@frozen
class MailboxEntry:
    """A row of the mailbox. `cursor` only grows; `content` is JSON text; `delivered_at` is epoch milliseconds.

    `final` is False for what the agent sent in the middle of a turn: it answers no message. `files` is JSON text
    (`SentFiles.to_json`), or None.
    """

    cursor: int
    mailbox: str
    message_out_id: str
    agent: str
    session: str
    in_reply_to: str | None
    kind: str
    thread_id: str | None
    content: str
    delivered_at: int
    final: bool = True
    files: str | None = None


@frozen
class NewEntry:
    """An entry to store. `answers`: ids of further messages that it answers, of which MAX_ANSWERS count."""

    mailbox: str
    message_out_id: str
    agent: str
    session: str
    in_reply_to: str | None
    kind: str
    thread_id: str | None
    content: str
    delivered_at: int
    answers: tuple[str, ...] = ()
    final: bool = True
    files: str | None = None

    @property
    def replied(self) -> tuple[str, ...]:
        """The ids of the messages that this entry answers, or concerns if it is not final, each once."""
        first = () if self.in_reply_to is None else (self.in_reply_to,)
        return tuple(dict.fromkeys((*first, *self.answers[:MAX_ANSWERS])))

    def at(self, cursor: int) -> MailboxEntry:
        """Return the stored entry, with this cursor."""
        return MailboxEntry(
            cursor, self.mailbox, self.message_out_id, self.agent, self.session, self.in_reply_to, self.kind,
            self.thread_id, self.content, self.delivered_at, self.final, self.files,
        )  # fmt: skip


class Mailbox:
    """The file at `path`. Methods may run in any thread; SQLite serialises the writers."""

    def __init__(
        self, path: Path, clock: Clock | None = None, on_lost: Callable[[int], object] = lambda _: None
    ) -> None:
        """Create the handle.

        When the file was lost or replaced by an older copy, `on_lost` is called, in any thread, with the next new cursor.
        """
        self.path = path
        self._kept = FilePool(1)
        self._clock = clock or SystemClock()
        self._on_lost = on_lost
        self._known = False  # a mailbox existed, so a missing file is a lost one
        self._highest = 0  # the highest cursor that this process has stored

    def prepare(self, *, known: bool = False) -> None:
        """Create or migrate the file, and let SQLite recover from a crash. Raise SchemaTooNewError or StorageError.

        `known`: a mailbox existed before, so a missing or empty file is a lost one.
        """
        self._known = self._known or known
        self._open_owner().close()

    def put(self, entry: NewEntry) -> int:
        """Store one entry and return its cursor, as `put_many` does."""
        return self.put_many((entry,))[0]

    def put_many(self, entries: Sequence[NewEntry]) -> list[int]:
        """Store all or none of the entries in one transaction. Return their cursors in the same order.

        An entry with the agent, session and message_out_id of a stored one is a duplicate. It changes nothing and gets the
        stored one's cursor. Raise FileBusyError or StorageError; then nothing is stored.
        """
        try:
            with self._writer() as db, db.transaction():
                cursors = [_put(db, entry) for entry in entries]
        except (UnicodeError, OverflowError) as error:  # sqlite3 raises these for text that is not UTF-8
            raise StorageError(f"{self.path.name}: {error}") from error
        self._highest = max((self._highest, *cursors))
        return cursors

    def _writer(self) -> AbstractContextManager[Writer]:
        return self._kept.using(self.path, self._open_owner)

    def _open_owner(self) -> Writer:
        """Open the file for writing. If it was lost or is an older copy, raise its cursors above every one that was used."""
        floor = max(self._clock.now_ms(), self._highest)  # the clock may have been set back meanwhile
        lost = self._known and not holds_pages(self.path)
        if lost:
            make_whole(self.path, Role.MAILBOX, lambda db: _raise_cursors(db, floor))
        db = open_owner(self.path, Role.MAILBOX)
        try:
            if _last_cursor(db) < self._highest:
                _raise_cursors(db, floor)
                lost = True
        except BaseException:
            db.close()
            raise
        self._known = True
        if lost:
            self._on_lost(floor + 1)
        return db

    def top(self) -> int:
        """Return the highest cursor of a stored entry, or 0 if there is none."""
        if not self.path.exists():
            return 0
        with _open(self.path) as reader:
            row = reader.one("SELECT max(cursor) AS top FROM mailbox")
        return int(row["top"] or 0) if row is not None else 0

    def prune(self, cutoff: int, after: int, limit: int) -> tuple[int, int | None]:
        """Look at the next `limit` entries above the cursor `after`. Delete those delivered before `cutoff` (epoch milliseconds).

        Return how many were deleted, and the cursor to continue from. It is None when this step was the last: it deleted
        nothing, or reached the newest entry.
        """
        if not self.path.exists():
            return 0, None
        with self._writer() as db:
            rows = db.all(
                "SELECT cursor, delivered_at FROM mailbox WHERE cursor > ? ORDER BY cursor LIMIT ?", (after, limit)
            )
            old = [(row["cursor"],) for row in rows if row["delivered_at"] < cutoff]
            if old:
                with db.transaction():
                    db.executemany("DELETE FROM mailbox_replies WHERE cursor = ?", old)
                    db.executemany("DELETE FROM mailbox WHERE cursor = ?", old)
        return len(old), rows[-1]["cursor"] if old and len(rows) == limit else None

    def read(
        self,
        mailbox: str,
        after: int = 0,
        limit: int = 100,
        *,
        agent: str | None = None,
        session: str | None = None,
        in_reply_to: str | None = None,
    ) -> list[MailboxEntry]:
        """Return at most `limit` (1 to MAX_LIMIT) entries of one mailbox above the cursor `after`, oldest first.

        Large entries may make the list shorter than `limit` although there are more. Only an empty list means the end. Raise
        as `read_mailbox` does.
        """
        return read_mailbox(self.path, mailbox, after, limit, agent=agent, session=session, in_reply_to=in_reply_to)

    def first_reply(self, agent: str, session: str, message_id: str, after: int | None = None) -> MailboxEntry | None:
        """Return the oldest final entry that answers this message, in any mailbox, or None.

        With `after`, return the oldest entry for this message above that cursor, final or not.
        """
        if not self.path.exists():
            return None
        with _open(self.path) as reader:
            row = reader.one(
                f"SELECT {_columns(reader)} FROM mailbox WHERE cursor IN (SELECT cursor FROM mailbox_replies"
                " WHERE agent = ? AND session = ? AND message_id = ? AND cursor > ?)"
                f" AND {_FINAL} >= ? ORDER BY cursor LIMIT 1",
                (agent, session, message_id, after or 0, int(after is None)),
            )
        return None if row is None else _entry(row)


def read_mailbox(
    path: Path,
    mailbox: str,
    after: int = 0,
    limit: int = 100,
    *,
    agent: str | None = None,
    session: str | None = None,
    in_reply_to: str | None = None,
) -> list[MailboxEntry]:
    """Read as `Mailbox.read` does, from any process. Open the file read-only. A missing file has no entries.

    Raise StorageError, also when a daemon died during a commit; the next daemon recovers the file. Raise CursorAheadError
    when `after` is above every cursor that the file ever used.
    """
    if not holds_pages(path):
        if after > 0:
            raise CursorAheadError(f"{path.name} is missing or empty, and so there is no cursor {after}.")
        return []
    conditions, values = ["mailbox = ?", "cursor > ?"], [mailbox, after]
    for column, value in (("agent", agent), ("session", session), ("in_reply_to", in_reply_to)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    values.append(max(1, min(limit, MAX_LIMIT)))
    with _open(path) as reader:
        if not reader.columns("mailbox"):
            return []
        sql = f"SELECT {_columns(reader)} FROM mailbox WHERE {' AND '.join(conditions)} ORDER BY cursor LIMIT ?"
        if after > 0:
            last = _last_cursor(reader)
            if after > last:
                raise CursorAheadError(f"cursor {after} is ahead of the mailbox, whose newest entry had {last}.")
        return [_entry(row) for row in reader.some(sql, values, column="content", budget=READ_BUDGET_CHARS)]


def cursor_before_last(path: Path, mailbox: str, count: int) -> int:
    """Return the cursor to read from to get the newest `count` (1 or more) entries of a mailbox. 0 means: from the first one.

    Open the file read-only. Raise StorageError.
    """
    if not path.exists():
        return 0
    with _open(path) as reader:
        if not reader.columns("mailbox"):
            return 0
        sql = "SELECT cursor FROM mailbox WHERE mailbox = ? ORDER BY cursor DESC LIMIT 1 OFFSET ?"
        row = reader.one(sql, (mailbox, count))
        return 0 if row is None else int(row["cursor"])


def mailbox_names(path: Path, limit: int) -> list[str]:
    """Return the names of the first `limit` mailboxes that hold an entry, sorted. Raise StorageError."""
    if not path.exists():
        return []
    names: list[str] = []
    with _open(path) as reader:
        if not reader.columns("mailbox"):
            return []
        while len(names) < limit:  # each step is one index lookup, however many entries a mailbox has
            row = reader.one(
                "SELECT min(mailbox) AS name FROM mailbox WHERE mailbox > ?", (names[-1] if names else "",)
            )
            if row is None or row["name"] is None:
                break
            names.append(row["name"])
    return names


def raise_cursors(path: Path, now_ms: int) -> None:
    """Raise a restored mailbox's cursors above every one that was used since its backup. Raise the errors of `open_owner`."""
    with open_owner(path, Role.MAILBOX) as db:
        _raise_cursors(db, now_ms)


def _raise_cursors(db: Writer, now_ms: int) -> None:
    """Make the next cursor the current epoch milliseconds plus one, or higher if the file is ahead of that.

    All used cursors are lower, because no mailbox gets a thousand entries a second for long.
    """
    floor = max(now_ms, _last_cursor(db))
    with db.transaction():
        db.execute("DELETE FROM sqlite_sequence WHERE name = 'mailbox'")
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('mailbox', ?)", (floor,))


def _last_cursor(db: Reader) -> int:
    """Return the highest cursor that the file ever used, also for an entry that retention deleted; 0 if none."""
    row = db.one("SELECT seq FROM sqlite_sequence WHERE name = 'mailbox'")
    return int(row["seq"]) if row is not None else 0


@contextmanager
def _open(path: Path) -> Generator[Reader]:
    """Open the file read-only. If a dead daemon left a commit unfinished, raise a StorageError that says how to finish it."""
    try:
        with open_reader(path) as reader:
            yield reader
    except ReadRaceError as error:
        raise StorageError(
            f"{path.name} holds a commit that a daemon did not finish.",
            hint="Start the daemon: it finishes the commit.",
        ) from error


def _put(db: Writer, entry: NewEntry) -> int:
    """Store an entry and the messages that it answers, unless it is a duplicate. Return its cursor."""
    fresh = db.execute(
        "INSERT INTO mailbox (mailbox, message_out_id, agent, session, in_reply_to, kind, thread_id, content,"
        " delivered_at, final, files) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (agent, session, message_out_id) DO NOTHING",
        (
            entry.mailbox,
            entry.message_out_id,
            entry.agent,
            entry.session,
            entry.in_reply_to,
            entry.kind,
            entry.thread_id,
            entry.content,
            entry.delivered_at,
            int(entry.final),
            entry.files,
        ),
    )
    row = db.one(
        "SELECT cursor FROM mailbox WHERE agent = ? AND session = ? AND message_out_id = ?",
        (entry.agent, entry.session, entry.message_out_id),
    )
    assert row is not None
    cursor = int(row["cursor"])
    if fresh:
        db.executemany(
            "INSERT INTO mailbox_replies (agent, session, message_id, cursor) VALUES (?, ?, ?, ?)",
            [(entry.agent, entry.session, message_id, cursor) for message_id in entry.replied],
        )
    return cursor


def _entry(row: sqlite3.Row) -> MailboxEntry:
    entry = MailboxEntry(**{name: row[name] for name in MailboxEntry.__dataclass_fields__})
    return entry if entry.final is True else replace(entry, final=bool(entry.final))


def _columns(reader: Reader) -> str:
    """Return the columns to select. A column that an older file lacks gets its default."""
    there = reader.columns("mailbox")
    final = _FINAL if _FINAL in there else f"1 AS {_FINAL}"
    return f"{_COLUMNS}, {final}, {_FILES if _FILES in there else f'NULL AS {_FILES}'}"
