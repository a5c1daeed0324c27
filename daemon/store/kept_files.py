"""Files of our own that stay open between two operations: the most recently used ones, each in one operation's hands at a time.

To open a session's inbound.db and parse its schema costs as much as everything that an operation does in it. Only for files
that this daemon alone writes: a reader of the other side's file is opened for each look (`schema/connect.py` says why).
A file that is not what we left (replaced, truncated, restored, touched) is opened again, with every check of an opening.
Its pages are read again by each operation, as by an opening: one that was torn behind an operation's back is seen by the next.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from schema.connect import Writer

_CACHE_BYTES: Final = 128 * 1024  # of each open file's pages; a batch of a drain changes less


class _Mark(NamedTuple):
    """What a file looked like when we were done with it. Times are the file system's, in nanoseconds."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class _Kept(NamedTuple):
    writer: Writer
    mark: _Mark


class KeptFiles:
    """At most `room` open files; the one that was not used for longest is closed first. Methods may run in any thread."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._kept: dict[Path, _Kept] = {}
        # Whoever forgets this object leaves no file open behind it.
        weakref.finalize(self, _close_all, self._kept)

    @contextmanager
    def using(self, path: Path, opened: Callable[[], Writer]) -> Generator[Writer]:
        """Yield the open file, or what `opened` gives, for one operation at a time; close it after an error."""
        db = self._take(path)
        if db is None:
            db = opened()
            db.bound_cache(_CACHE_BYTES)
        try:
            yield db
            db.forget_pages()
        except BaseException:
            db.close()  # whatever it was in the middle of is undone with that
            raise
        self._keep(path, db)

    def let_go(self, path: Path) -> None:
        """Close the file if it is open and unused."""
        with self._lock:
            kept = self._kept.pop(path, None)
        if kept is not None:
            kept.writer.close()

    def _take(self, path: Path) -> Writer | None:
        with self._lock:
            kept = self._kept.pop(path, None)
        if kept is None or kept.mark == _mark(path):
            return None if kept is None else kept.writer
        kept.writer.close()
        return None

    def _keep(self, path: Path, writer: Writer) -> None:
        mark = _mark(path)
        surplus: list[Writer] = []
        with self._lock:
            if mark is None or path in self._kept:
                surplus.append(writer)
            else:
                self._kept[path] = _Kept(writer, mark)
                oldest = list(self._kept)[: max(len(self._kept) - self._room, 0)]
                surplus += [self._kept.pop(one).writer for one in oldest]
        for one in surplus:
            one.close()


def _close_all(kept: dict[Path, _Kept]) -> None:
    while kept:
        kept.popitem()[1].writer.close()


def _mark(path: Path) -> _Mark | None:
    """None when there is no file, or nothing in it."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not found.st_size:
        return None
    return _Mark(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
