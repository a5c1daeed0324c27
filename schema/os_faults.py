"""Whose failure an error of the operating system is: the container's, a peer's, or this host's.

A container can put a link, a fifo, a device or an endless nest where a file should be. It cannot use up this process's
descriptors, break the disk or fill the kernel's tables. So only a short list of errnos is evidence against it;
everything else, unknown errnos included, says that this host cannot do it now and should try again.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import stat
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, cast

from schema.errors import ClawbusError, HostileFileError, HostTroubleError, StorageError


class Fault(Enum):
    """Whose failure it is. ABSENT: the thing is not there, which its caller judges."""

    ABSENT = "absent"
    THEIRS = "theirs"
    PEER = "peer"
    HOST = "host"


# What open, stat and list answer for what only the owner of the folder can have put there.
_THEIRS: Final = frozenset(
    {
        errno.ELOOP,  # a symbolic link, where links are not followed
        errno.EMLINK,  # the same, as some systems report it
        errno.ENOTDIR,  # a link or a file, where a folder should be
        errno.EISDIR,
        errno.ENXIO,  # a socket, a fifo or a device without a driver
        errno.ENODEV,
        errno.ENAMETOOLONG,  # a nest deeper than a path can name
        errno.EOVERFLOW,  # larger than a size can say
    }
)
# What a connection's other end does. Nothing here is about this host's files.
_PEERS: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ESHUTDOWN,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
    }
)
# Not the disk: a resource of the process or the machine that has run out.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
# What passes by itself, whatever was asked for. A wrong right, argument or name does not.
_PASSING: Final = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT,
        errno.EINTR, errno.EDQUOT, errno.EBUSY, errno.EROFS, errno.ENOBUFS, errno.ENOLCK,
    }
)  # fmt: skip
# The resource that an errno reports as exhausted. The names are stable: repairs are chosen by them.
RESOURCES: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.EMFILE: "files",
        errno.ENFILE: "machine_files",
        errno.ENOMEM: "memory",
        errno.ENOBUFS: "memory",
        errno.EAGAIN: "processes",
    }
)
_RETRIES: Final = "the daemon keeps retrying."
_HINTS: Final[Mapping[int, str]] = {
    errno.EMFILE: "Raise the limit of open files (systemd: LimitNOFILE=, shell: ulimit -n); `ls /proc/PID/fd` shows"
    " what is open; " + _RETRIES,
    errno.ENFILE: "The whole machine is out of open files: raise `sysctl fs.file-max`, or end what holds them;"
    " " + _RETRIES,
    errno.ENOMEM: "Free memory on this machine, or raise the unit's MemoryMax=; " + _RETRIES,
    errno.EAGAIN: "Raise the limit of processes and threads (systemd: TasksMax=, shell: ulimit -u); " + _RETRIES,
    errno.ENOSPC: "Make room: `df -h` shows bytes and `df -i` inodes, either may be used up; " + _RETRIES,
    errno.EDQUOT: "The daemon's user has used up its disk quota (`quota`): raise it or make room; " + _RETRIES,
    errno.EIO: "The disk fails: check `dmesg`, and replace or remount it; " + _RETRIES,
    errno.ESTALE: "The network file system lost its server's handle: mount it again; " + _RETRIES,
    errno.ETIMEDOUT: "The file system does not answer in time: check its server and `dmesg`; " + _RETRIES,
    errno.EROFS: "Make the file system writable again (`mount` and `dmesg` say why it is not); " + _RETRIES,
    errno.EACCES: "Give the daemon's user access to the data folder again; " + _RETRIES,
    errno.EPERM: "Give the daemon's user access to the data folder again; " + _RETRIES,
}
# SQLite needs the database, its journal and the folder at once, and has closed them all again when it reports a failure.
_DESCRIPTORS_OF_SQLITE: Final = 4
# With fewer free than this, what SQLite could not open a moment ago failed for want of descriptors: other threads open and
# close theirs in between, so that a probe may succeed again.
_FEW_DESCRIPTORS: Final = 16
_READ_STEP_BYTES: Final = 1024**2
_READ_THROUGH_BYTES: Final = 1024**3
_THREADS: Final = "can't start new thread"


def fault_of(error: OSError) -> Fault:
    """Return who caused this error, for a file in a container's folder."""
    number = error.errno
    if number == errno.ENOENT:
        return Fault.ABSENT
    if number in _THEIRS:
        return Fault.THEIRS
    return Fault.PEER if number in _PEERS else Fault.HOST


