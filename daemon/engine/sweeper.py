"""The repair pass: every interval over the sessions with work, at once for one whose container exits.

One session's failure or slowness never reaches another: each is swept in its own task, bounded in time. It decides
nothing itself (`core/lifecycle.py`) and writes nothing itself (`sweep_steps.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from daemon.config.models import Sweep as SweepConfig
from daemon.core.clock import Clock
from daemon.core.errors import UnknownSessionError
from daemon.core.events import Event, JournalRecovered, SeriesRearmed, SweepFinished
from daemon.core.lifecycle import IDLE, Container, Kill, Policy, Stop, Wake
from daemon.engine.delivery import Delivery
from daemon.engine.events import Events
from daemon.engine.message_events import action_events, stuck, verdict_events
from daemon.engine.sessions import Session, Sessions
from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.sweep_steps import Settings, Swept, drain, finish_incarnation, sweep_files
from daemon.engine.troubles import ACCEPT, EXIT, SWEEP, WRITE
from daemon.runtimes.members import Members
from daemon.runtimes.protocol import Exit
from daemon.store.registry import SessionKey
from daemon.systemd.watchdog import Pulse
from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    ReadRaceError,
    UnusableFileError,
)

_CONCURRENT = 16
_SLOW = "its sweep did not end within sweep.session_timeout_s."
_CLOCK_JUMP_MS = 2000
_FAILED_RETRY_MS = 5000
_FAILED_LATER_MS = 30_000  # also of a session that counts as idle: its trouble is reported until a sweep succeeds
_POSTPONED_S = 60.0
_PAGE = 20
_LONGEST_PAUSE_S = 60.0
_SPREAD = 0.5  # of the interval
_LONGEST_SPACING_S = 0.2


@dataclass(slots=True)
class LastSweep:
    """What the last full tick did: for `status`. `duration_ms` without the pauses between its sessions."""

    at: int | None = None
    duration_ms: int = 0
    sessions: int = 0
    errors: int = 0


@dataclass(slots=True)
class _ClockWatch:
    """Tells how old evidence may be: nothing dated before a jump of the wall clock can be compared with now."""

    offset_ms: float | None = None
    floor: int = 0
    by_ms: int = 0

    def look(self, clock: Clock) -> int:
        """Return the floor, in epoch ms."""
        now = clock.now_ms()
        offset = now - clock.monotonic() * 1000
        if self.offset_ms is not None and abs(offset - self.offset_ms) > _CLOCK_JUMP_MS:
            self.floor, self.by_ms = now, round(offset - self.offset_ms)
            structlog.get_logger("sweep").warning("clock_jumped", by_ms=self.by_ms)
        self.offset_ms = offset
        return self.floor


@dataclass(slots=True)
class Sweeper:
    """Built once by the composition root; `poke` may be called from anywhere in the event loop."""

    sessions: Sessions
    supervisor: Supervisor
    delivery: Delivery
    schedule: Schedule
    clock: Clock
    config: SweepConfig
    settings: Settings
    pulse: Pulse
    events: Events
    members: Members | None = None  # the processes of a container
    policy_of: Callable[[str], Policy] | None = None  # an agent's own; without it the settings' counts for all
    last: LastSweep = field(default_factory=LastSweep)
    _wall: _ClockWatch = field(default_factory=_ClockWatch)
    _busy: dict[SessionKey, bool] = field(default_factory=dict[SessionKey, bool])
    _tasks: TaskGroup | None = None
    _room: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_CONCURRENT))
    _page: SessionKey | None = None

    @property
    def clock_jump(self) -> dict[str, int] | None:
        """{jumped_at, by_ms} of the last jump of the wall clock that was seen, epoch ms and ms; None for none."""
        return {"jumped_at": self._wall.floor, "by_ms": self._wall.by_ms} if self._wall.floor else None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Tick until cancelled; started once it can take pokes."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._full_passes, name="full pass")
                task_status.started()
                interval_s, spread_s = self.config.interval_s, 0.0  # after a start what waits is not kept waiting
                while True:
                    began = self.clock.monotonic()
                    await self.tick(spread_s)
                    spread_s = interval_s * _SPREAD
                    await self._pause(interval_s - min(self.clock.monotonic() - began, spread_s))
        finally:
            self._tasks = None  # at the daemon's end others are still at work, and may poke

    async def tick(self, spread_s: float = 0.0) -> None:
        """One pass over every session with work, begun over up to `spread_s` seconds.

        Begun all together, the sweeps of fifty busy sessions would hold up every message for most of a second.
        """
        started = self.clock.monotonic()
        self.pulse.beat("sweep")
        await self._look_at_registry()
        errors = 0
        keys = [session.key for session in self.sessions]

        async def one(key: SessionKey) -> None:
            nonlocal errors
            if not await self.sweep(key):
                errors += 1
            self.pulse.beat("sweep")

        spacing = min(spread_s / max(len(keys), 1), _LONGEST_SPACING_S)
        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(one, key, name=f"sweep {key}")
                if spacing:
                    await anyio.sleep(spacing)
        # Its pauses are not work: the log shows how far it fell behind them.
        took_s = max(self.clock.monotonic() - started - spacing * len(keys), 0.0)
        self.last = LastSweep(self.clock.now_ms(), int(took_s * 1000), len(keys), errors)
        self.events.publish(SweepFinished(self.clock.now_ms(), len(keys), errors, took_s))

    async def _look_at_registry(self) -> None:
        """One that vanished is noticed and remade here, even when nothing else asks for it. So is a disk's room."""
        await self.sessions.storage.look()
        try:
            # After a failure the whole way is tried; a stat may work where an opening does not.
            failing = self.sessions.storage.problem is not None
            await self.sessions.central(lambda registry: registry.probe() if failing else registry.check())
            await self.sessions.register_made()
        except ClawbusError as error:
            structlog.get_logger("sweep").error("registry_unusable", code=error.code, error=str(error), hint=error.hint)

    def poke(self, key: SessionKey) -> None:
        """Sweep this session soon. Calls during its sweep make it be swept once more."""
        if self._tasks is None or self._tasks.cancel_scope.cancel_called:  # see Delivery.later
            return
        if key in self._busy:
            self._busy[key] = True
            return
        self._tasks.start_soon(self.sweep, key, name=f"sweep {key}")

    async def sweep(self, key: SessionKey) -> bool:
        """Sweep one session. False when it failed; that has been logged and will be tried again."""
        if key in self._busy:
            self._busy[key] = True
            return True
        fine, again = True, True
        while again:
            self._busy[key] = False
            try:
                async with self._room:
                    with anyio.fail_after(self.config.session_timeout_s):
                        await self._sweep(key)
            except UnknownSessionError:
                pass
            except TimeoutError:
                fine = False
                self.sessions.troubles.failed(key, SWEEP, ReadDeadlineError(_SLOW), self.clock.now_ms())
                structlog.get_logger("sweep").error("sweep_timeout", agent=key.agent, session=key.session)
            except ClawbusError as error:
                fine = False
                self.sessions.troubles.failed(key, SWEEP, error, self.clock.now_ms())
                structlog.get_logger("sweep").error(
                    "sweep_failed", agent=key.agent, session=key.session, code=error.code, error=str(error)
                )
            except Exception as error:  # noqa: BLE001 - one session's surprise must not end the pass for the others
                fine = False
                self.sessions.troubles.failed(key, SWEEP, error, self.clock.now_ms())
                structlog.get_logger("sweep").error("sweep_raised", agent=key.agent, session=key.session, exc_info=True)
            finally:
                again = self._busy.pop(key, False)
                if not fine:  # not at once: what failed now is likely to fail again
                    wait_ms = _FAILED_RETRY_MS if again else _FAILED_LATER_MS
                    self.schedule.at(key, self.clock.now_ms() + wait_ms)
                    again = False
        return fine

    async def _sweep(self, key: SessionKey) -> None:
        session = await self.sessions.get(key)
        if session.quarantined is not None:
            return
        unknown = False
        try:
            async with session.lock:
                # Under the lock: the supervisor passes through it between taking a slot and starting a container, so
                # with no slot here none can run before this is done.
                slot = self.supervisor.slot(key)
                # Until adoption has been done, a session without a slot may have a container that lives.
                unknown = slot is None and self.supervisor.may_run(key)
                now, floor = self.clock.now_ms(), self._wall.look(self.clock)
                container = _container(slot, session, now, floor)
                occupied = unknown or (slot is not None and container is None)
                swept = await session.call_locked(
                    partial(
                        sweep_files, session.files, container, now, self._settings_of(key),
                        occupied=occupied, floor=floor, last_tool=session.tool, members=self._members_of(session),
                    )
                )  # fmt: skip
                session.use = swept.use
                if container is not None:
                    session.shows_tool(swept.tool, now)
                if swept.held:
                    session.held_at = now
                session.strikes.pop("sweep", None)
                session.unreadable_since = None
                await self._prove_writable(session)
                idle = slot is None and not unknown and not session.sending and self.supervisor.slot(key) is None
                idle = (
                    idle
                    and not session.files.write_refused
                    and swept.next_at != 0
                    and (swept.next_at is None or swept.next_at > now)
                )
                if idle:
                    await self.sessions.retire(session, swept.next_at, swept.dead)
                else:
                    await self.sessions.activate(session)
        except ReadRaceError as error:
            structlog.get_logger("sweep").debug(
                "sweep_read_race", agent=key.agent, session=key.session, error=str(error)
            )
            self.delivery.unreadable(session, error)
            self.sessions.troubles.failed(key, SWEEP, error, self.clock.now_ms())
            # A journal that must not be touched before Docker answers may stay for long.
            self.schedule.at(key, self.clock.now_ms() + (_FAILED_RETRY_MS if unknown else 50))
            return
        except (HostileFileError, ReadDeadlineError, FileBusyError, UnusableFileError) as error:
            self.delivery.trouble(session, error, SWEEP)
            self.sessions.troubles.failed(key, SWEEP, error, self.clock.now_ms())
            return
        self.sessions.troubles.healed(key, SWEEP)
        self.events.publish_all(_sweep_events(key, swept, now))
        if unknown and swept.due:
            await self.supervisor.wake(session)  # it waits for the adoption, and is forgotten if that finds a container
        await self._act(session, swept, now, container.incarnation if container is not None else None)
        if not idle:  # a retired session has nothing for delivery either; to look again would be half of what this cost
            self.delivery.poke(session)

    async def _prove_writable(self, session: Session) -> None:
        """After a refused write: does one come through now? That it does not is noted by the session itself."""
        if session.files.write_refused:
            with suppress(FileBusyError):
                await session.call_locked(session.files.prove_writable)
        if not session.files.write_refused:
            self.sessions.troubles.healed(session.key, WRITE)
            if self.sessions.storage.problem is None:
                self.sessions.troubles.healed(session.key, ACCEPT)  # the next sender may find out better

    async def _act(self, session: Session, swept: Swept, now: int, incarnation: str | None) -> None:
        for action in swept.actions:
            if isinstance(action, Wake):
                await self.supervisor.wake(session)
            elif isinstance(action, Kill):
                self.supervisor.begin_end(session.key, action.reason, graceful=True, incarnation=incarnation)
            elif isinstance(action, Stop):
                self.supervisor.begin_end(session.key, "idle", graceful=True, incarnation=incarnation)
        if swept.next_at is not None and swept.next_at > now:
            self.schedule.at(session.key, swept.next_at)
        if swept.expires_at is not None and swept.expires_at > now:
            self.schedule.at(session.key, swept.expires_at)

    async def after_exit(self, session: Session, incarnation: str, reason: str, exit_: Exit) -> bool:
        """All that a confirmed exit entails in the session's files. Whether the incarnation had claimed anything."""
        now = self.clock.now_ms()
        log = structlog.get_logger("sweep").bind(
            agent=session.key.agent, session=session.key.session, incarnation=incarnation
        )
        if session.quarantined is not None:
            log.warning("exit_not_settled", reason="the session is in quarantine; its release settles it")
            return True
        try:
            claimed, actions, endings, verdicts = await session.call(
                partial(finish_incarnation, session.files, incarnation, reason, now, self._settings_of(session.key))
            )
        except (HostileFileError, ReadDeadlineError, UnusableFileError) as error:
            self.delivery.trouble(session, error, EXIT)
            if session.quarantined is None:
                self.sessions.troubles.failed(session.key, EXIT, error, now)
                raise  # it is called again
            return True
        except Exception as error:
            self.sessions.troubles.failed(session.key, EXIT, error, now)
            raise  # it is called again
        self.sessions.troubles.healed(session.key, EXIT)
        self.events.publish_all(verdict_events(session.key, verdicts, now))
        self.events.publish_all(action_events(session.key, actions, endings, now, exit_.code))
        return claimed

    async def why_it_may_go(self, session: Session) -> str | None:
        """Why a running session may lose its slot to one that waits: IDLE, CLAIM_OVERDUE; None while it is at work."""
        now = self.clock.now_ms()
        slot = self.supervisor.slot(session.key)
        if slot is None:
            return None
        asked = self._settings_of(session.key)
        floor = self._wall.look(self.clock)
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
                self.events.publish(stuck(session.key, action, now))
                return action.reason
        return None

    def _members_of(self, session: Session) -> Callable[[], frozenset[int] | None] | None:
        slot = self.supervisor.slot(session.key)
        if self.members is None or slot is None or slot.container_id is None or slot.exited.is_set():
            return None
        return partial(self.members, slot.container_id)

    def _settings_of(self, key: SessionKey) -> Settings:
        policy = self.policy_of(key.agent) if self.policy_of is not None else self.settings.policy
        return replace(self.settings, policy=policy, fate=self.sessions.fate_of(key.agent))

    async def drain(self, session: Session, incarnation: str) -> bool:
        """Tell the incarnation to claim nothing more. True once none of its claims is open. Raises as opening files does."""
        return await session.call(partial(drain, session.files, incarnation, self.clock.now_ms()))

    async def _full_passes(self) -> None:
        """Slowly look at every session there is, a page at a time: heals whatever `active` and `next_due_at` missed.

        A pass is spread over its whole interval: opening every session's files costs, and nothing waits for it.
        """
        began, count = self.clock.monotonic(), 0
        while True:
            try:
                if self._page is None:
                    began = self.clock.monotonic()
                    await self.sessions.find_lost()
                    count = await self.sessions.central(lambda registry: registry.count_sessions())
                keys = await self.sessions.central(lambda registry: registry.all_keys(self._page, _PAGE))
            except ClawbusError as error:
                structlog.get_logger("sweep").warning("full_pass_postponed", error=str(error), retry_s=_POSTPONED_S)
                await anyio.sleep(_POSTPONED_S)
                continue
            for key in keys:
                await self.sweep(key)
            self._page = keys[-1] if len(keys) == _PAGE else None
            await anyio.sleep(_pass_pause(self._page, count, self.config.full_pass_s, self.clock.monotonic() - began))

    async def _pause(self, seconds: float) -> None:
        """Sleep in pieces, so that the watchdog sees the loop alive between two ticks."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0:
            self.pulse.beat("sweep")
            await anyio.sleep(min(left, 5.0))


def _sweep_events(key: SessionKey, swept: Swept, now: int) -> Iterator[Event]:
    if swept.recovered:
        yield JournalRecovered(now, key.agent, key.session)
    yield from verdict_events(key, swept.verdicts, now)
    yield from action_events(key, swept.actions, swept.endings, now)
    for message in swept.rearmed:
        yield SeriesRearmed(now, key.agent, key.session, message.id, message.series_id, message.process_after)


def _pass_pause(page: SessionKey | None, count: int, interval_s: float, elapsed_s: float) -> float:
    """Seconds until the next page of a full pass over `count` sessions, or, after the last one, until the next pass."""
    if page is None:
        return max(interval_s - elapsed_s, min(interval_s, 1.0))
    return min(interval_s * _PAGE / max(count, _PAGE), _LONGEST_PAUSE_S)


def _container(slot: Slot | None, session: Session, now: int, floor: int) -> Container | None:
    """Return the container to judge. A time later than now was set by a clock that has gone back since."""
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
    """For a slot that somebody waits for: who has nothing to do goes at once, who makes no progress after its turn."""
    return replace(policy, contended=True, idle_stop=0)
