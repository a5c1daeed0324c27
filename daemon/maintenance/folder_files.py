"""Copies plain files into and out of a backup of a data folder: never through a link, with size, hash, mode and owner.

Some of the sources are hostile (a container's out/): everything is opened relative to its folder's descriptor, without
following links, and only plain files are copied, at most as many and as large as the limits say.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

from schema.errors import StorageError
from schema.frozen import frozen
from schema.os_faults import host_error, is_exhausted

_CHUNK: Final = 1024**2
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A process makes deeper nests and longer paths than a path can name (PATH_MAX is 4,096 bytes), step by step. These leave
# room for the folder before them, and for one descriptor and one call a level.
_MAX_DEPTH: Final = 100
_MAX_PATH: Final = 3000


@frozen
class Copied:
    """One file of a backup. Only a database has `rows`. `verified`: its content was checked as a database, or needs no check."""

    path: str
    size: int
    sha256: str
    mode: int
    uid: int
    gid: int
    verified: bool = True
    rows: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a row of the manifest."""
        return asdict(self)


@frozen
class CopiedFolder:
    """A folder below which files were copied, with the rights and the owner that it had."""

    path: str
    mode: int
    uid: int
    gid: int

    def as_json(self) -> dict[str, Any]:
        """Return a row of the manifest."""
        return asdict(self)


# What was copied, or the path of what was left out.
Found = Copied | CopiedFolder | str


def copy_file(source: int, target: Path, most: int) -> tuple[int, str]:
    """Copy at most the first `most` bytes of an open file into a new one (0600), synced. Returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := os.pread(source, min(_CHUNK, most - size), size):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(descriptor)
    return size, digest.hexdigest()


def hash_file(path: Path) -> tuple[int, str]:
    """Return the size and the SHA-256 of a plain file. Raise OSError."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while chunk := os.pread(descriptor, _CHUNK, size):
            digest.update(chunk)
            size += len(chunk)
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def copy_plain(
    folder: Path, name: str, target: Path, relative: str, *, max_bytes: int, verified: bool = True
) -> Copied | None:
    """Copy one plain file of a folder; None if there is none, or it is a link, a fifo or too large. Raise StorageError."""
    try:
        parent = os.open(folder, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}.") from error
    try:
        return _copy_entry(parent, name, target, relative, max_bytes, verified=verified)
    finally:
        os.close(parent)


def copy_tree(source: Path, target: Path, relative: str, *, max_bytes: int, max_files: int) -> Iterator[Found]:
    """Copy the folder and every plain file below it, as long as the limits allow: `max_files` counts folders, too.

    What is left out comes as its path: a link, a special file, what is beyond the limits, nested too deep, or has too
    long a path. The rest of a folder in which the limit was reached comes as `folder/*`.

    Raise StorageError or OSError for the target, and where this process may open no more files; nothing that a container can
    make in the source does.
    """
    if not os.path.lexists(source):
        return
    descriptor = _open_folder(source, None)
    if descriptor is None:
        yield relative
        return
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield _folder(descriptor, relative)
        yield from _Tree(max_bytes, max_files).copy(descriptor, target, relative, 0)
    finally:
        os.close(descriptor)


class _Tree:
    """One walk over a tree that others may change meanwhile, and what it may still copy."""

    def __init__(self, max_bytes: int, max_files: int) -> None:
        self._bytes = max_bytes
        self._files = max_files

    def copy(self, folder: int, target: Path, relative: str, depth: int) -> Iterator[Found]:
        # No more than may be copied, and one to know that there are more: a folder may hold millions of names.
        try:
            names = _names(folder, self._files + 1)
        except OSError as error:
            _refuse_exhausted(error, relative)
            yield f"{relative}/*"
            return
        for name, is_folder in sorted(names.items()):
            path = f"{relative}/{name}"
            if not self._files:
                yield f"{relative}/*"
                return
            self._files -= 1
            if len(os.fsencode(path)) > _MAX_PATH or (is_folder and depth >= _MAX_DEPTH):
                yield path
            elif is_folder:
                yield from self._folder(folder, name, target / name, path, depth)
            else:
                copied = _copy_entry(folder, name, target / name, path, self._bytes)
                self._bytes -= copied.size if copied is not None else 0
                yield copied or path

    def _folder(self, parent: int, name: str, target: Path, relative: str, depth: int) -> Iterator[Found]:
        descriptor = _open_folder(name, parent)
        if descriptor is None:
            yield relative
            return
        try:
            target.mkdir(mode=0o700)
            yield _folder(descriptor, relative)
            yield from self.copy(descriptor, target, relative, depth + 1)
        finally:
            os.close(descriptor)


def _names(folder: int, limit: int) -> dict[str, bool]:
    """Return the names of at most `limit` entries, and whether each is a folder. Raise OSError.

    A folder that changes during the listing may show a name twice (readdir(3) promises nothing); the result has it once.
    """
    with os.scandir(folder) as found:
        return {entry.name: entry.is_dir(follow_symlinks=False) for entry in islice(found, limit)}


def _refuse_exhausted(error: OSError, relative: str) -> None:
    """Raise StorageError where this process cannot open anything now: then nothing is wrong with the file."""
    if is_exhausted(error.errno):
        raise host_error(error, f"{relative} cannot be copied") from error


def _open_folder(path: Path | str, parent: int | None) -> int | None:
    """Return None when it is not a folder any more, or is not readable. Raise StorageError."""
    try:
        return os.open(path, _FOLDER, dir_fd=parent)
    except OSError as error:
        _refuse_exhausted(error, str(path))
        return None


def _folder(descriptor: int, relative: str) -> CopiedFolder:
    status = os.fstat(descriptor)
    return CopiedFolder(relative, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def _copy_entry(
    parent: int, name: str, target: Path, relative: str, max_bytes: int, *, verified: bool = True
) -> Copied | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError as error:
        _refuse_exhausted(error, relative)
        return None  # a link, or gone meanwhile
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        # No more than it had when it was judged: a writer that appends as fast as we copy would keep us copying forever.
        size, digest = copy_file(descriptor, target, status.st_size)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}.") from error
    finally:
        os.close(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    return Copied(relative, size, digest, mode, status.st_uid, status.st_gid, verified=verified)


def described(path: Path, relative: str, like: Path, *, rows: int) -> Copied:
    """Describe a database's copy as a row of the manifest, with the mode and owner of the original."""
    size, digest = hash_file(path)
    status = like.lstat()
    return Copied(relative, size, digest, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, rows=rows)
