"""The lock that keeps a second daemon out of a data folder, and who holds it.

The lock is flock(2), on the folder itself and on `clawbus.lock`. It is released when the process ends, in whatever way, and no
child inherits it. The lock file can be removed, but the folder cannot be removed without the data; the file's lock keeps out
earlier versions, which check no other. The file's text is only for people.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from daemon.core.clock import Clock
from daemon.core.errors import DataFolderError, DataFolderLockedError
from daemon.store.data_layout import LOCK_NAME
from schema.frozen import frozen
from schema.instants import to_text
from schema.os_faults import passes, read_own_file

# What flock(2) answers for a folder where locks are emulated and need a descriptor that can write.
_NO_FOLDER_LOCKS: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSUP})


@frozen
class Holder:
    """The process named in the lock file. `since` is a UTC time as text; `is_daemon` is false for a command on the files."""

    pid: int
    since: str
    is_daemon: bool = True


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
    is_daemon = found.get("daemon") is not False  # an earlier release's daemon does not say what it is
    return Holder(pid, since, is_daemon) if isinstance(pid, int) and isinstance(since, str) else None


def live_holder(root: Path) -> Holder | None:
    """Return the process that holds the folder now, or None if there is none that this process can see.

    Read the kernel's list of locks; do not try the lock: a daemon that starts at the same time must not find it taken.
    """
    written = read_holder(root)
    pid = _lock_owner(root, written.pid if written is not None else None)
    if pid is None or (written is not None and written.pid == pid):
        return written if pid is not None else None
    return Holder(pid, "an unknown time", _serves(pid))


def _serves(pid: int) -> bool:
    """Return whether a process that could not write its name is a daemon, as one is that cannot be asked."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True
    return b"serve" in words


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


def lock_folder(root: Path, *, wait: bool = False) -> int:
    """Lock the folder itself and return its descriptor. Raise DataFolderLockedError, unless it waits, or OSError.

    Some network file systems cannot lock a folder (flock(2)); there, `clawbus.lock` alone has to do.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise _locked(root) from error
    except OSError as error:
        if error.errno not in _NO_FOLDER_LOCKS:
            os.close(descriptor)
            raise
    return descriptor


def is_locked(root: Path) -> bool:
    """Return whether a process has the folder itself locked. Only for a folder whose owner waits for its lock: this takes it for a moment."""
    try:
        os.close(lock_folder(root))
    except DataFolderLockedError:
        return True
    except OSError:
        return False
    return False


def take_lock(root: Path) -> int:
    """Lock the folder's `clawbus.lock` and return its descriptor. Raise DataFolderLockedError, DataFolderError or OSError."""
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


def _locked(root: Path) -> DataFolderLockedError:
    holder = live_holder(root) or read_holder(root)
    by = f"process {holder.pid}, since {holder.since}" if holder else "another process"
    return DataFolderLockedError(f"{root} is held by {by}.")


def lies_at(path: Path, descriptor: int) -> bool:
    """Return whether `path` is still the file that the descriptor was opened on. The path may lead through a link."""
    try:
        found = path.stat(follow_symlinks=path.name != LOCK_NAME)
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def write_holder(lock: int, clock: Clock, *, is_daemon: bool) -> None:
    """Write this process into the lock file, for people and for a standby, which ends no command.

    In place: what is freed on a full disk may not be had again. One that cannot write goes on all the same: a backup, and
    what makes room, must be possible there. Raise OSError.
    """
    text = json.dumps({"pid": os.getpid(), "since": to_text(clock.now_ms()), "daemon": is_daemon}).encode()
    try:
        os.pwrite(lock, text, 0)
        os.ftruncate(lock, len(text))
    except OSError as error:
        if not passes(error):
            raise
