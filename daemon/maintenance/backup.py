"""Makes a verified backup of one SQLite file, and restores it. Repairs make one before they change anything.

A backup gets its name only when it is complete, checked and on disk; an interrupted one is a `.partial` file. This module
opens the source only through SQLite: closing any other descriptor of it would drop this process's locks. It never changes
the source of a backup, never overwrites a file, and calls no backup verified before it has read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.core.repair_errors import (
    BackupFailedError,
    BackupNotVerifiedError,
    RestoreFailedError,
    RestoreRefusedError,
)
from schema.connect import open_reader, open_still_reader
from schema.database_copy import copy_database, overwrite_database
from schema.errors import ClawbusError, FileBusyError
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import file_stamp
from schema.lockfree import Patience, copy_unlocked, uses_wal

SUFFIX: Final = ".sqlite"
_PARTIAL: Final = ".partial"
_SUFFIXES: Final = ("", "-journal", "-wal", "-shm")
_MAX_SAME_NAME: Final = 100
_PATIENCE: Final = Patience(seconds=2.0)

# Called with the step (`copy`, `verify`, `sync` or `restore`), the part of it that is done, and the whole. If it raises,
# the work stops.
Progress = Callable[[str, int, int], None]


@frozen
class Contents:
    """What a copy must have in common with its source. `tables` has the number of rows of each table, except virtual ones."""

    tables: Mapping[str, int]
    schema: tuple[tuple[str, str, str], ...]
    user_version: int
    broken_references: int  # rows that foreign_key_check names; a copy has as many as its source

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(self.tables.values())


# Copies the database at the first path into the empty file at the second, and returns the contents that it copied.
Copying = Callable[[Path, Path, Progress], Contents]


@frozen
class Backup:
    """A verified backup. `taken_at` is epoch milliseconds, `size` bytes."""

    path: Path
    source: Path
    taken_at: int
    size: int
    contents: Contents

    def report(self) -> dict[str, object]:
        """Return the values that the command line shows."""
        return {
            "path": str(self.path),
            "source": str(self.source),
            "bytes": self.size,
            "rows": self.contents.rows,
            "tables": dict(self.contents.tables),
            "verified": True,
        }


@frozen
class Restored:
    """A finished restore. `before` is a backup of the replaced content: restoring it undoes this restore."""

    target: Path
    backup: Path
    before: Backup
    contents: Contents


def back_up(
    source: Path, now_ms: int, *, purpose: str = "backup", folder: Path | None = None, progress: Progress | None = None,
    unlocked: bool = False,
) -> Backup:  # fmt: skip
    """Copy a database to `<source>.<purpose>-<UTC time>.sqlite` (0600) beside it or in `folder`; verify and sync the copy.

    One read transaction covers the copy and the row counts, so the backup of a file in use shows one instant. `unlocked`
    takes no lock: for another program's DELETE-mode file, whose commits would fail on our lock.

    Raise BackupFailedError or BackupNotVerifiedError; then there is no new file, and the source is unchanged.
    """
    partial, final = _reserve(folder or source.parent, f"{source.name}.{purpose}-{file_stamp(now_ms)}")
    return Backup(
        final,
        source,
        now_ms,
        *_make(source, partial, final, progress or _silent, copy=_copy_unlocked if unlocked else _copy),
    )


def copy_verified(source: Path, final: Path, *, progress: Progress | None = None) -> Contents:
    """Copy, verify and sync a database into `final`, in a folder that only the caller writes. Raise as `back_up` does.

    Take no lock if the source's writer soon pauses, because a lock of some seconds would delay the daemon's commits. The
    calling process must have no other connection to the source: that connection's locks would be dropped.
    """
    partial = final.with_name(final.name + _PARTIAL)
    if not _create(partial):
        raise BackupFailedError(f"{partial} exists already.")
    return _make(source, partial, final, progress or _silent, copy=_copy_gently)[1]


def verify(copy: Path, wanted: Contents | None = None, *, progress: Progress | None = None) -> Contents:
    """Check the integrity of a copy that nobody writes, compare it with `wanted` if given, and return its contents.

    Raise BackupNotVerifiedError, which names the difference.
    """
    tell = progress or _silent
    tell("verify", 0, 1)
    try:
        with open_still_reader(copy) as reader:
            _check_integrity(reader, copy)
            found = read_contents(reader)
    except BackupNotVerifiedError:
        raise
    except ClawbusError as error:
        raise BackupNotVerifiedError(f"{copy.name} cannot be read: {error}") from error
    if wanted is not None and found != wanted:
        raise BackupNotVerifiedError(f"{copy.name} differs from its source: {_difference(wanted, found)}.")
    tell("verify", 1, 1)
    return found


def restore(
    backup: Path, target: Path, now_ms: int, *, same: Callable[[Reader], object] | None = None,
    progress: Progress | None = None,
) -> Restored:  # fmt: skip
    """Write a backup's content into `target`, in one transaction, after a backup of the present content.

    The caller must be the target's only writer. `same` reads a value that a database has in common with its backups, such
    as an installation id. Raise RestoreRefusedError, RestoreFailedError, BackupFailedError or BackupNotVerifiedError; then
    the target is unchanged.
    """
    tell = progress or _silent
    if not backup.is_file() or backup.is_symlink():
        raise RestoreRefusedError(f"there is no backup {backup}.")
    if not target.is_file():
        raise RestoreRefusedError(
            f"{target} is not there.", hint="Copy the backup to that place; nothing is overwritten."
        )
    wanted = verify(backup, progress=tell)
    before = back_up(target, now_ms, purpose="before-restore", progress=tell)
    _refuse_foreign(backup, wanted, before, same)
    try:
        with open_still_reader(backup) as copy:
            overwrite_database(target, copy, lambda done, total: tell("restore", done, total))
    except ClawbusError as error:
        raise RestoreFailedError(f"{backup.name} was not put back: {error}", hint=error.hint) from error
    with open_reader(target) as reader, reader.snapshot():
        found = read_contents(reader)
    if found != wanted:
        raise RestoreFailedError(
            f"{target.name} differs from {backup.name} after the restore: {_difference(wanted, found)}.",
            hint=f"Another program writes to the file. End it, and repeat; {before.path.name} has the earlier content.",
        )
    return Restored(target, backup, before, found)


def read_contents(reader: Reader) -> Contents:
    """Return a database's contents. If the file is in use, call this inside `reader.snapshot()`. Raise the errors of any read."""
    rows = reader.all("SELECT type, name, coalesce(sql, '') AS sql, rootpage FROM sqlite_schema ORDER BY type, name")
    # A virtual table has no pages; it is counted through the ordinary tables that hold its content.
    counted = [row["name"] for row in rows if row["type"] == "table" and row["rootpage"]]
    version = reader.one("PRAGMA user_version")
    return Contents(
        tables={name: _count(reader, name) for name in counted},
        schema=tuple((row["type"], row["name"], row["sql"]) for row in rows),
        user_version=int(version[0]) if version is not None else 0,
        broken_references=_broken_references(reader),
    )


