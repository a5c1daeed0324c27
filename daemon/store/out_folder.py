"""How much a container keeps in its out/ folder: a bounded look that follows no link and opens no file.

The folder lies on the host's disk, and no limit of a container bounds what it writes there.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schema.errors import HostileFileError

_MAX_DEPTH: Final = 32
_BLOCK: Final = 512  # the unit of st_blocks, whatever the file system's own is (stat(2))
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class OutLimits:
    """What a session's out/ folder may hold: bytes on disk (a hole costs none), and files and folders together."""

    max_bytes: int = 2 * 1024**3
    max_files: int = 100_000


def check_out_folder(folder: Path, limits: OutLimits) -> None:
    """Raise HostileFileError when the folder holds more than it may. It looks at no more entries than that.

    What vanishes or cannot be read meanwhile counts nothing: the container may be at work.
    """
    _Count(limits).add(folder)


class _Count:
    def __init__(self, limits: OutLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._files = 0

    def add(self, folder: Path) -> None:
        try:
            descriptor = os.open(folder, _FOLDER)
        except OSError:
            return
        try:
            self._walk(descriptor, 0)
        finally:
            os.close(descriptor)

    def _walk(self, descriptor: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise HostileFileError(f"out/ is nested deeper than {_MAX_DEPTH} folders.")
        folders: list[str] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                self._note(status)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
        for name in folders:
            try:
                inner = os.open(name, _FOLDER, dir_fd=descriptor)
            except OSError:
                continue
            try:
                self._walk(inner, depth + 1)
            finally:
                os.close(inner)

    def _note(self, status: os.stat_result) -> None:
        self._files += 1
        # A file with two names is found twice and is on the disk once.
        shared = 1 if stat.S_ISDIR(status.st_mode) else max(status.st_nlink, 1)
        self._bytes += status.st_blocks * _BLOCK // shared
        if self._files > self._limits.max_files:
            raise HostileFileError(
                f"out/ holds more than {self._limits.max_files} files (limits.max_out_folder_files)."
            )
        if self._bytes > self._limits.max_bytes:
            raise HostileFileError(
                f"out/ holds more than {self._limits.max_bytes} bytes (limits.max_out_folder_bytes)."
            )
