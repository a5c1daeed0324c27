"""The daemon's data folder: checks it and its version, and locks it against a second daemon.

The folder is 0700: containers, which may run as other users, reach into it only through bind mounts, and a mount needs
no permission on the folders above it. The lock is flock(2), on the folder itself and on `clawbus.lock`. It is released when the
process ends, in whatever way, and no child inherits it. The lock file can be removed, but the folder cannot be removed without
the data; the file's lock keeps out earlier versions, which check no other. The file's text is only for people.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

from daemon.core.clock import Clock, SystemClock
from daemon.core.errors import DataFolderError, DataFolderLockedError
from schema.errors import SchemaTooNewError
from schema.instants import to_text
from schema.layout import CENTRAL_DB
from schema.migrate import VERSION
from schema.os_faults import hint_of, host_error, read_own_file

LOCK_NAME: Final = "clawbus.lock"
VERSION_NAME: Final = "clawbus.version"
INSTALL_NAME: Final = "install-id"
INSTALL_RECORD: Final = "install.json"
# What flock(2) answers for a folder where locks are emulated and need a descriptor that can write.
_NO_FOLDER_LOCKS: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSUP})
LOW_BYTES: Final = 64 * 1024**2  # less free space than this is reported as trouble, before writing fails
LOW_INODES: Final = 1000  # fewer free inodes than this are reported; a new session needs about ten
# How the names begin that a first start, an image build or an operator who puts an agent in place may leave before the
# version is written; `lost+found` is a new disk's.
_OURS: Final = (
    "clawbus.lock", "clawbus.version", "central.db", "mailbox.db", "sessions", "agents", "logs", "run", "wheels",
    "control.sock", "install-id", "install.json", "deploy", "lost+found",
)  # fmt: skip


class Layout:
    """The paths in a data folder, also for the command line. Nothing is opened, created or checked."""

    def __init__(self, root: Path) -> None:
        self.root: Final = root

    @property
    def central_db(self) -> Path:
        """The registry: sessions and incarnations."""
        return self.root / CENTRAL_DB

    @property
    def install_file(self) -> Path:
        """The install's id, beside central.db, so that it outlives it."""
        return self.root / INSTALL_NAME

    @property
    def install_record(self) -> Path:
        """Where the install's id was given, and on which engine its containers run (store/install.py)."""
        return self.root / INSTALL_RECORD

    @property
    def mailbox_db(self) -> Path:
        """Answers on the `local` channel."""
        return self.root / "mailbox.db"

    @property
    def sessions_dir(self) -> Path:
        """`<agent>/<session>/`: see schema.layout.SessionFolder."""
        return self.root / "sessions"

    @property
    def agents_dir(self) -> Path:
        """`<agent>/`: an agent group's own files, mounted at /workspace/agent."""
        return self.root / "agents"

    @property
    def logs_dir(self) -> Path:
        """clawbus.log and its predecessors."""
        return self.root / "logs"

    @property
    def run_dir(self) -> Path:
        """Files that matter only while something runs."""
        return self.root / "run"

    @property
    def wheels_dir(self) -> Path:
        """The wheels that image builds were made from, kept so that the next build needs no network."""
        return self.root / "wheels"

    @property
    def lock_file(self) -> Path:
        """Held by the daemon."""
        return self.root / LOCK_NAME


@dataclass(frozen=True, slots=True)
class Holder:
    """The process named in the lock file. `since` is a UTC time as text."""

    pid: int
    since: str


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """The room that this user has left on a file system. `inodes` is None where the file system does not count them."""

    bytes: int
    inodes: int | None
    read_only: bool

    @property
    def few_inodes(self) -> bool:
        """Whether new files will soon be refused, however many bytes are free."""
        return self.inodes is not None and self.inodes < LOW_INODES

    @property
    def is_low(self) -> bool:
        """Whether writing will soon fail."""
        return self.bytes < LOW_BYTES or self.few_inodes

    def __str__(self) -> str:
        """Return the text for people, which names what is short."""
        if self.few_inodes:
            return f"{self.inodes} inodes (new files; `df -i`) and {self.bytes // 1024**2} MiB are free"
        return f"{self.bytes // 1024**2} MiB are free"


