"""`install.json`: which installation a data folder is, where it is, and on which engine its containers run.

An id alone would be copied with the folder, and two folders would own each other's containers. So the id is valid only for the
folder that it was given to, identified by inode and birth time, which no copy shares. Synchronous; decides nothing about
containers.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, cast

from schema.errors import StorageError
from schema.frozen import frozen
from schema.os_faults import read_own_file

_AT_FDCWD: Final = -100
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_MAX_BYTES: Final = 65_536


@frozen
class Place:
    """A folder's identity in the file system. `born` is its birth time in nanoseconds, None if the file system has none.

    `sessions` is (device, inode) of the folder's sessions/, which may be a link to another disk.
    """

    path: str
    device: int
    inode: int
    born: int | None = None
    sessions: tuple[int, int] | None = None

    def is_same(self, other: Place) -> bool:
        """Return whether both are the same folder.

        It may have been moved on its disk, and its disk's number may have changed at a boot. A copy has another inode or birth
        time; a clone of the whole disk has another number and path.
        """
        if self.inode != other.inode or (None not in {self.born, other.born} and self.born != other.born):
            return False
        return self.device == other.device or (self.born is not None and self.path == other.path)


@frozen
class Engine:
    """What runs an installation's containers. `id` is its own (`docker info`), `host` how it was reached: for people."""

    kind: str
    id: str
    host: str = ""


@frozen
class Origin:
    """What a folder was copied or restored from, and when it became a separate installation (epoch ms)."""

    install_id: str
    path: str | None
    at: int


@frozen
class Install:
    """What `install.json` says. `place` is None in a restored folder that no daemon has started on.

    `given_up`: an operator says that the containers on record are gone for good (`clawbus install renew`).
    """

    install_id: str
    place: Place | None
    engine: Engine | None = None
    origin: Origin | None = None
    given_up: bool = False


class InstallFile:
    """Reads and writes the file. Only the holder of the data folder's lock may write."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Install | None:
        """Return the content. None without a valid file, as in a folder of an earlier version. Raise StorageError."""
        try:
            text = read_own_file(self._path, _MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}.") from error
        try:
            return _parsed(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, install: Install) -> None:
        """Replace the whole file. Raise StorageError."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600)  # whatever the umask: it says whose the containers are
                json.dump(asdict(install), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}.") from error

    def engine(self) -> Engine | None:
        """Return the engine on record. Raise StorageError."""
        found = self.read()
        return found.engine if found is not None else None

    def set_engine(self, engine: Engine, install_id: str) -> None:
        """Record the engine. Raise StorageError."""
        found = self.read() or Install(install_id, place_of(self._path.parent))
        if found.engine != engine:
            self.write(replace(found, engine=engine))


def is_copied(found: Install | None, root: Path) -> bool:
    """Return whether the folder's id was given to another folder. Raise StorageError."""
    return found is not None and (found.place is None or not found.place.is_same(place_of(root)))


def mark_restored(file: Path, install_id: str | None) -> None:
    """Mark a restored folder, before it is moved to its place: its first start makes it a separate installation."""
    kept = InstallFile(file)
    found = kept.read()
    if found is not None:
        # A folder that was restored but never started has no place; keep the record of where its original was.
        origin = found.place.path if found.place is not None else found.origin and found.origin.path
        kept.write(replace(found, place=None, origin=Origin(found.install_id, origin, 0)))
    elif install_id is not None:
        kept.write(Install(install_id, None, None, Origin(install_id, None, 0)))


def place_of(root: Path) -> Place:
    """Return this folder's place. Raise StorageError."""
    real = os.path.realpath(root)
    try:
        status = os.stat(real)  # noqa: PTH116 - beside statx
        sessions = os.stat(f"{real}/sessions") if os.path.isdir(f"{real}/sessions") else None  # noqa: PTH112, PTH116
    except OSError as error:
        raise StorageError(f"{root}: {error.strerror}.") from error
    inside = (sessions.st_dev, sessions.st_ino) if sessions is not None else None
    return Place(real, status.st_dev, status.st_ino, _birth(real), inside)


def _birth(path: str) -> int | None:
    """Return the birth time from statx(2), which the standard library lacks. The offsets are the kernel's (struct statx)."""
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, buffer) != 0:
        return None
    mask = int.from_bytes(buffer.raw[0:4], sys.byteorder)
    if not mask & _STATX_BTIME:
        return None
    # stx_btime is the second statx_timestamp: at 64 + 16; seconds (8 bytes), then nanoseconds (4).
    seconds = int.from_bytes(buffer.raw[80:88], sys.byteorder, signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(buffer.raw[88:92], sys.byteorder) or None


def _parsed(values: Any) -> Install:
    place, engine, origin = values.get("place"), values.get("engine"), values.get("origin")
    return Install(
        str(values["install_id"]),
        _place(place) if place is not None else None,
        Engine(**cast("dict[str, str]", engine)) if engine is not None else None,
        Origin(**cast("dict[str, Any]", origin)) if origin is not None else None,
        values.get("given_up") is True,
    )


def _place(values: Any) -> Place:
    inside = values.get("sessions")
    sessions = (int(inside[0]), int(inside[1])) if inside is not None else None
    return Place(str(values["path"]), int(values["device"]), int(values["inode"]), values.get("born"), sessions)
