"""Restores a backup of a whole data folder, in place of a folder that no daemon holds.

It checks every file of the backup before it begins. It never overwrites a data folder, but moves it aside. The caller makes
sure that no container still runs on the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from daemon.core.repair_errors import BackupNotVerifiedError, RestoreFailedError, RestoreRefusedError
from daemon.core.slots import STATE_FILE
from daemon.maintenance.backup import verify
from daemon.maintenance.folder_backup import FORMAT, MANIFEST, Tell
from daemon.maintenance.folder_files import Copied, CopiedFolder, copy_plain, hash_file
from daemon.store.data_layout import INSTALL_NAME, INSTALL_RECORD, Layout, restoring
from daemon.store.folder_lock import is_locked, lock_folder
from daemon.store.install import mark_restored
from daemon.store.mailbox import raise_cursors
from schema.errors import ClawbusError, SchemaTooNewError
from schema.instants import file_stamp
from schema.layout import INBOUND_DB, OUTBOUND_DB
from schema.os_faults import hint_of

_DATABASES: Final = ("central.db", "mailbox.db")
_SLOTS_MAX: Final = 1024**2


def read_manifest(backup: Path) -> tuple[list[Copied], list[CopiedFolder]]:
    """Return the files and the folders of a backup by its manifest; an older one names no folders. Raise RestoreRefusedError or BackupNotVerifiedError."""
    try:
        loaded = cast("object", json.loads((backup / MANIFEST).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RestoreRefusedError(
            f"{backup} is not a backup of a data folder: it has no {MANIFEST}.",
            hint="Name the folder that `clawbus backup` made.",
        ) from error
    except OSError as error:
        raise BackupNotVerifiedError(
            f"{backup / MANIFEST} cannot be read: {error.strerror}.", hint=hint_of(error.errno or 0)
        ) from error
    except ValueError as error:
        raise BackupNotVerifiedError(f"{backup / MANIFEST} is not JSON.") from error
    manifest = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}
    if manifest.get("format") != FORMAT:
        raise RestoreRefusedError(
            f"{backup} has format {manifest.get('format')!r}; this clawbus knows {FORMAT}.",
            hint="Use the version of clawbus that made it.",
        )
    try:
        files = [Copied(**one) for one in manifest["files"]]
        folders = [CopiedFolder(**one) for one in manifest.get("folders", ())]
    except (KeyError, TypeError) as error:
        raise BackupNotVerifiedError(f"{backup / MANIFEST} is damaged: {error}.") from error
    for path in (one.path for one in (*files, *folders)):
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise BackupNotVerifiedError(f"{MANIFEST} names {path!r}, which does not belong in a data folder.")
    return files, folders


def check_backup(backup: Path, files: list[Copied], tell: Tell) -> None:
    """Raise BackupNotVerifiedError unless every file is as it was copied, and every host database is sound."""
    for number, one in enumerate(files):
        tell(f"verify {one.path}", number, len(files))
        path = backup / one.path
        try:
            size, digest = hash_file(path)
        except OSError as error:
            raise BackupNotVerifiedError(f"{one.path} of the backup cannot be read: {error.strerror}.") from error
        if (size, digest) != (one.size, one.sha256):
            raise BackupNotVerifiedError(f"{one.path} of the backup is not as it was copied.")
        if _is_hosts_database(one.path):
            verify(path)


def _is_hosts_database(path: str) -> bool:
    """Return whether the host wrote it: an agent may give the same name to anything in its own folders."""
    parts = PurePosixPath(path).parts
    return path in _DATABASES or (len(parts) == 5 and parts[0] == "sessions" and parts[3:] == ("in", INBOUND_DB))


def restore_folder(backup: Path, data_dir: Path, now_ms: int, tell: Tell, *, replace: bool) -> dict[str, Any]:
    """Make `data_dir` from a backup. `replace`: move the existing folder aside first; the caller holds its lock.

    Returns {files, sessions, before}. Raise RestoreRefusedError, BackupNotVerifiedError or RestoreFailedError;
    then `data_dir` is unchanged.
    """
    files, folders = read_manifest(backup)
    check_backup(backup, files, tell)
    occupied = data_dir.is_dir() and any(data_dir.iterdir())
    if occupied and not replace:
        raise RestoreRefusedError(
            f"{data_dir} is not empty.",
            hint="Name another folder with --data, or use --replace to move the existing one aside.",
        )
    fresh = restoring(data_dir)
    before = _free_name(data_dir, now_ms) if data_dir.exists() else None
    lock = _begin(fresh, data_dir)
    try:
        _fill(backup, fresh, files, folders, now_ms, tell)
        _keep_slots(data_dir, fresh)
        _take_place(fresh, data_dir, before)
    except (ClawbusError, OSError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise _failed(data_dir, error, f"Fix that, remove {fresh} if it is still there, and repeat.") from error
    except KeyboardInterrupt:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    sessions = {PurePosixPath(one.path).parts[1:3] for one in files if one.path.startswith("sessions/")}
    return {
        "data_dir": str(data_dir),
        "files": len(files),
        "sessions": len(sessions),
        "before": str(before) if before is not None and occupied else None,
    }


def _begin(fresh: Path, data_dir: Path) -> int:
    """Make the folder that is to become the data folder, and lock it: who meets it knows whether a restore is at work.

    Return the lock. Raise RestoreRefusedError or RestoreFailedError.
    """
    try:
        fresh.mkdir(mode=0o700)
        return lock_folder(fresh, wait=True)
    except FileExistsError as error:
        if is_locked(fresh):
            raise RestoreRefusedError(
                f"another restore of {data_dir} is at work.", hint="Wait until it has ended; then repeat if need be."
            ) from error
        raise _failed(data_dir, error, f"An earlier restore was interrupted: remove {fresh}, and repeat.") from error
    except OSError as error:
        raise _failed(data_dir, error, "Fix that, and repeat.") from error


def _failed(data_dir: Path, error: ClawbusError | OSError, hint: str) -> RestoreFailedError:
    why = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) else str(error).rstrip(".")
    return RestoreFailedError(f"{data_dir} was not restored: {why}.", hint=hint)


def _fill(backup: Path, fresh: Path, files: list[Copied], folders: list[CopiedFolder], now_ms: int, tell: Tell) -> None:
    """Copy everything, and prepare what a restored folder needs. Raise ClawbusError or OSError."""
    for number, one in enumerate(files):
        tell(f"restore {one.path}", number, len(files))
        _put(backup, fresh, one)
    _open_folders(fresh)
    _restore_folders(fresh, folders)
    mark_restored(fresh / INSTALL_RECORD, _install_id(fresh))
    mailbox = Layout(fresh).mailbox_db
    if mailbox.is_file():
        with suppress(SchemaTooNewError):  # the backup is of a newer clawbus; this one does not start on it either
            raise_cursors(mailbox, now_ms)


def _keep_slots(data_dir: Path, fresh: Path) -> None:
    """Keep which slot serves: that belongs to this host, not to the backup. Else the slot that starts first would serve.

    Raise StorageError or OSError.
    """
    name = PurePosixPath(STATE_FILE)
    source = data_dir / name.parent
    if not (source / name.name).is_file():
        return
    (fresh / name.parent).mkdir(mode=0o700)
    copy_plain(source, name.name, fresh / name, STATE_FILE, max_bytes=_SLOTS_MAX)


def _take_place(fresh: Path, data_dir: Path, before: Path | None) -> None:
    """Put the folder in its place. Raise OSError; then what was there is there again."""
    try:
        if before is not None:
            data_dir.rename(before)
        fresh.rename(data_dir)
    except (OSError, KeyboardInterrupt):
        if before is not None and before.exists() and not data_dir.exists():
            before.rename(data_dir)
        raise


def _install_id(fresh: Path) -> str | None:
    try:
        return (fresh / INSTALL_NAME).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _put(backup: Path, fresh: Path, one: Copied) -> None:
    target = fresh / one.path
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = backup / one.path
    done = copy_plain(source.parent, source.name, target, one.path, max_bytes=one.size)
    if done is None or done.sha256 != one.sha256:
        raise BackupNotVerifiedError(f"{one.path} of the backup changed while it was restored.")
    target.chmod(one.mode)
    _own(target, one)


def _own(target: Path, one: Copied) -> None:
    """Give files back to the user that wrote them. Containers may use another user, and only root can do this."""
    if os.geteuid() != 0:
        return
    os.chown(target, one.uid, one.gid, follow_symlinks=False)
    if target.name == OUTBOUND_DB:
        os.chown(target.parent, one.uid, one.gid, follow_symlinks=False)
    # An older backup names no folders: the agent continues to write beside its old files.
    if one.uid != 0:
        for folder in list(target.parents)[: _folders_of_agent(PurePosixPath(one.path).parts)]:
            os.chown(folder, one.uid, one.gid, follow_symlinks=False)


def _folders_of_agent(parts: tuple[str, ...]) -> int:
    """Return how many of the folders above a file are the agent's own to write in."""
    if parts[0] == "agents":
        return len(parts) - 2
    if parts[0] == "sessions" and parts[3:4] == ("home",):
        return len(parts) - 4
    return len(parts) - 5 if parts[0] == "sessions" and parts[3:5] == ("out", "outbox") else 0


