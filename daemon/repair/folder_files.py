"""Copies plain files into and out of a backup of a data folder: never through a link, with size, hash, mode and owner.

Some of the sources are hostile (a container's out/): everything is opened relative to its folder's descriptor, without
following links, and only plain files are copied, at most as many and as large as the limits say.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from schema.errors import StorageError

_CHUNK: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Copied:
    """One file of a backup. `rows` only of a database; `verified`: its content was checked as a database, or needs none."""

    path: str
    size: int
    sha256: str
    mode: int
    uid: int
    gid: int
    verified: bool = True
    rows: int | None = None

    def as_json(self) -> dict[str, Any]:
        """A row of the manifest."""
        return asdict(self)


def copy_file(source: int, target: Path) -> tuple[int, str]:
    """Copy an open file into a new one (0600), synced. Returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while chunk := os.pread(source, _CHUNK, size):
            digest.update(chunk)
            os.write(descriptor, chunk)
            size += len(chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a plain file. Raises OSError."""
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
    """Copy one plain file of a folder; None if there is none, or it is a link, a fifo or too large. Raises StorageError."""
    try:
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}.") from error
    try:
        return _copy_entry(parent, name, target, relative, max_bytes, verified=verified)
    finally:
        os.close(parent)


def copy_tree(source: Path, target: Path, relative: str, *, max_bytes: int, max_files: int) -> Iterator[Copied | str]:
    """Copy every plain file below a folder, as long as the limits allow. What is left out comes as its path: a link, a
    special file, what is beyond the limits."""
    left_bytes, left_files = max_bytes, max_files
    if not source.is_dir() or source.is_symlink():
        return
    for where, folders, files, descriptor in os.fwalk(source, follow_symlinks=False):
        below = Path(where).relative_to(source)
        (target / below).mkdir(mode=0o700, parents=True, exist_ok=True)
        folders.sort()
        for name in sorted(files):
            path = f"{relative}/{below.as_posix()}/{name}".replace("/./", "/")
            found = None
            if left_files > 0:
                found = _copy_entry(descriptor, name, target / below / name, path, left_bytes)
            if found is None:
                yield path
                continue
            left_files, left_bytes = left_files - 1, left_bytes - found.size
            yield found


def _copy_entry(
    parent: int, name: str, target: Path, relative: str, max_bytes: int, *, verified: bool = True
) -> Copied | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError:
        return None  # a link, or gone meanwhile
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        size, digest = copy_file(descriptor, target)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}.") from error
    finally:
        os.close(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    return Copied(relative, size, digest, mode, status.st_uid, status.st_gid, verified=verified)


def described(path: Path, relative: str, like: Path, *, rows: int) -> Copied:
    """A database's copy as a row of the manifest, with the mode and owner of what it was copied from."""
    size, digest = hash_file(path)
    status = like.lstat()
    return Copied(relative, size, digest, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, rows=rows)
