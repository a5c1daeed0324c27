"""Deletes a session's folder: first renames it, then removes it, so that a crash in between leaves nothing half deleted.

Synchronous. The trash is beside the agents' folders, on the same file system, under a name that no agent can have. A container
wrote the content, so it may be a tree of any depth; links are never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.core.session_key import SessionKey
from daemon.store.data_layout import Layout
from daemon.store.mailbox_lives import forget_session
from daemon.store.registry import Registry
from schema.errors import ClawbusError
from schema.ids import session_path
from schema.os_faults import host_error

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_AT: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


def trash_of(sessions_dir: Path, deletion: str) -> Path:
    """Return where this deletion's folder is kept until it is removed."""
    return sessions_dir / f".trash-{deletion}"


def move_to_trash(sessions_dir: Path, key: SessionKey, deletion: str) -> None:
    """Move the session's folder to the trash. Do nothing when there is none. Raise StorageError."""
    folder = session_path(sessions_dir, key.agent, key.session)
    try:
        folder.rename(trash_of(sessions_dir, deletion))
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_error(error, f"{folder} cannot be put aside") from error
    _sync(folder.parent)
    _sync(sessions_dir)


def remove_trash(sessions_dir: Path, deletion: str) -> None:
    """Remove this deletion's folder from the trash. A repeated call continues with what is left. Raise StorageError."""
    path = trash_of(sessions_dir, deletion)
    try:
        descriptor = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_error(error, f"{path} cannot be removed") from error
    try:
        _empty(descriptor)
        path.rmdir()
    except OSError as error:
        raise host_error(error, f"{path} cannot be removed") from error
    finally:
        os.close(descriptor)


def finish_deletions(registry: Registry, sessions_dir: Path, now_ms: int) -> list[SessionKey]:
    """Finish the deletions that an earlier daemon began, before anything searches for sessions. Return the finished ones."""
    done: list[SessionKey] = []
    for deletion, key, moved in registry.open_deletions():
        with suppress(ClawbusError):  # the next start tries again; until then nothing takes the folder for a session
            if not moved:
                # What has the name beside a folder in the trash is a new session's.
                if not os.path.lexists(trash_of(sessions_dir, deletion)):
                    move_to_trash(sessions_dir, key, deletion)
                forget_session(Layout(sessions_dir.parent).mailbox_db, key, deletion)
                registry.deletion_moved(deletion, key)
            remove_trash(sessions_dir, deletion)
            registry.deletion_done(deletion, now_ms)
            done.append(key)
    return done


def _empty(root: int) -> None:
    """Remove a folder's content level by level: each subfolder's own folders are moved up before it is removed."""
    number = 0
    while names := os.listdir(root):
        for name in names:
            if not _is_folder(name, root):
                os.unlink(name, dir_fd=root)
                continue
            folder = _opened(name, root)
            try:
                for inner in os.listdir(folder):  # noqa: PTH208
                    if _is_folder(inner, folder):
                        number = _move_up(inner, folder, root, number)
                    else:
                        os.unlink(inner, dir_fd=folder)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=root)


def _move_up(name: str, folder: int, root: int, number: int) -> int:
    while True:
        number += 1
        try:
            os.rename(name, f".up-{number}", src_dir_fd=folder, dst_dir_fd=root)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return number


def _is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _opened(name: str, parent: int) -> int:
    """Open a folder so that it can be emptied, whatever its mode was."""
    handle = os.open(name, _LOOK_AT, dir_fd=parent)
    try:
        with suppress(PermissionError):  # another user owns it: try with the mode that it has
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, _FOLDER)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
