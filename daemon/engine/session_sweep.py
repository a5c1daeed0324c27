"""Sweeps one session: reads its files and decides, then wakes, stops or kills. Also settles a confirmed exit.

The decisions are made in `core/lifecycle.py`, the writes in `sweep_steps.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from daemon.core.clock import Clock
from daemon.core.events import (
    Event,
    JournalRecovered,
    ScheduleFired,
    SchedulePaused,
    SeriesRearmed,
    TurnsBegun,
    TurnStopped,
)
from daemon.core.lifecycle import IDLE, Container, Kill, Policy, Stop, Wake
from daemon.core.session_key import SessionKey
from daemon.engine.delivery import Delivery
from daemon.engine.events import Events
from daemon.engine.incarnation_steps import drain, finish_incarnation
from daemon.engine.message_events import action_events, question_decided, stuck, verdict_events
from daemon.engine.read_trouble import ReadTrouble
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.sweep_steps import Settings, Swept, sweep_files
from daemon.engine.troubles import ACCEPT, EXIT, SWEEP, WRITE
from daemon.runtimes.protocol import Exit
from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    ReadRaceError,
    UnusableFileError,
)

FAILED_RETRY_MS: Final = 5000
_RACE_RETRY_MS: Final = 50
_CLOCK_JUMP_MS: Final = 2000


@dataclass(slots=True)
class ClockWatch:
    """Detects jumps of the wall clock. Times from before `floor`, the last jump, cannot be compared with now."""

    offset_ms: float | None = None
    floor: int = 0
    by_ms: int = 0

    def look(self, clock: Clock) -> int:
        """Check for a jump. Return the floor: the time of the last jump in epoch milliseconds, 0 if there was none."""
        now = clock.now_ms()
        offset = now - clock.monotonic() * 1000
        if self.offset_ms is not None and abs(offset - self.offset_ms) > _CLOCK_JUMP_MS:
            self.floor, self.by_ms = now, round(offset - self.offset_ms)
            structlog.get_logger("sweep").warning("clock_jumped", by_ms=self.by_ms)
        self.offset_ms = offset
        return self.floor


class SessionSweep:
    """Sweeps single sessions. The caller must run only one sweep of a session at a time."""

    def __init__(
        self,
        sessions: Sessions,
        supervisor: Supervisor,
        delivery: Delivery,
        schedule: Schedule,
        clock: Clock,
        settings: Settings,
        read_trouble: ReadTrouble,
        events: Events,
    ) -> None:
        self._sessions = sessions
        self._supervisor = supervisor
        self._delivery = delivery
        self._schedule = schedule
        self._clock = clock
        self._settings = settings
        self._read_trouble = read_trouble
        self._events = events
        self._troubles = sessions.troubles
        self._configured = settings.schedules
        self._unmade = set(settings.schedules)
        self.wall = ClockWatch()
        self._log = structlog.get_logger("sweep")

    async def make_scheduled(self) -> None:
        """Create the sessions of the configured schedules and mark them active: their sweep then stores the schedules.

        The next call retries sessions that could not be created.
        """
        for key in sorted(self._unmade):
            try:
                session = await self._sessions.create(key)
                async with session.lock:
                    await self._sessions.activate(session)
            except ClawbusError as error:
                self._log.error(
                    "schedule_session_failed", agent=key.agent, session=key.session, code=error.code, error=str(error)
                )
            else:
                self._unmade.discard(key)

    async def sweep(self, key: SessionKey) -> None:
        """Read one session's files, decide and act. Raise the errors of opening its files, after which the caller tries again."""
        session = await self._sessions.get(key)
        if session.quarantined is not None:
            return
        unknown = False
        try:
            async with session.lock:
                # Hold the lock: the supervisor acquires it between taking a slot and starting a container. So if there
                # is no slot now, no container can start before the sweep is done.
                slot = self._supervisor.slot(key)
                # Until adoption is done, a session without a slot may still have a running container.
                unknown = slot is None and self._supervisor.may_run(key)
                now, floor = self._clock.now_ms(), self.wall.look(self._clock)
                container = _container(slot, session, now, floor)
                occupied = unknown or (slot is not None and container is None)
                swept = await session.call_locked(
                    partial(
                        sweep_files, session.files, container, now, self._settings_of(key),
                        occupied=occupied, floor=floor, last_tool=session.tool, members=self._read_trouble.held_files.members_of(session),
                    ),
                    charged=True,
                )  # fmt: skip
                await self._take_note(session, swept, now, running=container is not None)
                idle = slot is None and not unknown and self._is_idle(session, swept, now)
                if idle:
                    await self._sessions.retire(session, swept.next_at, swept.dead, swept.schedules)
                else:
                    await self._sessions.activate(session)
        except ReadRaceError as error:
            self._log.debug("sweep_read_race", agent=key.agent, session=key.session, error=str(error))
            self._read_trouble.unreadable(session, error)
            self._troubles.failed(key, SWEEP, error, self._clock.now_ms())
            # While the runtime does not answer, the journal must not be touched, so the race may last long.
            self._schedule.at(key, self._clock.now_ms() + (FAILED_RETRY_MS if unknown else _RACE_RETRY_MS))
            return
        except (HostileFileError, ReadDeadlineError, FileBusyError, UnusableFileError) as error:
            self._read_trouble.handle(session, error, SWEEP)
            self._troubles.failed(key, SWEEP, error, self._clock.now_ms())
            return
        self._troubles.healed(key, SWEEP)
        self._events.publish_all(_sweep_events(key, swept, now))
        if unknown and swept.due:
            await self._supervisor.wake(session)  # queued until adoption is done; dropped if adoption finds a container
        await self._act(session, swept, now, container.incarnation if container is not None else None)
        if not idle:  # a retired session has nothing to deliver either, and a poll costs half as much as the sweep
            self._delivery.poke(session)

    async def _take_note(self, session: Session, swept: Swept, now: int, *, running: bool) -> None:
        """Keep in memory what the sweep saw of the session's folders, tool, held messages and files."""
        session.use, session.home_use = swept.use, swept.home_use
        if running:
            session.shows_tool(swept.tool, now)
        if swept.held:
            session.held_at = now
        session.consecutive_timeouts.pop("sweep", None)
        session.unreadable_since = None
        await self._prove_writable(session)

    def _is_idle(self, session: Session, swept: Swept, now: int) -> bool:
        """Return whether the session may be retired: nothing runs or is sent, its files are fine, and no work is due."""
        if session.sending or self._supervisor.slot(session.key) is not None or session.files.write_refused:
            return False
        return swept.next_at is None or swept.next_at > now

    async def _prove_writable(self, session: Session) -> None:
        """After a refused write, test whether a write succeeds now. The session itself records a failure."""
        if session.files.write_refused:
            with suppress(FileBusyError):
                await session.call_locked(session.files.prove_writable)
        if not session.files.write_refused:
            self._troubles.healed(session.key, WRITE)
            if self._sessions.storage.problem is None:
                self._troubles.healed(
                    session.key, ACCEPT
                )  # if accepting still fails, the next sender's message reports it again

    async def _act(self, session: Session, swept: Swept, now: int, incarnation: str | None) -> None:
        for action in swept.actions:
            if isinstance(action, Wake):
                await self._supervisor.wake(session)
            elif isinstance(action, Kill):
                self._supervisor.begin_end(session.key, action.reason, graceful=True, incarnation=incarnation)
            elif isinstance(action, Stop):
                self._supervisor.begin_end(session.key, "idle", graceful=True, incarnation=incarnation)
        if swept.next_at is not None and swept.next_at > now:
            self._schedule.at(session.key, swept.next_at)
        # `next_at` may be earlier than these and would hide them.
        for instant in (swept.expires_at, swept.schedule_at, swept.stop_at):
            if instant is not None and instant > now:
                self._schedule.at(session.key, instant)

    async def after_exit(self, session: Session, incarnation: str, reason: str, exit_: Exit) -> bool:
        """Settle a confirmed exit in the session's files. Return whether the incarnation had claimed anything."""
        now = self._clock.now_ms()
        log = self._log.bind(agent=session.key.agent, session=session.key.session, incarnation=incarnation)
        if session.quarantined is not None:
            log.warning("exit_not_settled", reason="the session is in quarantine; its release settles it")
            return True
        try:
            done = await session.call(
                partial(finish_incarnation, session.files, incarnation, reason, now, self._settings_of(session.key))
            )
        except (HostileFileError, ReadDeadlineError, UnusableFileError) as error:
            self._read_trouble.handle(session, error, EXIT)
            if session.quarantined is None:
                self._troubles.failed(session.key, EXIT, error, now)
                raise  # it is called again
            return True
        except Exception as error:
            self._troubles.failed(session.key, EXIT, error, now)
            raise  # it is called again
        self._troubles.healed(session.key, EXIT)
        agent, name = session.key
        if done.begun:
            self._events.publish(TurnsBegun(now, agent, name, done.begun))
        for message_id, usage in done.stopped:
            self._events.publish(TurnStopped(now, agent, name, message_id, incarnation, usage))
        self._events.publish_all(verdict_events(session.key, done.verdicts, now))
        self._events.publish_all(action_events(session.key, done.actions, done.endings, now, exit_.code))
        return done.claimed

    async def why_it_may_go(self, session: Session) -> str | None:
        """Return why a running session may give up its slot to a waiting one: IDLE or CLAIM_OVERDUE; None if it may not."""
        now = self._clock.now_ms()
        slot = self._supervisor.slot(session.key)
        if slot is None:
            return None
        asked = self._settings_of(session.key)
        floor = self.wall.look(self._clock)
        container = _container(slot, session, now, floor)
        if container is None:
            return None
        try:
            swept = await session.call(
                partial(
                    sweep_files, session.files, replace(container, last_activity=0), now,
                    replace(asked, policy=_contended(asked.policy)),
                    occupied=False, floor=floor, last_tool=session.tool,
                )
            )  # fmt: skip
        except ClawbusError:
            return None
        session.shows_tool(swept.tool, now)
        for action in swept.actions:
            if isinstance(action, Stop):
                return IDLE
            if isinstance(action, Kill):
                self._events.publish(stuck(session.key, action, now))
                return action.reason
        return None

    def _settings_of(self, key: SessionKey) -> Settings:
        return replace(
            self._settings, policy=self._settings.policy_of(key.agent), fate=self._sessions.fate_of(key.agent),
            configured=self._configured.get(key, {}),
        )  # fmt: skip

    async def drain(self, session: Session, incarnation: str) -> bool:
        """Ask the incarnation to stop claiming. Return True once it has no open claim. Raise the errors of opening files."""
        return await session.call(partial(drain, session.files, incarnation, self._clock.now_ms()))