def _open_folders(fresh: Path) -> None:
    """Open in/ and out/ to the containers, which may use another user. Everything above stays private."""
    for session in fresh.glob("sessions/*/*"):
        for name in ("in", "out"):
            folder = session / name
            folder.mkdir(mode=0o755, exist_ok=True)
            folder.chmod(stat.S_IMODE(0o755))
    for folder in (
        *fresh.glob("agents/**/"),
        *fresh.glob("sessions/*/*/in/inbox/**/"),
        *fresh.glob("sessions/*/*/out/outbox/**/"),
        *fresh.glob("sessions/*/*/home/**/"),
    ):
        folder.chmod(0o755)


def _free_name(data_dir: Path, now_ms: int) -> Path:
    """Return a name for what is moved aside. It differs for each restore, even within one second."""
    stem = f"{data_dir.name}.before-restore-{file_stamp(now_ms)}"
    names = (stem + (f"-{number}" if number else "") for number in count())
    return next(path for name in names if not os.path.lexists(path := data_dir.with_name(name)))


def _restore_folders(fresh: Path, folders: list[CopiedFolder]) -> None:
    """Make the folders that hold no file, too, and give each its rights and, as root, its owner."""
    for one in folders:
        (fresh / one.path).mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in reversed(folders):  # the inner ones first: an outer one may then be closed to this user
        if os.geteuid() == 0:
            os.chown(fresh / one.path, one.uid, one.gid, follow_symlinks=False)
        (fresh / one.path).chmod(one.mode)