def free_room(folder: Path) -> FreeRoom | None:
    """Return the free room on a folder's file system; None if it does not report it."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return FreeRoom(
        bytes=status.f_bavail * status.f_frsize,
        inodes=status.f_favail if status.f_files else None,
        read_only=bool(status.f_flag & os.ST_RDONLY),
    )


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
    def open(cls, path: Path, clock: Clock | None = None) -> Self:
        """Check, lock and, where it is new, make the folder and its subfolders (0700).

        A symbolic link to a folder is followed: moving the data to another disk is the operator's right.
        Raise DataFolderError, DataFolderLockedError or SchemaTooNewError, and then has changed no data.
        """
        root = path.absolute()
        locks: list[int] = []
        try:
            _make_or_check(root)
            check_ours(root, "Name an empty or a new folder with data_dir or --data.")
            locks.append(_lock_folder(root))
            locks.append(_take_lock(root))
            _check_version(root)
            _write_holder(locks[1], clock or SystemClock())
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

    def make_agents(self, names: Iterable[str]) -> None:
        """Create each agent's folder, where an operator puts its program, before the agent's first message."""
        for name in names:
            path = self.agents_dir / name
            try:
                path.mkdir(mode=0o755, exist_ok=True)
            except OSError as error:
                raise DataFolderError(f"{path} cannot be made: {error.strerror}.") from error

    def retake_lock(self, clock: Clock) -> bool:
        """Lock a new `clawbus.lock`, or a folder put in this one's place; return whether that was needed.

        Raise DataFolderLockedError when another process has locked a new one, DataFolderError or OSError.
        """
        if self._lock is None:
            return False
        if not _lies_at(self.root, self._folder_lock):
            folder_lock = _lock_folder(self.root)
            os.close(self._folder_lock)
            self._folder_lock = folder_lock
        if _lies_at(self.lock_file, self._lock):
            return False
        lock = _take_lock(self.root)
        _write_holder(lock, clock)
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


def read_holder(root: Path) -> Holder | None:
    """Return the process named in the lock file, for people only: a daemon that was killed leaves its name there."""
    try:
        loaded: object = json.loads(read_own_file(root / LOCK_NAME, 4096))
    except (OSError, ValueError):
        return None
    if not isinstance(loaded, dict):
        return None
    found = cast(Mapping[str, object], loaded)
    pid, since = found.get("pid"), found.get("since")
    return Holder(pid, since) if isinstance(pid, int) and isinstance(since, str) else None


def live_holder(root: Path) -> Holder | None:
    """Return the process that holds the folder now, or None if there is none that this process can see.

    Read the kernel's list of locks; do not try the lock: a daemon that starts at the same time must not find it taken.
    """
    written = read_holder(root)
    pid = _lock_owner(root, written.pid if written is not None else None)
    if pid is None or (written is not None and written.pid == pid):
        return written if pid is not None else None
    return Holder(pid, "an unknown time")


def _lock_owner(root: Path, written: int | None) -> int | None:
    """Return the pid that has the folder or its lock file locked, or None. `clawbus.lock` may be gone.

    Some file systems have another device number in the kernel's list than in stat(2); there only the `written` pid counts.
    """
    exact: set[str] = set()
    for path in (root, root / LOCK_NAME):
        try:
            status = path.stat()
        except OSError:
            continue
        exact.add(f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}")
    inodes = {one.rpartition(":")[2] for one in exact}
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in locks:  # `1: FLOCK  ADVISORY  WRITE 4711 08:01:131090 0 EOF` (proc_locks(5))
        parts = line.split()
        if len(parts) < 6 or parts[1] != "FLOCK" or not parts[4].isdigit():
            continue
        pid = int(parts[4])
        if pid > 0 and (parts[5] in exact or (pid == written and parts[5].rpartition(":")[2] in inodes)):
            return pid
    return None


def _make_or_check(root: Path) -> None:
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


def _lock_folder(root: Path) -> int:
    """Lock the folder itself and return its descriptor. Raise DataFolderLockedError or OSError.

    Some network file systems cannot lock a folder (flock(2)); there, `clawbus.lock` alone has to do.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _locked(root) from error
    except OSError as error:
        if error.errno not in _NO_FOLDER_LOCKS:
            os.close(descriptor)
            raise
    return descriptor


def _locked(root: Path) -> DataFolderLockedError:
    holder = live_holder(root) or read_holder(root)
    by = f"process {holder.pid}, since {holder.since}" if holder else "another process"
    return DataFolderLockedError(f"{root} is held by {by}.")


def _take_lock(root: Path) -> int:
    path = root / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _locked(root) from error
    except OSError as error:
        os.close(descriptor)
        raise DataFolderError(
            f"{path} cannot be locked: {error.strerror}.", hint="Put the data folder on a local disk."
        ) from error
    return descriptor


def _lies_at(path: Path, descriptor: int) -> bool:
    """Return whether `path` is still the file that the descriptor was opened on. The path may lead through a link."""
    try:
        found = path.stat(follow_symlinks=path.name != LOCK_NAME)
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


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


def _write_holder(lock: int, clock: Clock) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "since": to_text(clock.now_ms())}).encode(), 0)


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