def _count(reader: Reader, table: str) -> int:
    quoted = table.replace('"', '""')
    row = reader.one(f'SELECT count(*) FROM "{quoted}"')
    return int(row[0]) if row is not None else 0


def _broken_references(reader: Reader) -> int:
    """Return the number of broken references; -1 if SQLite cannot check them, because a table or column does not exist."""
    try:
        row = reader.one("SELECT count(*) FROM pragma_foreign_key_check")
    except ClawbusError:
        return -1
    return int(row[0]) if row is not None else 0


def _check_integrity(reader: Reader, copy: Path) -> None:
    found = [str(row[0]) for row in reader.all("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise BackupNotVerifiedError(f"{copy.name}: the integrity check says: {'; '.join(found)[:500]}")


def _copy(source: Path, partial: Path, tell: Progress) -> Contents:
    try:
        with open_reader(source) as reader, reader.snapshot():
            copy_database(reader, partial, lambda done, total: tell("copy", done, total))
            return read_contents(reader)
    except ClawbusError as error:
        raise BackupFailedError(f"{source.name} could not be backed up: {error}") from error


def _copy_gently(source: Path, partial: Path, tell: Progress) -> Contents:
    """Copy without a lock. Take a lock if the source is written all the time, or is in WAL mode."""
    if not uses_wal(source):
        try:
            return _copy_unlocked(source, partial, tell, _PATIENCE)
        except BackupFailedError as error:
            if not isinstance(error.__cause__, FileBusyError):
                raise
        os.truncate(partial, 0)
    return _copy(source, partial, tell)


def _copy_unlocked(source: Path, partial: Path, tell: Progress, patience: Patience | None = None) -> Contents:
    """Copy the file's bytes. Call it only while no process writes to the file."""
    tell("copy", 0, 1)
    try:
        copy_unlocked(source, partial, patience)
        with open_still_reader(partial) as reader:
            contents = read_contents(reader)
    except ClawbusError as error:
        raise BackupFailedError(f"{source.name} could not be backed up: {error}") from error
    tell("copy", 1, 1)
    return contents


def _finish(partial: Path, final: Path, tell: Progress) -> None:
    """Sync the file, then rename it: a power cut leaves a whole backup or none."""
    tell("sync", 0, 1)
    try:
        _sync(partial, os.O_RDONLY)
        # link, not rename: rename would replace a file that another process has created under this name.
        os.link(partial, final)
        partial.unlink()
        _sync(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BackupFailedError(f"{final.name} could not be finished: {error.strerror}.") from error
    tell("sync", 1, 1)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(source: Path, partial: Path, final: Path, tell: Progress, *, copy: Copying) -> tuple[int, Contents]:
    """Make the backup `final`. Return its size in bytes and its contents. Leave nothing behind on an error."""
    try:
        wanted = copy(source, partial, tell)
        contents = verify(partial, wanted, progress=tell)
        _finish(partial, final, tell)
    except BaseException:
        for suffix in _SUFFIXES:
            with suppress(OSError):
                partial.with_name(partial.name + suffix).unlink(missing_ok=True)
        raise
    return final.stat().st_size, contents


def _create(partial: Path) -> bool:
    """Create the file (0600). Return False if it exists."""
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise BackupFailedError(f"{partial} cannot be created: {error.strerror}.") from error
    return True


def _reserve(folder: Path, stem: str) -> tuple[Path, Path]:
    """Create an empty `.partial` file (0600) under a free name. Return its path, and the path of the finished backup."""
    for number in range(_MAX_SAME_NAME):
        final = folder / f"{stem}{f'-{number}' if number else ''}{SUFFIX}"
        partial = final.with_name(final.name + _PARTIAL)
        if not os.path.lexists(final) and _create(partial):
            return partial, final
    raise BackupFailedError(f"{folder} holds {_MAX_SAME_NAME} backups of this name already.", hint="Remove old ones.")


def _refuse_foreign(backup: Path, wanted: Contents, before: Backup, same: Callable[[Reader], object] | None) -> None:
    """Raise RestoreRefusedError if the backup is of another database."""
    if {name for kind, name, _ in wanted.schema if kind == "table"}.isdisjoint(before.contents.tables):
        raise RestoreRefusedError(f"{backup.name} has no table in common with {before.source.name}.")
    if same is None:
        return
    with open_still_reader(backup) as old, open_still_reader(before.path) as current:
        if same(old) != same(current):
            raise RestoreRefusedError(f"{backup.name} is not a backup of {before.source}.")


def _difference(wanted: Contents, found: Contents) -> str:
    """Return the first difference, as the end of a sentence."""
    for table in sorted(wanted.tables.keys() | found.tables.keys()):
        expected, got = wanted.tables.get(table), found.tables.get(table)
        if expected != got:
            return f"{table} has {got} rows instead of {expected}"
    if wanted.broken_references != found.broken_references:
        return f"{found.broken_references} broken references instead of {wanted.broken_references}"
    return "its schema"


def _silent(_step: str, _done: int, _total: int) -> None:
    return
