"""Handles errors from reading a session's files: quarantine it, retry, or end the container that blocks the files.

Polls, sweeps and the settling of exits all report their errors here, so that one rule applies to all.
"""

from __future__ import annotations

import structlog

from daemon.core.clock import Clock
from daemon.engine.held_files import HeldFiles
from daemon.engine.quarantine import Quarantine
from daemon.engine.session import Session
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.troubles import Troubles
from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    StorageError,
    UnusableFileError,
)

_RETRY_MS = 1000
_MAX_STRIKES = 3


class ReadTrouble:
    """Handles read errors. `limit_s`: seconds without a successful read after which the container is ended."""

    def __init__(
        self, clock: Clock, troubles: Troubles, schedule: Schedule, quarantine: Quarantine, held_files: HeldFiles,
        *, limit_s: float,
    ) -> None:  # fmt: skip
        self.troubles = troubles
        self.quarantine = quarantine
        self.held_files = held_files
        self._clock = clock
        self._schedule = schedule
        self._limit_s = limit_s
        self._log = structlog.get_logger("delivery")

    def handle(self, session: Session, error: ClawbusError, look: str) -> None:
        """Handle a failed read of the session's files: quarantine hostile or unusable files, retry transient errors.

        Missed deadlines are counted for each kind of read (`look`): one kind's success must not reset another's count.
        """
        context = {"agent": session.key.agent, "session": session.key.session, "code": error.code, "hint": error.hint}
        if isinstance(error, ReadDeadlineError):
            session.consecutive_timeouts[look] = session.consecutive_timeouts.get(look, 0) + 1
        if isinstance(error, UnusableFileError):
            self.quarantine.begin(session, f"{error} {error.hint}")
            return
        if isinstance(error, HostileFileError) or session.consecutive_timeouts.get(look, 0) >= _MAX_STRIKES:
            self.quarantine.begin(session, str(error))
            return
        if isinstance(error, FileBusyError):
            self.unreadable(session, error)
        passes = isinstance(error, FileBusyError | ReadDeadlineError | StorageError)
        level = self._log.warning if passes else self._log.error
        level("session_unreadable", error=str(error), **context)
        self._schedule.at(session.key, self._clock.now_ms() + _RETRY_MS)

    def unreadable(self, session: Session, error: ClawbusError) -> None:
        """Record that a lock or an unfinished commit blocks the files. If it lasts, end the container.

        The exit releases every lock, and then the journal can be recovered. Without this rule the session could be blocked
        forever: a ceiling cannot be checked while the files are unreadable.
        """
        now = self._clock.monotonic()
        if session.unreadable_since is None:
            session.unreadable_since, session.held_by = now, ()
        seconds = now - session.unreadable_since
        if seconds < self._limit_s or not self.held_files.has_container(session):
            return
        session.unreadable_since = now
        self.held_files.unreadable(session, seconds, error)
