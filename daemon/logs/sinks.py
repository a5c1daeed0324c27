"""The outputs for log lines: a file rotated by size, and standard error. Neither may stop the daemon or slow it for long.

A line that cannot be written is dropped and counted; the sink logs the count once it can write again. Nothing raises.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

# POLLOUT promises room for this much in a pipe (pipe(7), PIPE_BUF), so that a write of it does not block.
_CHUNK: Final = 4096
_PATIENCE_S: Final = 0.05


class Sink:
    """Counts what it could not write. Subclasses implement `_put`, which writes all of a line or raises OSError."""

    name = "sink"

    def __init__(self) -> None:
        self.dropped = 0  # lines dropped since the start
        self.failing = False
        self.reason = ""
        self._unreported = 0
        self._torn = False  # part of a line was written: the next one starts on a fresh line

    def write(self, line: bytes, recovered: Callable[[str, int, str], bytes]) -> None:
        """Write a line. After an outage, `recovered(name, count, reason)` makes the line that is written before it."""
        if self._unreported:
            line = recovered(self.name, self._unreported, self.reason) + line
        if self._torn:
            line = b"\n" + line
        try:
            self._put(line)
        except (OSError, ValueError) as error:  # ValueError: the stream object was closed
            self.dropped += 1
            self._unreported += 1
            self.failing, self.reason = True, str(error)
        else:
            self._unreported, self.failing, self._torn = 0, False, False

    def close(self) -> None:
        """Release what is held. Safe to call twice."""

    def _put(self, line: bytes) -> None:
        raise NotImplementedError

    def _write_all(self, descriptor: int, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
            self._torn = bool(rest)


class RotatingFile(Sink):
    """`path`, `path.1`, ... : at most `count` files of about `max_bytes` each, the current one included.

    Opened when first needed, and again when another program has moved it away. Mode 0600, its folder 0700.
    """

    name = "file"

    def __init__(self, path: Path, max_bytes: int, count: int) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes
        self._count = count
        self._descriptor: int | None = None
        self._inode: tuple[int, int] | None = None
        self._size = 0

    def close(self) -> None:
        """Sync and close; the next write would open again."""
        if self._descriptor is not None:
            with suppress(OSError):  # a full disk must not make an orderly end fail
                os.fsync(self._descriptor)
            self._drop()

    def _put(self, line: bytes) -> None:
        if self._descriptor is not None and self._moved():
            self._drop()
        if self._descriptor is not None and self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        descriptor = self._open() if self._descriptor is None else self._descriptor
        self._write_all(descriptor, line)
        self._size += len(line)

    def _open(self) -> int:
        # Never the folder above: a data folder that was moved away must be able to come back to its place.
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        status = os.fstat(descriptor)
        self._descriptor, self._size, self._inode = descriptor, status.st_size, (status.st_dev, status.st_ino)
        return descriptor

    def _moved(self) -> bool:
        try:
            status = self._path.stat()
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self._inode

    def _rotate(self) -> None:
        self._drop()
        for number in range(self._count - 1, 0, -1):
            source = self._numbered(number - 1)
            if source.exists():
                source.replace(self._numbered(number))
        if self._count == 1:
            self._path.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{self._path.name}.{number}")

    def _drop(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class StandardError(Sink):
    """Standard error. A reader that does not read (a paused pager, a stuck journal) costs lines, not the daemon."""

    name = "stderr"

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._descriptor = _descriptor_of(stream)

    def _put(self, line: bytes) -> None:
        if self._stream is None:
            return  # started without one: the file has it all
        if self._descriptor is None:
            self._stream.write(line.decode("utf-8", "replace"))
            self._stream.flush()
            return
        # While it fails, do not wait again for each line.
        deadline = time.monotonic() + (0.0 if self.failing else _PATIENCE_S)
        for start in range(0, len(line), _CHUNK):
            _await_room(self._descriptor, deadline)
            self._write_all(self._descriptor, line[start : start + _CHUNK])
            self._torn = start + _CHUNK < len(line)


def _descriptor_of(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _await_room(descriptor: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise BlockingIOError("nobody reads it")
