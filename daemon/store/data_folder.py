"""The daemon's data folder: checks it and its version, and locks it against a second daemon (`folder_lock.py`).

The folder is 0700: containers, which may run as other users, reach into it only through bind mounts, and a mount needs
no permission on the folders above it. `data_layout.py` has its paths.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from daemon.core.clock import Clock, SystemClock
from daemon.core.errors import DataFolderError
from daemon.store.agent_folders import AgentFolders
from daemon.store.data_layout import VERSION_NAME, Layout, restoring
from daemon.store.folder_lock import is_locked, lies_at, lock_folder, take_lock, write_holder
from schema.errors import SchemaTooNewError
from schema.migrate import VERSION
from schema.os_faults import hint_of, host_error, read_own_file

# How the names begin that a first start, an image build or an operator who puts an agent in place may leave before the
# version is written; `lost+found` is a new disk's.
_OURS: Final = (
    "clawbus.lock", "clawbus.version", "central.db", "mailbox.db", "sessions", "agents", "logs", "run", "wheels",
    "control.sock", "install-id", "install.json", "deploy", "lost+found",
)  # fmt: skip


class DataFolder(Layout):
    """An open, locked data folder. `close()` releases the lock; so does the end of the process.

    `was_open` names what the group or others could read or write until now.
    """

    def __init__(self, root: Path, lock: int, folder_lock: int) -> None:
        super().__init__(root)
        self._lock: int | None = lock
        self._folder_lock = folder_lock
        self.was_open: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, clock: Clock | None = None, *, is_daemon: bool = False) -> Self:
        """Check, lock and, where it is new, make the folder and its subfolders (0700), for the daemon or for a command.

        A symbolic link to a folder is followed: moving the data to another disk is the operator's right.
        Raise DataFolderError, DataFolderLockedError or SchemaTooNewError, and then has changed no data.
        """
        root = path.absolute()
        locks: list[int] = []
        try:
            _make_or_check(root)
            check_ours(root, "Name an empty or a new folder with data_dir or --data.")
            locks.append(lock_folder(root))
            locks.append(take_lock(root))
            _check_version(root)
            write_holder(locks[1], clock or SystemClock(), is_daemon=is_daemon)
            folder = cls(root, locks[1], locks[0])
            _prepare(folder)
        except BaseException as error:
            for lock in locks:
                os.close(lock)
            if isinstance(error, OSError):
                host = host_error(error, f"{root} cannot be used")
                raise DataFolderError(str(host), hint=hint_of(error.errno or 0)) from error
            raise
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def used_at(self) -> int | None:
        """When its registry or mailbox was changed last, in epoch milliseconds; None for a new folder."""
        found: list[int] = []
        for path in (self.central_db, self.mailbox_db):
            with suppress(OSError):
                found.append(path.stat().st_mtime_ns // 1_000_000)
        return max(found, default=None)

    def make_agents(self, names: Iterable[str]) -> None:
        """Create each agent's folder, where an operator puts its program, before the agent's first message."""
        wanted, folders = tuple(names), AgentFolders.of(self)
        for name in wanted:
            try:
                folders.make_new(name)
            except OSError as error:
                raise DataFolderError(f"{folders.path(name)} cannot be made: {error.strerror}.") from error
        folders.forget_others(wanted)

    def retake_lock(self, clock: Clock) -> bool:
        """Lock a new `clawbus.lock`, or a folder put in the daemon's place; return whether that was needed.

        Raise DataFolderLockedError when another process has locked a new one, DataFolderError or OSError.
        """
        if self._lock is None:
            return False
        if not lies_at(self.root, self._folder_lock):
            folder_lock = lock_folder(self.root)
            os.close(self._folder_lock)
            self._folder_lock = folder_lock
        if lies_at(self.lock_file, self._lock):
            return False
        lock = take_lock(self.root)
        write_holder(lock, clock, is_daemon=True)
        os.close(self._lock)
        self._lock = lock
        return True

    def close(self) -> None:
        """Release the lock. Safe to call twice. The lock file stays: without it, two daemons could lock two files."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            os.ftruncate(lock, 0)
        finally:
            os.close(lock)
            os.close(self._folder_lock)


