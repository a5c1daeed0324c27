"""Reading the daemon's log file: its last lines across rotated files, and what is written next.

Read-only, and bounded: the end of a log of any size costs what is read of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

_BLOCK: Final = 65_536
_MAX_FILES: Final = 100


def last_lines(path: Path, count: int, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Return the last `count` wanted lines of `path` and its rotated predecessors (path.1, ...), oldest first."""
    found: list[bytes] = []
    for number in range(_MAX_FILES):
        file = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            with file.open("rb") as stream:
                for line in _backwards(stream):
                    if len(found) >= count:
                        return found[::-1]
                    if wanted(line):
                        found.append(line)
        except FileNotFoundError:
            if number > 0:
                break
    return found[::-1]


def _backwards(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines from the last to the first, without their line ends."""
    position = stream.seek(0, os.SEEK_END)
    rest = b""
    while position > 0:
        size = min(_BLOCK, position)
        position = stream.seek(position - size)
        block = stream.read(size) + rest
        rest, *lines = block.split(b"\n")
        yield from (line for line in reversed(lines) if line)
    if rest:
        yield rest


def follow(path: Path, *, sleep: Callable[[float], None] = time.sleep, pause_s: float = 0.2) -> Iterator[bytes]:
    """Yield new lines, across rotation, without end. Wait for a file that does not exist yet."""
    tail = _Tail(path)
    try:
        while True:
            lines = tail.read()
            yield from lines
            if not lines and not tail.renew():
                sleep(pause_s)
    finally:
        tail.close()


class _Tail:
    """The file that is being read, held open: what was written to it before a rotation is still read from it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._stream = _open(path)
        if self._stream is not None:
            self._stream.seek(0, os.SEEK_END)

    def read(self) -> list[bytes]:
        """Return the whole lines that came since the last call."""
        if self._stream is None:
            return []
        *lines, self._rest = (self._rest + self._stream.read(_BLOCK)).split(b"\n")
        return [line for line in lines if line]

    def renew(self) -> bool:
        """Go over to a new file at the path, if there is one and the old one is read to its end."""
        if self._stream is not None:
            if not _replaced(self._stream, self._path):
                return False
            if self._stream.peek(1):
                return True  # written between the last read and the rotation
            self._stream.close()
        self._rest = b""
        self._stream = _open(self._path)
        return self._stream is not None

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def _open(path: Path) -> BufferedReader | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _replaced(stream: BufferedReader, path: Path) -> bool:
    """Return whether `path` is another file now, or was cut."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(stream.fileno())
    return (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino) or now.st_size < stream.tell()
