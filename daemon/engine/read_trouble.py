"""What follows when a session's files cannot be read: a quarantine, another try, or the end of the container that is in the way.

Polls, sweeps and settled exits all bring their errors here, so that one rule holds for each of them.
"""

from __future__ import annotations

import structlog

from daemon.core.clock import Clock
from daemon.engine.held_files import HeldFiles
from daemon.engine.quarantine import Quarantine
from daemon.engine.sessions import Session
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
    """Built once. `limit_s` is how long no read may succeed before the container is ended."""

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
        """Handle a failed read of the session's files: quarantine what is hostile, retry what may pass.

        Strikes are counted by `look`: a file that is slow for one of them must not be excused by another one's success.
        """
        context = {"agent": session.key.agent, "session": session.key.session, "code": error.code, "hint": error.hint}
        if isinstance(error, ReadDeadlineError):
            session.strikes[look] = session.strikes.get(look, 0) + 1
        if isinstance(error, UnusableFileError):
            self.quarantine.begin(session, f"{error} {error.hint}")
            return
        if isinstance(error, HostileFileError) or session.strikes.get(look, 0) >= _MAX_STRIKES:
            self.quarantine.begin(session, str(error))
            return
        if isinstance(error, FileBusyError):
            self.unreadable(session, error)
        passes = isinstance(error, FileBusyError | ReadDeadlineError | StorageError)
        level = self._log.warning if passes else self._log.error
        level("session_unreadable", error=str(error), **context)
        self._schedule.at(session.key, self._clock.now_ms() + _RETRY_MS)

    def unreadable(self, session: Session, error: ClawbusError) -> None:
        """Note a lock or a half-written commit that keeps us from the files; if it lasts, end the container.

        Its exit frees every lock, and its journal may be recovered then. Without this rule it would stay for ever as it
        is: no ceiling can be judged over unreadable files.
        """
        now = self._clock.monotonic()
        if session.unreadable_since is None:
            session.unreadable_since, session.held_by = now, ()
        seconds = now - session.unreadable_since
        if seconds < self._limit_s or not self.held_files.has_container(session):
            return
        session.unreadable_since = now
        self.held_files.unreadable(session, seconds, error)