def _refuse_half_restored(root: Path) -> None:
    """Raise DataFolderError where a restore died or works: an empty folder in its place would begin anew."""
    fresh = restoring(root)
    if os.path.lexists(root) or not os.path.lexists(fresh):
        return
    if is_locked(fresh):
        raise DataFolderError(f"{root} is being restored now.", hint="Wait until that has ended, then repeat.")
    if not os.path.lexists(root):  # it may have taken its place meanwhile
        raise DataFolderError(
            f"{root} is not there, and {fresh} is: a restore of it was interrupted.",
            hint=f"Remove {fresh}, and repeat `clawbus restore`. A folder that was there before is beside it, as"
            f" {root.name}.before-restore-TIME: to go back to that, rename it.",
        )


def _make_or_check(root: Path) -> None:
    _refuse_half_restored(root)
    try:
        root.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise DataFolderError(f"{root} cannot be made: {error.strerror}.") from error
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise DataFolderError(f"{root} is not a folder.", hint="Set data_dir to a folder, or move that file away.")
    if status.st_mode & stat.S_IWOTH:
        raise DataFolderError(
            f"{root} can be written by everybody on this machine.", hint=f"Choose another one, or `chmod 700 {root}`."
        )
    if os.geteuid() == 0 and status.st_uid != 0:
        # Root could, but would leave files behind that the service's own user cannot open.
        raise DataFolderError(
            f"{root} belongs to the user with id {status.st_uid}, and this is root.",
            hint="Run it as that user (`sudo -u clawbus clawbus serve ...`, or `systemctl start clawbus`).",
        )
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise DataFolderError(f"{root} cannot be read and written by this user (id {os.geteuid()}).")


def check_ours(root: Path, hint: str) -> None:
    """Refuse a folder that is not a data folder, such as a home or a project named by mistake (`--data .`).

    Raise DataFolderError with this hint, or PermissionError.
    """
    if (root / VERSION_NAME).exists():
        return
    foreign = sorted(item.name for item in root.iterdir() if not item.name.startswith(_OURS))
    if foreign:
        raise DataFolderError(
            f"{root} is not a clawbus data folder and is not empty: it holds {', '.join(foreign[:3])}.",
            hint=hint,
        )


def _check_version(root: Path) -> None:
    try:
        text = read_own_file(root / VERSION_NAME).decode("ascii").strip()
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        text = ""
    if not text.isdecimal():
        raise DataFolderError(
            f"{root / VERSION_NAME} holds no version.",
            hint=f"Restore it from a backup; this clawbus writes {VERSION}.",
        )
    if int(text) > VERSION:
        raise SchemaTooNewError(f"{root} has version {text}; this clawbus knows {VERSION}.")


def _close_to_others(path: Path) -> bool:
    """Remove the permissions of group and others from one of our files or folders. Return False when there were none."""
    try:
        mode = stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return False
    if not mode & (stat.S_IRWXG | stat.S_IRWXO) or path.is_symlink():
        return False
    path.chmod(mode & stat.S_IRWXU)
    return True


def _close_all(folder: DataFolder) -> tuple[str, ...]:
    """Close folders and files to other users; return the names of those that were open.

    What lies in the folder does not depend on the rights of the folders above it, nor on an umask of long ago.

    Containers need none of it: they reach their session's folders and their agent's through mounts.
    """
    private = (folder.sessions_dir, folder.agents_dir, folder.logs_dir, folder.run_dir, folder.central_db)
    files = (folder.mailbox_db, folder.install_file, folder.lock_file, folder.root / VERSION_NAME)
    return tuple(path.name for path in (folder.root, *private, *files) if _close_to_others(path))


def _prepare(folder: DataFolder) -> None:
    for path in (folder.sessions_dir, folder.agents_dir, folder.logs_dir, folder.run_dir):
        path.mkdir(mode=0o700, exist_ok=True)
    folder.was_open = _close_all(folder)
    marker = folder.root / VERSION_NAME
    if marker.exists() and read_own_file(marker).decode("ascii").strip() == str(VERSION):
        return
    fresh = marker.with_name(f"{VERSION_NAME}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(f"{VERSION}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(marker)
