"""Delivery: poll a session's outbound.db and begin the sends of what it intends. One poll per session at a time.

Each destination has one send under way; a stalled send holds back only its own destination. `destination_sends.py` sends
and records.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from daemon.channels.protocol import Receiver
from daemon.core.clock import Clock
from daemon.core.delivery_plan import Send
from daemon.core.events import AnswerDropped
from daemon.core.poll_budget import BURST_S, SHARE
from daemon.core.session_key import SessionKey
from daemon.core.trace import Tracing
from daemon.engine.delivery_steps import Collected
from daemon.engine.destination_sends import DestinationSends, Sent, claim_destinations
from daemon.engine.events import Events
from daemon.engine.hand_over import HandOver
from daemon.engine.inline_delivery import InlineDelivery
from daemon.engine.message_events import poll_events
from daemon.engine.poll_contexts import DeliverySettings, PollContexts
from daemon.engine.read_trouble import ReadTrouble
from daemon.engine.send_health import SendHealth
from daemon.engine.send_slots import Lane
from daemon.engine.sender import Sender
from daemon.engine.session import Session
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.troubles import COLLECT, POLL
from schema.errors import ClawbusError, ReadDeadlineError, ReadRaceError

_RACE_RETRY_MS = 50
_SURPRISE_RETRY_MS = 30_000
_AHEAD_S = 0.05
_NAP_S = 0.5


class Delivery:
    """Delivers every session's answers. `poke` may be called from anywhere in the event loop, as often as needed."""

    def __init__(
        self,
        channels: Mapping[str, Receiver],
        settings: DeliverySettings,
        clock: Clock,
        supervisor: Supervisor,
        schedule: Schedule,
        read_trouble: ReadTrouble,
        tracing: Tracing,
        events: Events,
    ) -> None:
        config = settings.config
        self._clock = clock
        self._supervisor = supervisor
        self._schedule = schedule
        self._read_trouble = read_trouble
        self._troubles = read_trouble.troubles
        self._dirty: dict[Session, bool] = {}
        self._ahead: set[Session] = set()
        self._senders = 0
        self._drained = anyio.Event()
        self._closing = False
        self._held = False
        self._tasks: TaskGroup | None = None
        self._channels_run: anyio.Event | None = None
        self._log = structlog.get_logger("delivery")
        self._contexts = PollContexts(channels, settings)
        self._health = SendHealth(clock, config.retry_max_s, config.send_timeout_s)
        self._own = InlineDelivery(channels, clock, tracing)
        sender = Sender(channels, config.send_timeout_s, clock, tracing)
        self._sends = DestinationSends(
            sender, self._contexts, clock, read_trouble, self._health, events, lambda: self._paused
        )
        self._events = events
        events.subscribe(AnswerDropped, self._dropped)

    async def run(self, channels_run: anyio.Event, *, task_status: TaskStatus[None]) -> None:
        """Deliver until cancelled; poll sessions once `channels_run` is set.

        A send before its channel runs would fail, so every start would cost the row an attempt and a back-off.
        """
        self._channels_run = channels_run
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None  # while the daemon stops, other tasks still run and may call `poke`

    @property
    def senders(self) -> int:
        """The number of sends under way."""
        return self._senders

    def problems(self) -> dict[str, tuple[int, str]]:
        """Return the channels that accept nothing at one of their places: since when (epoch milliseconds), and why."""
        return self._health.problems()

    def _dropped(self, event: AnswerDropped) -> None:
        """Forget this answer's failures: an operator dropped it, so they no longer indicate a problem at its receiver."""
        self._health.given_up(str(SessionKey(event.agent, event.session)), event.message_out_id)

    @property
    def polls(self) -> int:
        """The number of sessions whose answers are being polled."""
        return len(self._dirty)

    @property
    def _paused(self) -> bool:
        return self._closing or self._held

    def hold(self) -> None:
        """Begin no poll and no send until `resume`."""
        self._held = True

    def resume(self) -> None:
        """End a hold. The caller then has the sessions polled again."""
        self._held = False

    async def close(self, grace_s: float) -> None:
        """Start no new polls or sends, and let those under way finish within `grace_s` seconds."""
        self._closing = True
        with anyio.move_on_after(grace_s):
            # A poll under way may still write intents; their sends do not begin, and the intents are taken back.
            while self._senders or self._dirty:
                self._drained = anyio.Event()
                await self._drained.wait()

    def poke(self, session: Session) -> bool:
        """Poll this session soon, because it may have news. Calls during a poll cause one more poll.

        Return False when no poll will follow.
        """
        if not self._is_running or self._paused or session.quarantined is not None:
            return False
        idle = session not in self._dirty
        self._dirty[session] = True
        if idle:
            self._begin(self._run, session, name=f"collect {session.key}")
        return True

    @property
    def _is_running(self) -> bool:
        # A task started in a group that was already cancelled would not be cancelled itself, and would spin forever.
        return self._tasks is not None and not self._tasks.cancel_scope.cancel_called

    def _begin(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object, name: str) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(work, *args, name=name)

    def _wake(self, granted: list[Session]) -> None:
        """Poll the sessions that were granted a slot. A session that cannot be polled passes its slot on."""
        while granted:
            session = granted.pop()
            if not self.poke(session):
                granted += self._contexts.slots.forgo(session)

    async def _run(self, session: Session) -> None:
        try:
            if self._channels_run is not None:
                await self._channels_run.wait()
            while self._dirty.get(session) and session.quarantined is None and not self._paused:
                if await self._over_budget(session):
                    continue
                self._dirty[session] = False
                if await self._collect(session):
                    self._dirty[session] = True
        finally:
            del self._dirty[session]
            self._wake(self._contexts.slots.forgo(session))
            self._drained.set()

    async def _over_budget(self, session: Session) -> bool:
        """Wait a little when the session's polls have used up their share of CPU time. Return whether it waited."""
        wait_s = session.budget.wait_s(self._clock.monotonic())
        if wait_s <= 0:
            return False
        slow = ReadDeadlineError(
            f"its polls cost more than {SHARE:.0%} of a core: outbound.db is slow to read. The next is in {wait_s:.0f} s."
        )
        self._troubles.failed(session.key, POLL, slow, self._clock.now_ms())
        if not session.throttled:
            session.throttled = True
            self._log.warning("session_throttled", agent=session.key.agent, session=session.key.session,
                              share=SHARE, wait_s=round(wait_s, 1))  # fmt: skip
        await anyio.sleep(min(wait_s, _NAP_S))  # in short naps, so that `close` need not wait for all of it
        return True

    def _charge(self, session: Session, rows: int) -> None:
        """Charge the session's budget with the CPU time of this poll and of the sweeps since the last one."""
        used, session.charged_s = session.cpu_s - session.charged_s, session.cpu_s
        if session.budget.charge(self._clock.monotonic(), used, rows) == 0 and session.budget.credit >= BURST_S / 2:
            session.throttled = False
            self._troubles.healed(session.key, POLL)

    async def _collect(self, session: Session) -> bool:
        """Poll once. Return True when more rows are known to wait."""
        taken: list[Lane] = []
        granted: list[Session] = []
        try:
            return await self._poll(session, taken, granted)
        finally:
            for lane in taken:  # the poll failed, so no send began
                granted += self._contexts.slots.give_back(session, lane)
            self._wake(granted)

    async def _poll(self, session: Session, taken: list[Lane], granted: list[Session]) -> bool:
        """Poll once, and begin the sends. `taken` and `granted` are filled in.

        `taken`: the slots that this poll took and no send owns yet. `granted`: the sessions that were granted a slot by it.
        """
        means = self._contexts.of(session, taken, granted)
        now = self._clock.now_ms()
        live = self._supervisor.live_incarnation(session)
        try:
            async with session.lock:
                poll = partial(self._own.collect, session, means, live)
                found, handed = await session.call_locked(poll, charged=True)
                # Mark the destinations while holding the lock, before any other task can plan for them.
                groups = claim_destinations(session, found.sends, handed)
                taken.clear()  # from here on each send group releases its own slot
        except ReadRaceError as error:
            self._charge(session, 0)
            self._log.debug(
                "outbound_read_race", agent=session.key.agent, session=session.key.session, error=str(error)
            )
            self._read_trouble.unreadable(session, error)
            self._troubles.failed(session.key, COLLECT, error, now)
            self._schedule.at(session.key, now + _RACE_RETRY_MS)
            return False
        except ClawbusError as error:
            self._charge(session, 0)
            self._read_trouble.handle(session, error, COLLECT)
            self._troubles.failed(session.key, COLLECT, error, now)
            return False
        except Exception as error:  # noqa: BLE001 - an unexpected error in one session must not end the daemon; it is polled again
            self._troubles.failed(session.key, COLLECT, error, now)
            self._log.error("collect_raised", agent=session.key.agent, session=session.key.session, exc_info=True)
            self._schedule.at(session.key, now + _SURPRISE_RETRY_MS)
            return False
        return self._follow_up(session, found, handed, groups)

    def _follow_up(
        self,
        session: Session,
        found: Collected,
        handed: Mapping[str, HandOver],
        groups: Sequence[tuple[str, list[Send]]],
    ) -> bool:
        """Publish what a poll committed, and begin its sends. Return True when more rows are known to wait."""
        session.consecutive_timeouts.pop("collect", None)
        session.unreadable_since = None
        self._troubles.healed(session.key, COLLECT)
        self._charge(session, len(found.sends) + len(found.settled) + len(found.claimed) + len(found.dead_lettered))
        self._events.publish_all(poll_events(session.key, found))
        told = [outcome for one in handed.values() for outcome in one.outcomes]
        for one in handed.values():
            if one.dead is not None:
                self._sends.recorded(session, one)
        # Rows queued behind a send that has ended since: poll again. Behind a send still under way: its end polls.
        ended = found.queued - session.sending.keys()
        session.behind |= found.queued - ended
        if found.more:  # a batch holds only the first rows of a queue
            session.behind.update(key for key, _ in groups)
        for address_key, sends in groups:
            self._senders += 1
            begun = handed.get(address_key)
            self._begin(self._send_group, session, address_key, sends, begun, name=f"send {session.key}")
        if found.sends or found.settled or found.claimed:
            session.moved(found.at)
        if found.settled:
            self._supervisor.check_for_room()
        if found.later or any(outcome.error for outcome in told):
            self._schedule.now(session.key)
        if bool(ended) or not all(outcome.sent for outcome in told):
            return True
        return found.more and not self._wait_for_sends(session)

    def _wait_for_sends(self, session: Session) -> bool:
        """Return whether the remaining rows wait for the sends under way. The end of the last of them polls again.

        A poll before that would mostly find rows that wait behind those sends, and read and write each twice. But rows for
        other destinations must not wait for a send that hangs, so `_poll_ahead` polls when one does.
        """
        if session.sending and session not in self._ahead and self._is_running:
            self._ahead.add(session)
            self._begin(self._poll_ahead, session, name=f"look ahead {session.key}")
        return bool(session.sending)

    async def _poll_ahead(self, session: Session) -> None:
        hung = False
        try:
            while session.sending and not hung:
                before = list(session.sending.values())
                await anyio.sleep(_AHEAD_S)
                hung = any(one is other for one in before for other in session.sending.values())
        finally:
            self._ahead.discard(session)
        if hung or session not in self._dirty:  # a poll under way decides for itself whether to wait
            self.poke(session)

    async def _send_group(
        self, session: Session, address_key: str, sends: list[Send], handed: HandOver | None = None
    ) -> None:
        """Have one destination's rows sent and recorded; poll again if more rows wait behind.

        With `handed`, the rows were already handed over and are only recorded.
        """
        lane, slow = (sends[0].address.channel_type, sends[0].address.platform_id), None
        try:
            if handed is None:
                sent = await self._sends.send(session, sends)
                slow = sent.slow
            else:
                sent = Sent(handed.outcomes)
                await self._sends.record(session, handed)
            if sent.failed:
                self._schedule.now(session.key)
        except Exception:  # noqa: BLE001 - the outcomes may not be recorded, so the sent rows are in doubt, as after a crash
            self._log.error("send_raised", agent=session.key.agent, session=session.key.session, exc_info=True)
            self._schedule.at(session.key, self._clock.now_ms() + _SURPRISE_RETRY_MS)
            return
        finally:
            self._senders -= 1
            session.sending.pop(address_key, None)
            self._wake(self._contexts.give_back(session, lane, slow=slow))
            self._drained.set()
        if address_key in session.behind or not sent.complete:
            session.behind.discard(address_key)
            # With a backlog, only the end of the last send polls, or `_poll_ahead` when a send hangs.
            if not (session.sending and session in self._ahead):
                self.poke(session)
