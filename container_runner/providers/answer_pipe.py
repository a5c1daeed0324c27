"""The pipe on which a program reads the answers to its questions, one JSON line each.

Its standard input has ended by then, because programs read the turn to its end. The program finds the pipe by the path that
the turn names (`answers`).
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from typing import Final, Self

from container_runner.shared.errors import CannotStartError

_FOLDER: Final = "/dev/fd"


class AnswerPipe:
    """One program's pipe. Use as a context manager. `descriptor` is to be inherited; `path` is where the program opens it."""

    def __init__(self) -> None:
        """Create the pipe. Raise CannotStartError when this container has no descriptor left."""
        try:
            self.descriptor, self._writer = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise CannotStartError(f"a pipe for the program cannot be made: {error.strerror}.") from error
        os.set_blocking(self._writer, False)  # a program that reads no answers must not stop the runner

    @property
    def path(self) -> str:
        """The path for the program."""
        return f"{_FOLDER}/{self.descriptor}"

    def write(self, answer: object) -> bool:
        """Write one line. Return False when the program does not read them: the pipe is full or closed."""
        line = json.dumps(answer, ensure_ascii=True).encode() + b"\n"
        try:
            # A pipe takes up to PIPE_BUF bytes in one piece or not at all; a longer line may be cut, and the rest is lost.
            return os.write(self._writer, line) == len(line)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EPIPE):
                return False
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self.descriptor, self._writer):
            with suppress(OSError):
                os.close(descriptor)
