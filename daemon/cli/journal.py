"""Reads the daemon's events from the systemd journal with journalctl(1). Raises JournalError where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from daemon.core.errors import JournalError
from daemon.logs.journal_line import read_entry
from daemon.logs.render import json_line

PROGRAM: Final = "journalctl"
_KEPT: Final = 4096  # bytes of what it says on standard error
_END_S: Final = 2.0


def last_entries(unit: str, count: int, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Return the last `count` events of a systemd unit for which `wanted` is true, as JSON lines, oldest first."""
    found: list[bytes] = []
    if count <= 0:
        return found
    with _lines(unit, "--reverse") as lines:
        for line in lines:
            if wanted(line):
                found.append(line)
                if len(found) >= count:
                    break
    return found[::-1]


def follow_entries(unit: str) -> Iterator[bytes]:
    """Yield a systemd unit's new events as JSON lines. Never end by itself."""
    with _lines(unit, "--follow", "--lines=0") as lines:
        yield from lines


def _event(line: bytes) -> bytes | None:
    """Return the daemon's event in a line of journalctl's output, as a JSON line. None if the line holds none."""
    try:
        entry: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    event = read_entry(cast("dict[str, object]", entry)) if isinstance(entry, dict) else None
    return json_line(event).rstrip(b"\n") if event is not None else None


class _Complaints:
    """What a program writes to standard error: read to the end, so that it never waits for a reader, and kept in part."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._reader = threading.Thread(target=self._read, name="journalctl-errors", daemon=True)
        self._reader.start()

    def end(self) -> str:
        """Return the beginning of it as text. Call it when the program has ended."""
        self._reader.join(_END_S)  # a child of the program may hold the stream
        return self._kept.decode("utf-8", "replace").strip().rstrip(".")

    def _read(self) -> None:
        with self._stream:
            while piece := os.read(self._stream.fileno(), _KEPT):
                self._kept += piece[: _KEPT - len(self._kept)]


@contextmanager
def _lines(unit: str, *options: str) -> Generator[Iterator[bytes]]:
    """Run journalctl and give its events as JSON lines. Terminate it if the caller stops before the end."""
    command = [PROGRAM, f"--unit={unit}", "--output=json", "--all", "--no-pager", "--quiet", *options]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path("/")
        )
    except OSError as error:
        raise JournalError(f"{PROGRAM} cannot be started: {error.strerror}.") from error
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = _Complaints(process.stderr)
    ended = False
    try:
        yield (event for line in process.stdout if (event := _event(line)) is not None)
        ended = True
    finally:
        whole = ended and not process.stdout.read(1)  # the caller has read all output; only then the exit code counts
        process.stdout.close()
        if not whole:
            process.terminate()
        code = process.wait()
        complaint = complaints.end()
    if whole and code != 0:
        raise JournalError(f"{PROGRAM} failed: {complaint or f'exit code {code}'}.")
