"""Verification: reads the files of sessions that are idle, and records in central.db which of them hold nothing to report.

Reports and the sweep's full pass need not open those files again while they are unchanged (`daemon/store/verified_idle.py`).
A session is read once after it has become idle, and then once a day. It writes no session's file, and holds a session's lock for one read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import anyio
import structlog

from daemon.core.clock import Clock
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.inspect.idle_check import is_idle
from daemon.store.session_files import SessionFiles
from daemon.store.verified_idle import RENEW_MS, VALID_MS, Verified, stamp_of, take_stamp
from schema.errors import ClawbusError
from schema.os_faults import typed_host_errors
from schema.plain_file import ReadLimits

_PAGE: Final = 200
_FIRST_S: Final = 2.0
_INTERVAL_S: Final = 300.0  # a round costs four calls of lstat for each idle session
_ODD_MS: Final = 3_600_000
_BETWEEN_SESSIONS_S: Final = 0.005  # a quarter of a core, at most, while many sessions are new to it


class Verification:
    """Built by the composition root; `run` in one task."""

    def __init__(self, sessions: Sessions, limits: ReadLimits, clock: Clock) -> None:
        self._sessions = sessions
        self._limits = limits
        self._clock = clock
        self._log = structlog.get_logger("verification")
        # Idle sessions with something to report, or that could not be read: their files' marks, and when (epoch ms).
        self._odd: dict[SessionKey, tuple[str, int]] = {}

    async def run(self) -> None:
        """Verify soon after the start and then at every interval, until cancelled."""
        await anyio.sleep(_FIRST_S)
        while True:
            try:
                await self.verify()
            except ClawbusError as error:
                self._log.warning("verification_failed", code=error.code, error=str(error))
            await anyio.sleep(_INTERVAL_S)

    async def verify(self) -> int:
        """Read each idle session whose record is out of date, and return how many were recorded. Raise StorageError."""
        now = self._clock.now_ms()
        after: SessionKey | None = None
        recorded, idle = 0, set[SessionKey]()
        while True:
            page = await self._idle_page(after, now)
            idle.update(page)
            recorded += await self._verify_page(page, now)
            if len(page) < _PAGE:
                break
            after = page[-1]
        self._odd = {key: seen for key, seen in self._odd.items() if key in idle and now - seen[1] < _ODD_MS}
        return recorded

    async def _idle_page(self, after: SessionKey | None, now: int) -> list[SessionKey]:
        return await self._sessions.central(lambda registry: registry.idle_sessions(after, _PAGE, now + VALID_MS))

    async def _verify_page(self, page: list[SessionKey], now: int) -> int:
        if not page:
            return 0
        known = await self._sessions.central(lambda registry: registry.verified_idle(now, page[0], page[-1]))
        with typed_host_errors("the idle sessions cannot be examined"):
            wanted = await anyio.to_thread.run_sync(self._changed, page, known, now)
        found: list[Verified] = []
        for key in wanted:
            session = await self._sessions.look_up(key)
            if session is not None and not session.active and session.quarantined is None:
                found += await self._read(session)
            await anyio.sleep(_BETWEEN_SESSIONS_S)
        if found:
            await self._sessions.central(lambda registry: registry.record_verified(found))
        return len(found)

    def _changed(self, page: list[SessionKey], known: Mapping[SessionKey, Verified], now: int) -> list[SessionKey]:
        """Return the sessions that must be read. Opens no file."""
        changed: list[SessionKey] = []
        for key in page:
            stamp, record = stamp_of(self._sessions.folder, *key), known.get(key)
            if stamp is None or not stamp.is_settled or self._odd.get(key, ("",))[0] == stamp.text:
                continue
            if record is None or record.stamp != stamp.text or now - record.at >= RENEW_MS:
                changed.append(key)
        return changed

    async def _read(self, session: Session) -> list[Verified]:
        """Return the session's record, or nothing when it has something to report or cannot be read now."""
        key, now = session.key, self._clock.now_ms()
        log = self._log.bind(agent=key.agent, session=key.session)
        try:
            stamp, idle = await session.call(partial(check_files, session.files, self._limits, now))
        except ClawbusError:
            return []  # the operations on this session report what is wrong
        except Exception:  # one session's surprise must not keep the others from being recorded
            log.exception("verification_raised")
            return []
        if stamp is None:
            return []
        if not idle:
            self._odd[key] = stamp, now
            return []
        return [Verified(key.agent, key.session, now, stamp)]


def check_files(files: SessionFiles, limits: ReadLimits, now: int) -> tuple[str | None, bool]:
    """Return the files' marks, and whether the session is idle; (None, False) if they changed too recently.

    Synchronous; the caller holds the session's lock, or is the only process that works on the folder.
    """
    before = take_stamp(files.folder.root)
    if before is None or not before.is_settled:
        return None, False
    idle = is_idle(files.folder, limits, now)
    after = take_stamp(files.folder.root)
    return (before.text, idle) if after == before else (None, False)