def passes(error: BaseException) -> bool:
    """Return whether the operation may succeed later: the host lacks a resource, or a disk fails for a moment."""
    if isinstance(error, RuntimeError):
        return _THREADS in str(error)
    return isinstance(error, HostTroubleError | MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING)


def is_exhausted(number: int | None) -> bool:
    """Return whether this errno says that the process or the machine has run out of something that is not the disk."""
    return number in _EXHAUSTED


def host_error(error: OSError, what: str) -> StorageError:
    """Return the typed error for what this host cannot do now. `what` says what failed, without the reason."""
    number = error.errno or 0
    reason = error.strerror or str(error) or type(error).__name__
    if number in _EXHAUSTED:
        return _exhausted(f"{what}: {reason}.", number)
    return StorageError(f"{what}: {reason}.", hint=hint_of(number))


def _exhausted(text: str, number: int) -> HostTroubleError:
    return HostTroubleError(text, hint=hint_of(number), resource=RESOURCES.get(number))


def hint_of(number: int) -> str | None:
    """Return what an operator does about this errno, or None if only the general advice applies."""
    if number == errno.ENOBUFS:
        return _HINTS[errno.ENOMEM]
    return _HINTS.get(number)


def file_error(error: OSError, what: str, *, theirs: str | None = None) -> ClawbusError:
    """Return a HostileFileError with the text `theirs` if only a container can have caused this, else `host_error`'s error."""
    if fault_of(error) is Fault.THEIRS:
        return HostileFileError(f"{theirs or what}: {error.strerror}.")
    return host_error(error, what)


def as_host_error(error: BaseException, what: str) -> StorageError | None:
    """Return the typed error for an exception that says "this host cannot now", or None for any other.

    For the places that would otherwise call an unexpected exception a bug: out of descriptors, of memory, of threads.
    """
    if isinstance(error, StorageError):
        return error
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        inner = [as_host_error(one, what) for one in group.exceptions]
        return inner[0] if all(one is not None for one in inner) else None
    if isinstance(error, MemoryError):
        return _exhausted(f"{what}: out of memory.", errno.ENOMEM)
    if isinstance(error, RuntimeError) and _THREADS in str(error):
        return _exhausted(f"{what}: no thread can be started.", errno.EAGAIN)
    if isinstance(error, sqlite3.Error):
        return sqlite_host_error(error, what)
    # A library's own errors are often OSErrors without an errno (requests): they say nothing about this host.
    if isinstance(error, OSError) and error.errno is not None and fault_of(error) is not Fault.PEER:
        return host_error(error, what)
    return None


class typed_host_errors:  # noqa: N801 - used as a function
    """A context in which any exception that `as_host_error` knows comes out as its StorageError; all others pass."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, ClawbusError):
            return
        host = as_host_error(error, self._what)
        if host is not None:
            raise host from error


_SQLITE_HOST: Final = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOLFS,
    }
)
# Of these only a container's folder can be the cause.
_SQLITE_THEIRS: Final = frozenset({sqlite3.SQLITE_CANTOPEN_ISDIR, sqlite3.SQLITE_CANTOPEN_SYMLINK})


def sqlite_fault(code: int | None) -> Fault | None:
    """Return who caused an extended SQLite error code, if the code alone shows it. None: the file's content or its locks."""
    if code is None:
        return None
    if code in _SQLITE_THEIRS:
        return Fault.THEIRS
    return Fault.HOST if code & 0xFF in _SQLITE_HOST else None


