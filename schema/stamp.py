"""A proof that a SQLite file was not written between two moments, without taking any lock on it.

A reader's SHARED lock fails the commit of a writer that has no busy time-out, and such a writer loses its row. What is read
here takes no lock; it counts only when the stamp taken before is still true afterwards.

A writer of a DELETE-mode file changes pages only while it holds an EXCLUSIVE lock, and with the commit it raises the change
counter at offset 24 (sqlite.org/fileformat2.html). So a read is sound if no process held that lock at its beginning or its end, and
the counter and the file's times are the same. A journal with content whose writer's RESERVED lock is not seen is a dead
writer's, or a living one's on the other side of a mount that passes no locks on: then nothing is read.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from schema.errors import ReadRaceError
from schema.frozen import frozen

_HEADER_BYTES: Final = 100
_COUNTER: Final = slice(24, 28)
_VERSIONS: Final = slice(18, 20)
_WAL: Final = b"\x02\x02"
_CHUNK: Final = 1024 * 1024
# SQLite's lock bytes (os.h): PENDING_BYTE, then RESERVED_BYTE, then the shared range. Start and length of each.
ALL_LOCKS: Final = (0x40000000, 512)
_RESERVED: Final = (0x40000001, 1)
_SHARED: Final = (0x40000002, 510)
_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class FileMovedError(ReadRaceError):
    """Another process wrote to the file while it was read without a lock. Discard what was read and read again."""


class StrandedJournalError(ReadRaceError):
    """A journal with content lies beside the file and no writer is at work: its writer died in a commit."""


@frozen
class Stamp:
    """Values that change with every write. `header` is the file's first 100 bytes."""

    header: bytes
    size: int
    modified_ns: int
    identity: tuple[int, int]

    @property
    def counter(self) -> bytes:
        """The file change counter, read now."""
        return self.header[_COUNTER]

    @property
    def wal(self) -> bool:
        """Whether the file is in WAL mode, where neither the counter nor a journal says anything."""
        return self.header[_VERSIONS] == _WAL


def take_stamp(descriptor: int, path: Path) -> Stamp:
    """Return the stamp of a file without a writer now. Raise FileMovedError or StrandedJournalError otherwise."""
    # The order matters: a writer that starts after this read of the header has changed it by the time of `check_stamp`.
    stamp = _stamp(descriptor)
    _refuse_writer(descriptor, path)
    return stamp


def check_stamp(descriptor: int, path: Path, stamp: Stamp) -> None:
    """Raise FileMovedError if the file was written since the stamp was taken."""
    _refuse_writer(descriptor, path)
    if _stamp(descriptor) != stamp or _identity(path) != stamp.identity:
        raise FileMovedError(f"{path.name} was written to while it was read.")


def copy_stamped(source: int, path: Path, target: int, stamp: Stamp) -> None:
    """Copy the file that was stamped into the empty file `target`. Raise FileMovedError as soon as another process writes."""
    offset = 0
    while offset < stamp.size:
        chunk = os.pread(source, min(_CHUNK, stamp.size - offset), offset)
        if not chunk or _stamp(source) != stamp:
            raise FileMovedError(f"{path.name} was written to while it was copied.")
        offset += len(chunk)
        left = memoryview(chunk)
        while left:
            left = left[os.write(target, left) :]
    check_stamp(source, path, stamp)


def lock_owner(descriptor: int, kind: int, where: tuple[int, int] = ALL_LOCKS) -> int | None:
    """Return the pid of a process whose lock would refuse one of this kind (F_RDLCK, F_WRLCK) on these bytes.

    Asks only. 0 for a process of another pid namespace; None if there is none, and on a file system without locks.
    """
    asked = struct.pack(_FLOCK, kind, os.SEEK_SET, *where, 0)
    try:
        found, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return None if found == fcntl.F_UNLCK else max(int(pid), 0)


def _refuse_writer(descriptor: int, path: Path) -> None:
    if lock_owner(descriptor, fcntl.F_RDLCK, _SHARED) is not None:
        raise FileMovedError(f"{path.name} is being written to.")
    hot = _is_hot(path.with_name(f"{path.name}-journal"))
    if hot and lock_owner(descriptor, fcntl.F_RDLCK, _RESERVED) is None:
        raise StrandedJournalError(f"{path.name}-journal holds a commit that was not finished.")


def _is_hot(journal: Path) -> bool:
    """Return whether a journal is hot, by SQLite's rule: one that is empty or starts with a zero byte has nothing to roll back."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.pread(descriptor, 1, 0) not in (b"", b"\x00")
    finally:
        os.close(descriptor)


def _stamp(descriptor: int) -> Stamp:
    # The header before the times: a write in between has changed the times.
    header = os.pread(descriptor, _HEADER_BYTES, 0)
    status = os.fstat(descriptor)
    return Stamp(header, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
