"""Schedules sweeps: of every session with work at each interval, and of one session at once when its container exits.

Each session is swept in its own task with a timeout, so that a failing or slow session does not affect others.
`session_sweep.py` does the sweep itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup, TaskStatus

from daemon.config.models import Sweep as SweepConfig
from daemon.core.clock import Clock
from daemon.core.errors import UnknownSessionError
from daemon.core.events import SweepFinished
from daemon.core.session_key import SessionKey
from daemon.engine.events import Events
from daemon.engine.session_sweep import FAILED_RETRY_MS, SessionSweep
from daemon.engine.sessions import Sessions
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.troubles import SWEEP
from daemon.store.verified_idle import is_unchanged
from daemon.systemd.watchdog import Pulse
from schema.errors import ClawbusError, ReadDeadlineError

_CONCURRENT = 16
_SLOW = "its sweep did not end within sweep.session_timeout_s."
_FAILED_LATER_MS = 30_000  # even for a session that counts as idle: its trouble is reported until a sweep succeeds
_POSTPONED_S = 60.0
_PAGE = 20
_LONGEST_PAUSE_S = 60.0
_SPREAD = 0.5  # share of the interval over which sweeps are spread
_LONGEST_SPACING_S = 0.2


@dataclass(slots=True)
class LastSweep:
    """The last full tick's result, for `status`. `duration_ms` excludes the pauses between its sessions."""

    at: int | None = None
    duration_ms: int = 0
    sessions: int = 0
    errors: int = 0


