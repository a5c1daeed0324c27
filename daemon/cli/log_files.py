"""Reading the daemon's log file: its last lines across rotated files, and what is written next.

Read-only, and bounded: the end of a log of any size costs what is read of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_BLOCK: Final = 65_536
_MAX_FILES: Final = 100


def last_lines(path: Path, count: int, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """The last `count` wanted lines of `path` and its rotated predecessors (path.1, path.2, ...), oldest first."""
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
    """Lines from the last to the first, without their ends."""
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
    """Lines written from now on, across rotation; never ends. A file that is not there yet is waited for."""
    stream = _open_at_end(path)
    rest = b""
    while True:
        if stream is None:
            stream = _open(path)
        if stream is not None:
            rest += stream.read(_BLOCK)
            *lines, rest = rest.split(b"\n")
            yield from (line for line in lines if line)
            if lines:
                continue
            if _replaced(stream, path):
                # What was written between the last read and the rotation is still to be read from the old file.
                tail = (rest + stream.read()).split(b"\n")
                yield from (line for line in tail if line)
                stream.close()
                stream, rest = _open(path), b""
                continue
        sleep(pause_s)


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _open_at_end(path: Path) -> BinaryIO | None:
    stream = _open(path)
    if stream is not None:
        stream.seek(0, os.SEEK_END)
    return stream


def _replaced(stream: BinaryIO, path: Path) -> bool:
    """Whether `path` is another file now, or was cut."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(stream.fileno())
    return (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino) or now.st_size < stream.tell()