def _sweep_events(key: SessionKey, swept: Swept, now: int) -> Iterator[Event]:
    if swept.recovered:
        yield JournalRecovered(now, key.agent, key.session)
    yield from verdict_events(key, swept.verdicts, now)
    yield from action_events(key, swept.actions, swept.endings, now)
    if swept.begun:
        yield TurnsBegun(now, key.agent, key.session, swept.begun)
    for turn in swept.stopped:
        yield TurnStopped(now, key.agent, key.session, turn.message_id, None, turn.usage)
    for asked in swept.decided:
        yield question_decided(key, asked, now)
    for message in swept.fired:
        yield ScheduleFired(now, key.agent, key.session, message.id, message.series_id or "")
    for row in swept.failing:
        yield SchedulePaused(now, key.agent, key.session, row.key, row.failures)
    for message in swept.rearmed:
        yield SeriesRearmed(now, key.agent, key.session, message.id, message.series_id, message.process_after)


def _container(slot: Slot | None, session: Session, now: int, floor: int) -> Container | None:
    """Return the container to judge, None if it does not run. A time in the future (the clock was set back) becomes `floor`."""
    if slot is None or slot.phase is not Phase.RUNNING:
        return None
    spawned = slot.spawned_at if slot.spawned_at <= now else floor
    return Container(
        slot.incarnation,
        spawned,
        last_activity=session.last_activity if session.last_activity <= now else floor,
        moved_at=session.moved_at if session.moved_at <= now else floor,
        held_at=session.held_at if session.held_at <= now else floor,
    )


def _contended(policy: Policy) -> Policy:
    """Return the policy for a slot that another session waits for.

    An idle container is stopped at once, and one that makes no progress when its turn's time is over.
    """
    return replace(policy, contended=True, idle_stop=0)
