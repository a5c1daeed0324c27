"""A program's standard error: its end is kept for the turn's failure, and every line is logged while the turn runs.

A program that hangs, or that takes its container with it, never comes to report a failure: what the operator has then is
what was logged before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream

TAIL: Final = 8192
_LINE: Final = 1000
_LAST_WORDS: Final = 300
# What may be logged at once, and what is added to that each second: a program that floods must not push out the rest.
_BURST: Final = 64 * 1024
_PER_S: Final = 4096
# A prompt has no line end. It counts as a line once nothing has followed it for this long.
_PAUSE_S: Final = 1.0


class ErrorOutput:
    """Reads one program's standard error and hands its lines to `log`."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._line = bytearray()
        self._room = float(_BURST)
        self._at = 0.0
        self._skipped = 0

    async def read(self, stream: ByteReceiveStream) -> None:
        """Read to the end."""
        self._at = anyio.current_time()
        try:
            while True:
                with anyio.move_on_after(_PAUSE_S if self._line else float("inf")) as pause:
                    self._take(await stream.receive())
                if pause.cancelled_caught:
                    self._flush()
        except anyio.EndOfStream:
            pass
        finally:
            self._flush()

    def tail(self) -> str:
        """Return the last 8 KiB."""
        return b"".join(self._chunks)[-TAIL:].decode("utf-8", errors="replace")

    def _take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= TAIL:
            self._size -= len(self._chunks.popleft())
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line += line[:_LINE]
            self._flush()
        self._line += rest[: max(0, _LINE - len(self._line))]

    def _flush(self) -> None:
        line, self._line = bytes(self._line[:_LINE]), bytearray()
        text = line.decode("utf-8", errors="replace").strip()
        if not text:
            return
        now = anyio.current_time()
        self._room, self._at = min(float(_BURST), self._room + (now - self._at) * _PER_S), now
        if len(line) > self._room:
            self._skipped += 1
            return
        self._room -= len(line)
        if self._skipped:
            self._log(f"({self._skipped} lines were left out: too many at once)")
            self._skipped = 0
        self._log(text)


def last_words(tail: str) -> str:
    """Return the last line of stderr, which mostly is the reason, cut to the length of a report's line."""
    reason = own_reason(tail)
    return f" Its last words: {reason}" if reason else ""


def own_reason(tail: str) -> str | None:
    """Return the last line of stderr, or None if it wrote nothing."""
    lines = tail.strip().splitlines()
    return lines[-1][:_LAST_WORDS] if lines else None
