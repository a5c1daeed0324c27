"""Keeps a side's own most recently used files open between operations. Each is used by one operation at a time.

The host keeps inbound.db, mailbox.db and central.db; the runner keeps outbound.db. Opening a file and parsing its schema
costs as much as a whole operation on it. The other side's file is opened for each read (`schema/connect.py` explains why).
A file that has changed since the last operation (replaced, truncated, restored, touched) is opened again, with all checks.
Each operation reads the file's pages again, as after an open, so that damage between two operations is noticed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from schema.handles import Writer

_CACHE_BYTES: Final = 128 * 1024  # page cache of each open file; one delivery batch changes less


class _Mark(NamedTuple):
    """A file's stat values at the end of our last operation. Times are the file system's, in nanoseconds."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class _Kept(NamedTuple):
    writer: Writer
    mark: _Mark


class FilePool:
    """Keeps at most `room` files open and closes the least recently used first. Methods may run in any thread."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._kept: dict[Path, _Kept] = {}
        # Close the files when this object is garbage-collected.
        weakref.finalize(self, _close_all, self._kept)

    @contextmanager
    def using(self, path: Path, opened: Callable[[], Writer]) -> Generator[Writer]:
        """Yield the open file, or the result of `opened`, for one operation at a time. Close it after an error."""
        db = self._take(path)
        if db is None:
            db = opened()
            db.bound_cache(_CACHE_BYTES)
        try:
            yield db
            db.forget_pages()
        except BaseException:
            db.close()  # this rolls back an unfinished transaction
            raise
        self._keep(path, db)

    def evict(self, path: Path) -> None:
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
    """Return the file's mark; None when the file is missing or empty."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not found.st_size:
        return None
    return _Mark(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