class Sweeper:
    """Runs the sweeps. `poke` may be called from anywhere in the event loop."""

    def __init__(
        self,
        sessions: Sessions,
        one: SessionSweep,
        schedule: Schedule,
        clock: Clock,
        config: SweepConfig,
        pulse: Pulse,
        events: Events,
    ) -> None:
        self._sessions = sessions
        self._one = one
        self._schedule = schedule
        self._clock = clock
        self._config = config
        self._pulse = pulse
        self._events = events
        self.last = LastSweep()
        self._busy: dict[SessionKey, bool] = {}
        self._tasks: TaskGroup | None = None
        self._room = anyio.CapacityLimiter(_CONCURRENT)
        self._page: SessionKey | None = None
        self._jumped_at = 0  # the last jump of the wall clock that was acted on, epoch milliseconds
        self._log = structlog.get_logger("sweep")

    @property
    def clock_jump(self) -> dict[str, int] | None:
        """The last jump of the wall clock: {jumped_at (epoch ms), by_ms (ms)}; None if there was none."""
        return {"jumped_at": self._one.wall.floor, "by_ms": self._one.wall.by_ms} if self._one.wall.floor else None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Tick until cancelled. Report as started once `poke` works."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._full_passes, name="full pass")
                task_status.started()
                interval_s, spread_s = self._config.interval_s, 0.0  # right after the start, do not delay waiting work
                while True:
                    began = self._clock.monotonic()
                    await self.tick(spread_s)
                    spread_s = interval_s * _SPREAD
                    await self._pause(interval_s - min(self._clock.monotonic() - began, spread_s))
        finally:
            self._tasks = None  # while the daemon stops, other tasks still run and may call `poke`

    async def tick(self, spread_s: float = 0.0) -> None:
        """Sweep every session with work. Their starts are spread over up to `spread_s` seconds.

        If they all started together, the sweeps of fifty busy sessions would delay every message by most of a second.
        """
        started = self._clock.monotonic()
        self._pulse.beat("sweep")
        await self._look_at_registry()
        await self._look_at_clock()
        await self._one.make_scheduled()
        errors = 0
        active = [session.key for session in self._sessions]
        # A session whose work failed may not be active, or not exist: without a sweep its trouble would outlive its cause.
        keys = list(dict.fromkeys([*active, *self._sessions.troubles.all()]))

        async def one(key: SessionKey) -> None:
            nonlocal errors
            if not await self.sweep(key):
                errors += 1
            self._pulse.beat("sweep")

        spacing = min(spread_s / max(len(keys), 1), _LONGEST_SPACING_S)
        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(one, key, name=f"sweep {key}")
                if spacing:
                    await anyio.sleep(spacing)
        # Pauses are not work; subtract them from the duration.
        took_s = max(self._clock.monotonic() - started - spacing * len(keys), 0.0)
        self.last = LastSweep(self._clock.now_ms(), int(took_s * 1000), len(keys), errors)
        self._events.publish(SweepFinished(self._clock.now_ms(), len(keys), errors, took_s))

    async def _look_at_registry(self) -> None:
        """Notice and rebuild a registry that vanished, even when nothing else uses it. Check the disk's free space too."""
        await self._sessions.storage.look()
        try:
            # After a failure, try a full operation: stat may work where opening the file does not.
            failing = self._sessions.storage.problem is not None
            await self._sessions.central(lambda registry: registry.probe() if failing else registry.check())
            await self._sessions.register_made()
        except ClawbusError as error:
            self._log.error("registry_unusable", code=error.code, error=str(error), hint=error.hint)

    async def _look_at_clock(self) -> None:
        """After the clock was set back, look at the idle sessions that wait for a time: it may be one of the other clock."""
        jumped_at = self._one.wall.look(self._clock)
        if jumped_at == self._jumped_at or self._one.wall.by_ms > 0:
            return
        try:
            waiting = await self._sessions.central(lambda registry: registry.with_work())
        except ClawbusError as error:
            self._log.error("registry_unusable", code=error.code, error=str(error), hint=error.hint)
            return
        self._jumped_at = jumped_at
        for row in waiting:
            self._schedule.now(row.key)

    def poke(self, key: SessionKey) -> None:
        """Sweep this session soon. Calls during its sweep cause one more sweep."""
        if self._tasks is None or self._tasks.cancel_scope.cancel_called:  # see Background.later
            return
        if key in self._busy:
            self._busy[key] = True
            return
        self._tasks.start_soon(self.sweep, key, name=f"sweep {key}")

    async def sweep(self, key: SessionKey) -> bool:
        """Sweep one session. Return False when it failed; the failure is logged and the sweep will be retried."""
        if key in self._busy:
            self._busy[key] = True
            return True
        fine, again = True, True
        while again:
            self._busy[key] = False
            try:
                async with self._room:
                    with anyio.fail_after(self._config.session_timeout_s):
                        await self._one.sweep(key)
            except UnknownSessionError:
                self._sessions.troubles.forget(key)  # nothing was stored for it, and its sender was informed
            except TimeoutError:
                fine = False
                self._sessions.troubles.failed(key, SWEEP, ReadDeadlineError(_SLOW), self._clock.now_ms())
                self._log.error("sweep_timeout", agent=key.agent, session=key.session)
            except ClawbusError as error:
                fine = False
                self._sessions.troubles.failed(key, SWEEP, error, self._clock.now_ms())
                self._log.error("sweep_failed", agent=key.agent, session=key.session, code=error.code, error=str(error))
            except Exception as error:  # noqa: BLE001 - one session's unexpected error must not end the pass for the others
                fine = False
                self._sessions.troubles.failed(key, SWEEP, error, self._clock.now_ms())
                self._log.error("sweep_raised", agent=key.agent, session=key.session, exc_info=True)
            finally:
                again = self._busy.pop(key, False)
                if not fine:  # not at once: it would probably fail again
                    wait_ms = FAILED_RETRY_MS if again else _FAILED_LATER_MS
                    self._schedule.at(key, self._clock.now_ms() + wait_ms)
                    again = False
        return fine

    async def _full_passes(self) -> None:
        """Slowly sweep every session, a page at a time, to find work that `active` and `next_due_at` missed.

        A pass is spread over its whole interval: opening every session's files is expensive, and nothing waits for it. Files
        that verification has read since their last change stay closed.
        """
        began, count = self._clock.monotonic(), 0
        while True:
            try:
                if self._page is None:
                    began = self._clock.monotonic()
                    await self._sessions.find_lost()
                    count = await self._sessions.central(lambda registry: registry.count_sessions())
                keys = await self._sessions.central(lambda registry: registry.all_keys(self._page, _PAGE))
                unverified = await self._unverified(keys)
            except ClawbusError as error:
                self._log.warning("full_pass_postponed", error=str(error), retry_s=_POSTPONED_S)
                await anyio.sleep(_POSTPONED_S)
                continue
            for key in unverified:
                await self.sweep(key)
            self._page = keys[-1] if len(keys) == _PAGE else None
            await anyio.sleep(_pass_pause(self._page, count, self._config.full_pass_s, self._clock.monotonic() - began))

    async def _unverified(self, page: list[SessionKey]) -> list[SessionKey]:
        """Return the sessions of a page that were not found idle, or whose files have changed since. Raise ClawbusError."""
        if not page:
            return []
        now, folder = self._clock.now_ms(), self._sessions.folder
        known = await self._sessions.central(
            lambda registry: registry.verified_idle(now, page[0], page[-1], scheduled=False)
        )

        def changed() -> list[SessionKey]:
            return [key for key in page if key not in known or not is_unchanged(folder, known[key])]

        return await anyio.to_thread.run_sync(changed) if known else page

    async def _pause(self, seconds: float) -> None:
        """Sleep in short pieces, so that the watchdog sees progress between two ticks."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0:
            self._pulse.beat("sweep")
            await anyio.sleep(min(left, 5.0))


def _pass_pause(page: SessionKey | None, count: int, interval_s: float, elapsed_s: float) -> float:
    """Return the seconds until a full pass's next page, or, after its last page, until the next pass.

    The pass covers `count` sessions.
    """
    if page is None:
        return max(interval_s - elapsed_s, min(interval_s, 1.0))
    return min(interval_s * _PAGE / max(count, _PAGE), _LONGEST_PAUSE_S)
