"""Standard output and standard error of the command line. A report that cannot be printed is never the deed's failure.

What the encoding cannot show is escaped. An error of the stream itself has its own type, so that no code takes a
file that cannot be read for an output that cannot be written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, Final, TextIO

from daemon.core.printable import one_line

_SHOWN: Final = 600  # characters of an answer that could not be printed: what was accepted is named in fewer
OUTPUT_LOST: Final = 74  # EX_IOERR of sysexits.h: the deed is done, its report could not be written


class OutputLostError(Exception):
    """Standard output cannot be written: a full disk, a closed descriptor, a reader that is gone. Never leaves `main`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"standard output cannot be written ({getattr(error, 'strerror', None) or error})")
        self.reader_left = isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE


class Output:
    """Standard output as rich and the commands write to it: a text stream whose every failure is OutputLostError."""

    def __init__(self) -> None:
        self._stream: TextIO = sys.stdout

    @property
    def encoding(self) -> str:
        """See TextIO."""
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        """See TextIO."""
        with _failing():
            return self._stream.write(text)

    def write_bytes(self, data: bytes) -> None:
        """Write bytes unchanged, after what was written before."""
        with _failing():
            self._stream.flush()
            self._stream.buffer.write(data)

    def flush(self) -> None:
        """See TextIO."""
        with _failing():
            self._stream.flush()

    def isatty(self) -> bool:
        """See TextIO."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """See TextIO."""
        return self._stream.fileno()


@contextlib.contextmanager
def _failing() -> Any:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: the stream was closed
        raise OutputLostError(error) from error


def prepare() -> None:
    """Give every stream a descriptor and a way to show any text. Called once, before anything else.

    Python has no stream for a descriptor that was closed (`>&-`); the next file that is opened must not take its
    number. Standard output then refuses every write, so that a lost answer is not mistaken for a delivered one.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shows(text: str) -> bool:
    """Return whether standard output's encoding has every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def give_up() -> None:
    """Drop what standard output still holds: Python would complain once more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(*lines: object) -> None:
    """Write lines to standard error, each made safe for a terminal. Ignore errors of the stream."""
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            sys.stderr.write(one_line(line) + "\n")
        sys.stderr.flush()


def lost(error: OutputLostError, answer: object = None, code: int = 0) -> int:
    """Give standard output up, and say so on standard error unless its reader chose to go; the exit code.

    `code` is the deed's own, which a lost report does not change but from 0 to OUTPUT_LOST.
    """
    give_up()
    if error.reader_left:
        return code
    told = json.dumps(answer, default=str)
    if len(told) > _SHOWN:
        told = f"{told[:_SHOWN]}... (and {len(told) - _SHOWN} more characters)"
    progress(f"error: {error}" + ("" if answer is None else f"; what was done stands, and the answer was: {told}"))
    return code or OUTPUT_LOST
