"""`.heartbeat`: its modification time is the last progress of the turn. Never touched by a timer.

A heartbeat that cannot be written must not fail a turn: the host then judges the turn by the claim's age and logs that.
"""

from __future__ import annotations

import os
from pathlib import Path

from container_runner.logs import Logger
from container_runner.shared.own_rights import give_rights_back
from schema.layout import HEARTBEAT


class Heartbeat:
    """Touches one file. The agent program may write to the same folder, so symbolic links are not followed."""

    def __init__(self, out_folder: Path, log: Logger) -> None:
        self._path = out_folder / HEARTBEAT
        self._log = log
        self._failed = False

    def touch(self, at_ms: int | None = None) -> None:
        """Record progress made now, or at `at_ms` (epoch milliseconds). Never raise."""
        try:
            try:
                self._touch(at_ms)
            except OSError:
                if not give_rights_back(self._path.parent):
                    raise
                self._touch(at_ms)
        except OSError as error:
            if not self._failed:
                self._log.warning("heartbeat_failed", error=str(error))
            self._failed = True
        else:
            self._failed = False

    def _touch(self, at_ms: int | None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o644)
        try:
            if at_ms is None:
                os.utime(descriptor)
            else:
                os.utime(descriptor, ns=(at_ms * 1_000_000, at_ms * 1_000_000))
        finally:
            os.close(descriptor)
