"""Checks a file in a container's folder before SQLite opens it: that it is a plain file, and its header.

Nothing here follows a link or waits for a fifo. What only a container can have done is a HostileFileError; what this host
cannot do now is a StorageError (`schema/os_faults.py` tells them apart). Neither message contains a path.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from schema.errors import HostileFileError, ReadRaceError
from schema.frozen import frozen
from schema.layout import OUTBOUND_DB
from schema.os_faults import file_error, host_error, in_container_folder
from schema.second_names import has_second_name_below

_MAGIC: Final = b"SQLite format 3\x00"
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_DELETE_MODE: Final = b"\x01\x01"  # the file format's write and read version; 2 is WAL
# A journal has a header, and eight bytes more for each page than the database whose pages it keeps.
_JOURNAL_SLACK: Final = 16 * 1024**2


@frozen
class ReadLimits:
    """Limits for reading a container's file. Bytes and seconds.

    `max_row_bytes` bounds one row, `max_read_bytes` all rows of one query.
    """

    max_file_bytes: int = 512 * 1024 * 1024
    max_row_bytes: int = 4 * 1024 * 1024
    deadline_s: float = 2.0
    max_read_bytes: int = 64 * 1024 * 1024


def open_plain(folder: Path, name: str) -> int | None:
    """Open the plain file `name` in `folder` without following links; return None if nothing is there.

    Raise HostileFileError if it is something else or has a second link, StorageError if that is unknown.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error(error, f"{folder.name}/ cannot be opened") from error
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error(error, f"{name} cannot be opened", theirs=f"{name} is not a plain file") from error
    finally:
        os.close(parent)
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise file_error(error, f"{name} cannot be looked at") from error
    try:
        plain = stat.S_ISREG(status.st_mode) and not has_second_name_below(folder, status)
    except BaseException:
        os.close(descriptor)
        raise
    if not plain:
        os.close(descriptor)
        raise HostileFileError(f"{name} is not a plain file with a single link.")
    return descriptor


def lies_there(folder: Path, name: str) -> bool:
    """Return whether a container's folder has an entry of this name.

    Raise HostileFileError or StorageError if that is unknown. `os.path.lexists` would return False then, and a disk that
    fails would get a file past a check.
    """
    try:
        with in_container_folder(f"{name} cannot be looked at"):
            os.lstat(f"{folder}/{name}")
    except FileNotFoundError:
        return False
    return True


def _read(descriptor: int, count: int, offset: int, name: str) -> bytes:
    with in_container_folder(f"{name} cannot be read"):
        return os.pread(descriptor, count, offset)


def _size(descriptor: int, name: str) -> int:
    with in_container_folder(f"{name} cannot be read"):
        return os.fstat(descriptor).st_size


def check_header(guard: int, limits: ReadLimits, *, journal: bool) -> bool:
    """Return False if outbound.db is still empty; raise HostileFileError for one that no runner writes.

    `journal`: whether a journal lies beside it. If so, a header of zeros is a first transaction: raise ReadRaceError.
    """
    size = _size(guard, OUTBOUND_DB)
    if size == 0:
        return False
    if size > limits.max_file_bytes:
        raise HostileFileError(f"{OUTBOUND_DB} has {size} bytes; the limit is {limits.max_file_bytes}.")
    header = _read(guard, 100, 0, OUTBOUND_DB)
    if not any(header) and journal:
        raise ReadRaceError(f"{OUTBOUND_DB} is in its first transaction.")
    if not header.startswith(_MAGIC):
        raise HostileFileError(f"{OUTBOUND_DB} is not a SQLite database.")
    if header[18:20] != _DELETE_MODE:
        raise HostileFileError(f"{OUTBOUND_DB} is in WAL mode; the contract is journal_mode=DELETE.")
    return True


def check_recoverable(guard: int, limits: ReadLimits) -> None:
    """Raise HostileFileError unless a journal may be rolled back into this outbound.db."""
    size = _size(guard, OUTBOUND_DB)
    if size > limits.max_file_bytes:
        raise HostileFileError(f"{OUTBOUND_DB} has {size} bytes; the limit is {limits.max_file_bytes}.")
    header = _read(guard, 100, 0, OUTBOUND_DB)
    # Zeros: the very first transaction was interrupted, and its journal restores the empty file.
    if any(header) and (not header.startswith(_MAGIC) or header[18:20] != _DELETE_MODE):
        raise HostileFileError(f"{OUTBOUND_DB} is not a SQLite file in DELETE journal mode.")


def check_journal(folder: Path, limits: ReadLimits) -> bool:
    """Return whether a journal lies beside outbound.db. Raise HostileFileError for one that SQLite must not see.

    The end of a journal may name a super-journal, which SQLite would then open and even delete, wherever it is
    (its name, the name's length, a checksum and the magic: sqlite.org/fileformat2.html#the_rollback_journal).
    """
    name = OUTBOUND_DB + "-journal"
    descriptor = open_plain(folder, name)
    if descriptor is None:
        return False
    try:
        size = _size(descriptor, name)
        tail = _read(descriptor, 8, size - 8, name) if size >= 16 else b""
    finally:
        os.close(descriptor)
    # The magic at the start of every journal is not mistaken for it: of at least 16 bytes, the last 8 never include it.
    if tail == _JOURNAL_MAGIC:
        raise HostileFileError(f"{name} names a super-journal.")
    if size > limits.max_file_bytes + _JOURNAL_SLACK:
        raise HostileFileError(f"{name} has {size} bytes, more than the file that it could restore.")
    return True


def refuse_wal(folder: Path) -> None:
    """Raise HostileFileError when a write-ahead log or its index lies beside outbound.db.

    SQLite uses WAL mode if it finds a -wal file, whatever the header says, even for a read-only handle. It then maps
    the -shm file into memory (sqlite.org/walformat.html), and a container that truncates that file kills the daemon
    with SIGBUS. `connect` has a second guard against a change between this check and SQLite's open.
    """
    for suffix in ("-wal", "-shm"):
        if lies_there(folder, f"{OUTBOUND_DB}{suffix}"):
            raise HostileFileError(f"there is {OUTBOUND_DB}{suffix}; the contract is journal_mode=DELETE.")


def same_file(descriptor: int, wanted: os.stat_result) -> bool:
    """Return whether a descriptor of this process is open on the file `wanted`. Raise StorageError if that is unknown."""
    try:
        found = os.fstat(descriptor)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        raise host_error(error, "a descriptor cannot be examined") from error
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def drop_journal(folder: Path) -> None:
    """Remove a cold journal (empty, or with a zeroed header): SQLite found nothing to roll back in it."""
    try:
        (folder / (OUTBOUND_DB + "-journal")).unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise file_error(error, f"{OUTBOUND_DB}-journal cannot be removed") from error