def sqlite_host_error(error: sqlite3.Error, what: str, path: Path | None = None) -> StorageError | None:
    """Return the typed error if SQLite's error means that the host cannot do it now, or None for content and locks.

    SQLite hides the errno, so ask the kernel: about the folder of `path`, or without one about descriptors alone.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(code, int) or code & 0xFF not in _SQLITE_HOST:
        return None
    text = f"{what}: {error} ({getattr(error, 'sqlite_errorname', code)})"
    if code & 0xFF == sqlite3.SQLITE_NOMEM:
        return _exhausted(text, errno.ENOMEM)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return StorageError(text, hint=_HINTS[errno.ENOSPC])
    found = probe(path.parent if path is not None else Path("/"))
    if found is not None and path is None and found.errno not in _EXHAUSTED:
        found = None  # about another file system than the one that failed
    if found is None and code == sqlite3.SQLITE_CANTOPEN and _few_descriptors_left():
        found = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if found is None:
        return StorageError(text)
    if found.errno in _EXHAUSTED:
        return _exhausted(f"{text}: {found.strerror}.", found.errno or 0)
    return StorageError(f"{text}: {found.strerror}.", hint=hint_of(found.errno or 0))


def probe(folder: Path) -> OSError | None:
    """Open a folder now and return what the kernel says, and whether it has room for one more file.

    Never opens a file of SQLite's: closing any descriptor of one drops this process's locks on it.
    """
    opened: list[int] = []
    try:
        for _ in range(_DESCRIPTORS_OF_SQLITE):
            opened.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # noqa: PERF401 - keep what was opened before the failure
        room = os.statvfs(folder)
    except OSError as error:
        return error
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if room.f_files and not room.f_favail:
        return OSError(errno.ENOSPC, "no inodes are left on this file system (`df -i`)")
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if not room.f_bavail else None


def _few_descriptors_left() -> bool:
    """Return whether this process is close to its limit of open files. False where the kernel does not list what is open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return False
    try:
        opened = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError as error:
        return error.errno == errno.EMFILE
    return limit - sum(number < limit for number in opened) < _FEW_DESCRIPTORS


def read_through(path: Path) -> OSError | None:
    """Read a whole file now; return what the kernel says, or None if all of it, or enough, can be read.

    SQLite calls a read error corruption (SQLITE_IOERR_CORRUPTFS). Only for a file whose connection is given up: closing
    a descriptor of it drops this process's locks on it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error if fault_of(error) is Fault.HOST else None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        for at in range(0, _READ_THROUGH_BYTES, _READ_STEP_BYTES):
            if not os.pread(descriptor, _READ_STEP_BYTES, at):
                break
    except OSError as error:
        return error if fault_of(error) in (Fault.HOST, Fault.THEIRS) else None
    else:
        return None
    finally:
        os.close(descriptor)


class _Sorted:
    """A context in which an OSError becomes a typed error. ENOENT passes, for the caller to judge."""

    def __init__(self, what: str, *, theirs: bool) -> None:
        self._what = what
        self._theirs = theirs

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
            return
        make = file_error if self._theirs else host_error
        raise make(error, self._what) from error


def in_container_folder(what: str) -> _Sorted:
    """Raise HostileFileError or StorageError for an OSError inside, by whose failure it is; FileNotFoundError passes."""
    return _Sorted(what, theirs=True)


def in_own_folder(what: str) -> _Sorted:
    """Raise StorageError for an OSError inside; FileNotFoundError passes."""
    return _Sorted(what, theirs=False)


def read_own_file(path: Path, limit: int = -1, opener: Callable[[str, int], int] | None = None) -> bytes:
    """Return the content of a file of the host's own, at most `limit` bytes of it. Raise OSError.

    Python's files answer EAGAIN with None, which a caller could take for an invalid file
    (docs.python.org/3/library/io.html, RawIOBase.read).
    """
    with open(path, "rb", opener=opener) as file:
        content = cast("bytes | None", file.read(limit))
    if content is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
    return content
