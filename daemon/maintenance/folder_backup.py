"""Backs up a whole data folder, with the daemon up or down. Each file is copied at one instant, and verified.

It reads only, in a process of its own, so that it drops no lock of the daemon. It copies a session's inbound.db first and
then its outbound.db: the copy may then have answers that the host has not taken note of, as after a crash, and never the
reverse. It gives a backup its name only when it is complete, and never writes into the data folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from daemon.core.repair_errors import BackupFailedError, BackupNotVerifiedError
from daemon.core.session_key import SessionKey
from daemon.maintenance.backup import copy_verified
from daemon.maintenance.folder_files import Copied, CopiedFolder, Found, copy_plain, copy_tree, described
from daemon.store.agent_folders import AgentFolders
from daemon.store.data_layout import INSTALL_NAME, INSTALL_RECORD, VERSION_NAME, Layout
from daemon.store.rebuild import found_sessions
from schema.connect import open_owner
from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    HostTroubleError,
    ReadDeadlineError,
    ReadRaceError,
    StorageError,
)
from schema.frozen import frozen
from schema.ids import session_folder
from schema.instants import to_text
from schema.layout import INBOUND_DB, OUTBOUND_DB, SENT_FILES, SessionFolder
from schema.migrate import Role
from schema.outbound_copy import copy_outbound
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_RACES: Final = 3
_RACE_S: Final = 0.05
_SMALL: Final = 1024**2

# Called with the session or file that is being copied, how many are done, and of how many.
Tell = Callable[[str, int, int], None]


@frozen
class FolderLimits:
    """Which of a container's files are copied.

    `read` bounds outbound.db, `max_bytes` and `max_files` out/outbox and each agent's folder, the last two home/.
    """

    read: ReadLimits
    max_bytes: int
    max_files: int
    home_bytes: int = 2 * 1024**3
    home_files: int = 100_000


@dataclass(slots=True)
class FolderBackup:
    """What was copied.

    `unverified`: container files that are not sound databases, copied byte by byte. `left_out`: links,
    special files and what is beyond the limits, by path.
    """

    path: Path
    taken_at: int
    sessions: int = 0
    files: list[Copied] = field(default_factory=list[Copied])
    folders: list[CopiedFolder] = field(default_factory=list[CopiedFolder])
    left_out: list[str] = field(default_factory=list[str])

    @property
    def unverified(self) -> list[str]:
        """Relative paths."""
        return [one.path for one in self.files if not one.verified]

    def report(self) -> dict[str, Any]:
        """Return the values that the command line shows."""
        return {
            "path": str(self.path),
            "taken_at": self.taken_at,
            "sessions": self.sessions,
            "files": len(self.files),
            "bytes": sum(one.size for one in self.files),
            "unverified": self.unverified,
            "left_out": self.left_out,
        }


def back_up_folder(
    data_dir: Path, target: Path, limits: FolderLimits, now_ms: int, tell: Tell, *, owner: bool = False
) -> FolderBackup:
    """Copy a data folder into `target`, a new folder (0700). `owner`: this process holds the data folder's lock.

    Raise BackupFailedError or BackupNotVerifiedError; then there is no `target`, and the data folder is as it was.
    """
    partial = _reserve(data_dir, target)
    found = FolderBackup(target, now_ms)
    try:
        for one in _copies(Layout(data_dir), partial, limits, found, tell, owner=owner):
            if isinstance(one, str):
                found.left_out.append(one)
            elif isinstance(one, CopiedFolder):
                found.folders.append(one)
            else:
                found.files.append(one)
        _write_manifest(partial, found)
        partial.rename(target)
        _sync_folder(target.parent)
    except BackupNotVerifiedError:
        _remove(partial)
        raise
    except (ClawbusError, OSError) as error:
        _remove(partial)
        why = error.strerror if isinstance(error, OSError) else str(error)
        hint = error.hint if isinstance(error, HostTroubleError) else None
        raise BackupFailedError(f"{data_dir} could not be backed up: {why}", hint=hint) from error
    except BaseException:
        _remove(partial)
        raise
    return found


def _copies(
    layout: Layout, into: Path, limits: FolderLimits, found: FolderBackup, tell: Tell, *, owner: bool
) -> Iterator[Found]:
    for name in (VERSION_NAME, INSTALL_NAME, INSTALL_RECORD):
        small = copy_plain(layout.root, name, into / name, name, max_bytes=_SMALL)
        if small is not None:
            yield small
    # Before the sessions: a session that is made meanwhile is found by its folder at the restored daemon's start.
    if layout.central_db.is_file():
        name = layout.central_db.name
        yield _database(layout.central_db, into / name, name, Role.CENTRAL, owner=owner)
    for agent in sorted(layout.agents_dir.iterdir()) if layout.agents_dir.is_dir() else ():
        relative = f"agents/{agent.name}"
        yield from copy_tree(agent, into / relative, relative, max_bytes=limits.max_bytes, max_files=limits.max_files)
    away = AgentFolders.of(layout).away()
    yield from (f"agents/{name} (its folder is away, or its disk is not mounted)" for name in away)
    keys = sorted(found_sessions(layout.sessions_dir)) if layout.sessions_dir.is_dir() else []
    for number, key in enumerate(keys):
        tell(str(key), number, len(keys))
        yield from _session(layout, key, into, limits, owner=owner)
        found.sessions += 1
    # After the sessions: of an answer that arrives meanwhile the copy has the entry without its receipt, and the restored
    # daemon's repetition is recognised. The other way round it would be lost.
    if layout.mailbox_db.is_file():
        name = layout.mailbox_db.name
        yield _database(layout.mailbox_db, into / name, name, Role.MAILBOX, owner=owner)
    tell("done", len(keys), len(keys))


def _session(layout: Layout, key: SessionKey, into: Path, limits: FolderLimits, *, owner: bool) -> Iterator[Found]:
    relative = f"sessions/{key.agent}/{session_folder(key.session)}"
    folder, copy = SessionFolder(layout.root / relative), SessionFolder(into / relative)
    for path in (copy.inbox, copy.outbox):
        path.mkdir(mode=0o700, parents=True)
    yield _database(folder.inbound_db, copy.inbound_db, f"{relative}/in/{INBOUND_DB}", Role.INBOUND, owner=owner)
    yield from _outbound(folder, copy, f"{relative}/out", limits)
    for source, target, name in (
        (folder.inbox / "inbox", copy.inbox / "inbox", "in/inbox"),
        (folder.outbox / "outbox", copy.outbox / "outbox", "out/outbox"),
        (folder.root / SENT_FILES, copy.root / SENT_FILES, SENT_FILES),
    ):
        yield from copy_tree(
            source, target, f"{relative}/{name}", max_bytes=limits.max_bytes, max_files=limits.max_files
        )
    yield from copy_tree(
        folder.home, copy.home, f"{relative}/home", max_bytes=limits.home_bytes, max_files=limits.home_files
    )


def _database(source: Path, target: Path, relative: str, role: Role, *, owner: bool) -> Copied:
    if owner and source.with_name(f"{source.name}-journal").exists():
        with open_owner(source, role, create=False):
            pass  # a daemon was killed in a commit; its owner rolls that back, and this process is it
    contents = copy_verified(source, target)
    return described(target, relative, source, rows=contents.rows)


def _outbound(folder: SessionFolder, copy: SessionFolder, relative: str, limits: FolderLimits) -> Iterator[Found]:
    """Copy outbound.db as hostile input: check it before SQLite sees it, copy its pages, check the copy the same way.

    A live container may be in mid-commit: it is asked again. What no runner writes is copied byte by byte, with its
    journal, and named as unverified: a restore brings back what was there, quarantine included. What is no plain file, or far
    too large, is named as left out.
    """
    path = f"{relative}/{OUTBOUND_DB}"
    for _ in range(_RACES):
        try:
            yield from _sound_outbound(folder, copy, path, limits.read)
        except (ReadRaceError, FileBusyError):
            time.sleep(_RACE_S)
        except (HostileFileError, ReadDeadlineError):
            break
        else:
            return
    for name in (OUTBOUND_DB, f"{OUTBOUND_DB}-journal"):
        copy.outbox.joinpath(name).unlink(missing_ok=True)
        found = copy_plain(
            folder.outbox, name, copy.outbox / name, f"{relative}/{name}",
            max_bytes=2 * limits.read.max_file_bytes, verified=False,
        )  # fmt: skip
        if found is not None or os.path.lexists(folder.outbox / name):
            yield found or f"{relative}/{name}"


def _sound_outbound(folder: SessionFolder, copy: SessionFolder, relative: str, limits: ReadLimits) -> list[Copied]:
    copy.outbound_db.unlink(missing_ok=True)
    if not copy_outbound(folder.outbox, copy.outbound_db, limits):
        return []
    checked = open_outbound_reader(copy.outbox, limits)
    if checked is None:
        raise HostileFileError(f"the copy of {OUTBOUND_DB} is empty.")
    with checked:
        found = [str(row[0]) for row in checked.all("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise HostileFileError(f"{OUTBOUND_DB}: {'; '.join(found)[:200]}")
        row = checked.one("SELECT count(*) FROM messages_out") if checked.columns("messages_out") else None
    _sync_file(copy.outbound_db)
    return [described(copy.outbound_db, relative, folder.outbound_db, rows=int(row[0]) if row is not None else 0)]


def _write_manifest(folder: Path, found: FolderBackup) -> None:
    manifest = {
        "format": FORMAT,
        "taken_at": to_text(found.taken_at),
        "sessions": found.sessions,
        "files": [one.as_json() for one in found.files],
        "folders": [one.as_json() for one in found.folders],
    }
    with (folder / MANIFEST).open("x", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _reserve(data_dir: Path, target: Path) -> Path:
    if os.path.lexists(target):
        raise BackupFailedError(f"{target} is there already.", hint="Name a new folder; nothing is overwritten.")
    if target.absolute().is_relative_to(data_dir.absolute()):
        raise BackupFailedError(f"{target} is inside the data folder.", hint="Name a folder outside the data folder.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        hint = f"If no other backup runs, remove it: `rm -r {partial}`."
        raise BackupFailedError(f"{partial} is there already: a backup runs, or was interrupted.", hint=hint) from error
    except OSError as error:
        raise BackupFailedError(f"{partial} cannot be made: {error.strerror}.") from error
    return partial


def _remove(folder: Path) -> None:
    import shutil  # noqa: PLC0415 - only when something went wrong

    shutil.rmtree(folder, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}.") from error
    finally:
        os.close(descriptor)
