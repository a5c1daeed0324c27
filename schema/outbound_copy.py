"""Reads a container's outbound.db without locking it: copies the whole file at one instant and reads the copy.

Reports, `doctor` and backups use this. An ordinary reader's SHARED lock can make a commit fail in a runner of another make
that has no busy timeout. The file is hostile input, so the guards and limits of `open_outbound_reader` apply here too. A
copy that is not proved whole is thrown away.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeVar

from schema.copy_folder import copy_folder
from schema.errors import ReadRaceError, StorageError
from schema.handles import Reader
from schema.layout import OUTBOUND_DB
from schema.os_faults import host_error, in_container_folder, in_own_folder
from schema.outbound_file import open_outbound_bytes, open_outbound_reader
from schema.plain_file import ReadLimits, check_header, check_journal, lies_there, open_plain, refuse_wal
from schema.stamp import Stamp, StrandedJournalError, check_stamp, copy_stamped, take_stamp

T = TypeVar("T")

_MEMORY_BYTES: Final = 16 * 1024 * 1024
_STRANDED_S: Final = 0.1  # a journal that has no writer for this long belongs to a dead one
_FIRST_WAIT_S: Final = 0.001
_LONGEST_WAIT_S: Final = 0.02


def open_outbound_copy(folder: Path, limits: ReadLimits) -> Reader | None:
    """Return what `open_outbound_reader` returns, for a copy.

    Raise ReadRaceError when the runner kept writing for `limits.deadline_s`.
    """
    return _repeated(folder, limits, lambda guard, stamp: _read_copy(guard, folder / OUTBOUND_DB, stamp, limits))


def copy_outbound(folder: Path, target: Path, limits: ReadLimits) -> bool:
    """Copy outbound.db to `target`, which must not exist. Return False if the runner has not created the file yet.

    The copy is neither synced nor checked. Raise as `open_outbound_copy` does; `target` is then incomplete.
    """

    def copy(guard: int, stamp: Stamp) -> bool:
        _write_copy(guard, folder / OUTBOUND_DB, target, stamp)
        return True

    return bool(_repeated(folder, limits, copy))


def _repeated(folder: Path, limits: ReadLimits, work: Callable[[int, Stamp], T]) -> T | None:
    began, wait = time.monotonic(), _FIRST_WAIT_S
    ends, stranded = began + limits.deadline_s, began + min(limits.deadline_s, _STRANDED_S)
    while True:
        try:
            return _once(folder, limits, work)
        except StrandedJournalError:
            if time.monotonic() > stranded:
                raise
        except ReadRaceError:
            if time.monotonic() > ends:
                raise
        # Wait for a random time, so as not to fall into step with a runner that commits at regular intervals.
        time.sleep(wait * random.uniform(0.2, 1))  # noqa: S311
        wait = min(2 * wait, _LONGEST_WAIT_S)


def _once(folder: Path, limits: ReadLimits, work: Callable[[int, Stamp], T]) -> T | None:
    """Check the guards, then do the work while no writer is active. Return None if the file does not exist."""
    guard = open_plain(folder, OUTBOUND_DB)
    if guard is None:
        return None
    try:
        if not check_header(guard, limits, journal=lies_there(folder, f"{OUTBOUND_DB}-journal")):
            return None
        check_journal(folder, limits)
        refuse_wal(folder)
        with in_container_folder(f"{OUTBOUND_DB} cannot be looked at"):
            stamp = take_stamp(guard, folder / OUTBOUND_DB)
        return work(guard, stamp)
    finally:
        os.close(guard)


def _read_copy(guard: int, path: Path, stamp: Stamp, limits: ReadLimits) -> Reader | None:
    if stamp.size <= _MEMORY_BYTES:
        with in_container_folder(f"{OUTBOUND_DB} cannot be read"):
            data = os.pread(guard, stamp.size, 0)
            check_stamp(guard, path, stamp)
        if len(data) != stamp.size:
            raise ReadRaceError(f"{OUTBOUND_DB} could not be read whole.")
        reader = open_outbound_bytes(data, path, limits)
    else:
        reader = _large(guard, path, stamp, limits)
    if reader is not None:
        reader.file_id = f"{stamp.identity[0]}:{stamp.identity[1]}"
    return reader


def _large(guard: int, path: Path, stamp: Stamp, limits: ReadLimits) -> Reader | None:
    """Copy to a temporary file and open that. The file is unlinked before this returns, so that nothing is left behind."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(copy_folder())
        except OSError as error:
            raise host_error(error, f"{OUTBOUND_DB} cannot be copied") from error
        if shutil.disk_usage(made).free < 2 * stamp.size:
            raise StorageError(
                f"{OUTBOUND_DB} has {stamp.size} bytes, and {tempfile.gettempdir()} has no room to copy it.",
                hint="Set TMPDIR to a folder with more than twice as much room.",
            )
        copy = made / OUTBOUND_DB
        _write_copy(guard, path, copy, stamp)
        return open_outbound_reader(copy.parent, limits)


def _write_copy(guard: int, path: Path, copy: Path, stamp: Stamp) -> None:
    with in_own_folder(f"{copy.name} cannot be written"):
        made = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copy_stamped(guard, path, made, stamp)
        finally:
            os.close(made)
