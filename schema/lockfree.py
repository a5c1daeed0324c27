"""Reads and copies another program's DELETE-mode file without a lock. Retries until nobody wrote meanwhile.

The writer of such a file may have no busy time-out, so that even a short lock of ours would make its commit fail. This module
never locks or writes the file, returns nothing that was read during a write, and does not retry endlessly.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from schema.connect import open_memory_reader, open_still_reader
from schema.copy_folder import copy_folder
from schema.errors import FileBusyError, StorageError
from schema.frozen import frozen
from schema.handles import Reader
from schema.stamp import FileMovedError, Stamp, StrandedJournalError, check_stamp, copy_stamped, take_stamp

T = TypeVar("T")

_STRANDED_S: Final = 1.0  # a journal without a live writer for this long is stranded
_FIRST_WAIT_S: Final = 0.001
_LONGEST_WAIT_S: Final = 0.05
_WAL_CURE: Final = (
    "Try again at a quieter time, or cure it for good: stop the program that writes, run `sqlite3 FILE 'PRAGMA"
    " journal_mode=WAL'`, and start it again."
)


@frozen
class Patience:
    """How long to try, and how large a file may be to be copied into memory. Seconds and bytes."""

    seconds: float = 20.0
    memory_bytes: int = 32 * 1024 * 1024
    tries_in_place: int = 3  # tries to read a larger file in place, before it is copied into a temporary one


def uses_wal(path: Path) -> bool:
    """Return whether the file's header says WAL. Closes a descriptor of it, so this process must hold no lock on the file."""
    descriptor = _open(path)
    try:
        return os.pread(descriptor, 20, 0)[18:] == b"\x02\x02"
    finally:
        os.close(descriptor)


def read_unlocked(path: Path, work: Callable[[Reader], T], patience: Patience | None = None) -> T:
    """Return what `work` reads from the file at one instant. `work` may run several times and must only read.

    Raise FileBusyError when there was no quiet moment, StrandedJournalError, what opening raises, and what `work` raises.
    """
    allowed = patience or Patience()

    def attempt(descriptor: int, real: Path, stamp: Stamp, tries: int) -> T:
        if stamp.size > allowed.memory_bytes and tries < allowed.tries_in_place:
            return _in_place(descriptor, real, stamp, work)
        with _copied(descriptor, real, stamp, allowed) as reader:
            return work(reader)

    return _repeated(path, attempt, allowed)


def copy_unlocked(path: Path, target: Path, patience: Patience | None = None) -> None:
    """Copy the file as it is at one instant into `target`, an empty file of ours. Not synced. Errors as `read_unlocked`."""

    def attempt(descriptor: int, real: Path, stamp: Stamp, _tries: int) -> None:
        copy = os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            copy_stamped(descriptor, real, copy, stamp)
        finally:
            os.close(copy)

    _repeated(path, attempt, patience or Patience())


def _repeated(path: Path, attempt: Callable[[int, Path, Stamp, int], T], patience: Patience) -> T:
    began = time.monotonic()
    moved_at, tries = began, 0
    path = Path(os.path.realpath(path))  # where SQLite and the file's writer keep the journal
    descriptor = _open(path)
    try:
        while True:
            try:
                stamp = take_stamp(descriptor, path)
                return attempt(descriptor, path, stamp, tries)
            except StrandedJournalError:
                if time.monotonic() - moved_at > _STRANDED_S:
                    raise
            except FileMovedError as error:
                moved_at = time.monotonic()
                if moved_at - began > patience.seconds:
                    raise FileBusyError(
                        f"{path.name} was written to in each of {tries + 1} attempts to read it within"
                        f" {patience.seconds:g} s; no lock was taken, so as not to fail its writer's commits.",
                        hint=_WAL_CURE,
                    ) from error
            except OSError as error:
                raise StorageError(f"{path.name} cannot be read or copied: {error.strerror or error}.") from error
            tries += 1
            # Wait for a random time, so as not to fall into step with a writer that commits at regular intervals.
            time.sleep(min(_FIRST_WAIT_S * 2 ** min(tries, 8), _LONGEST_WAIT_S) * random.uniform(0.2, 1))  # noqa: S311
    finally:
        os.close(descriptor)


def _in_place(descriptor: int, path: Path, stamp: Stamp, work: Callable[[Reader], T]) -> T:
    try:
        with open_still_reader(path) as reader:
            result = work(reader)
    except Exception:
        check_stamp(descriptor, path, stamp)  # torn pages look like damage, and like anything else
        raise
    check_stamp(descriptor, path, stamp)
    return result


@contextmanager
def _copied(descriptor: int, path: Path, stamp: Stamp, patience: Patience) -> Generator[Reader]:
    """Return a reader of a copy that is proved consistent."""
    if stamp.size <= patience.memory_bytes:
        data = _bytes(descriptor, path, stamp)
        if stamp.wal:  # memory has no WAL; whoever reads such a file without a lock knows that its WAL is empty
            data = data[:18] + b"\x01\x01" + data[20:]
        with open_memory_reader(data, path) as reader:
            yield reader
        return
    with copy_folder() as folder:
        if shutil.disk_usage(folder).free < stamp.size * 2:
            raise StorageError(
                f"{path.name} has {stamp.size} bytes, and {tempfile.gettempdir()} has no room to copy it.",
                hint="Set TMPDIR to a folder with more than twice as much room.",
            )
        copy = folder / path.name
        target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_stamped(descriptor, path, target, stamp)
        finally:
            os.close(target)
        with open_still_reader(copy) as reader:
            yield reader


def _bytes(descriptor: int, path: Path, stamp: Stamp) -> bytes:
    data = os.pread(descriptor, stamp.size, 0)
    check_stamp(descriptor, path, stamp)
    if len(data) != stamp.size:
        raise FileMovedError(f"{path.name} could not be read whole.")
    return data


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{path.name} cannot be opened: {error.strerror}.") from error
