"""Reads standard input as text. Bytes that are not UTF-8 raise a typed error; they are never replaced or guessed.

Each line is decoded on its own, so the lines before a bad one are read in full.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Final

from daemon.core.errors import ContentError

_HINT: Final = "Convert it first, for example with `iconv -t UTF-8`."


def read_text() -> str:
    """Return all of standard input. Raise ContentError if it is not UTF-8."""
    return "".join(read_lines())


def require_text(text: str) -> str:
    """Return a message's text. Raise ContentError if it is blank: an empty message would cost a turn."""
    if not text.strip():
        raise ContentError(
            "the message's text is empty (is a variable empty?).",
            hint="Write the text after `clawbus send`, or give `-` and write it to standard input.",
        )
    return text


def read_lines() -> Iterator[str]:
    """Yield the lines of standard input with their line ends. Raise ContentError at the first that is not UTF-8."""
    stream = sys.stdin
    raw = getattr(stream, "buffer", None)
    number = 0
    while True:
        number += 1
        line = _decoded(raw.readline(), number) if isinstance(raw, io.BufferedIOBase) else stream.readline()
        if not line:
            return
        yield line


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ContentError(f"line {number} of standard input is not UTF-8: {error}.", hint=_HINT) from error
