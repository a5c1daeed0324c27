"""Counts what agents use in a day, and stops those whose budget is used up: nothing starts for them until there is room again.

A turn that has begun is finished; then its container is stopped between two turns, so no message loses a try. What waits
stays pending in its session. Each place whose messages wait gets one notice a day. The day's end, a raised limit after a
reload, and an operator's refill let the sessions go on.

Whole totals are written to central.db every second, so a repeated write counts nothing twice; a crash loses at most what the
last second added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import tzinfo
from functools import partial
from typing import Final

import anyio
import structlog

from daemon.config.agents import Agent
from daemon.core.budgets import AgentBudget, AgentDay
from daemon.core.clock import Clock
from daemon.core.egress_usage import KEPT_DAYS, day_of, days_before, seconds_left
from daemon.core.events import BudgetUsedUp, MessageSettled, TurnsBegun, TurnStopped
from daemon.engine.background import Background
from daemon.engine.events import Events
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.store import agent_usage
from daemon.store.agent_usage import AgentUsage
from daemon.store.host_messages import tell_waiting
from schema.errors import ClawbusError
from schema.rows import TurnUsage

WAITS: Final = (
    "The limit for today is reached. Your message is kept, and will be worked on as soon as the limit allows it again."
)
_DRAINED: Final = "budget"
_WRITE_S: Final = 1.0
_RETRY_S: Final = 10.0


class Budgets:
    """Built once, called in the event loop. `agents` is the table that a reload changes.

    `doubts` returns whether the clock may be wrong now: then no day is forgotten.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        zone: tzinfo,
        clock: Clock,
        sessions: Sessions,
        supervisor: Supervisor,
        background: Background,
        events: Events,
        doubts: Callable[[], bool] = lambda: False,
    ) -> None:
        self._doubts = doubts
        self._agents = agents
        self._zone = zone
        self._clock = clock
        self._sessions = sessions
        self._supervisor = supervisor
        self._background = background
        self._events = events
        self._usage = AgentUsage({}, {})
        self._changed: set[agent_usage.Key] = set()
        self._flushing = False
        self._announced: set[agent_usage.Key] = set()
        self._log = structlog.get_logger("budget")
        supervisor.limit_with(self.blocked_until, self.tell_waiting)
        events.subscribe(TurnsBegun, self._begun)
        events.subscribe(MessageSettled, self._used)
        events.subscribe(TurnStopped, self._used)

    async def load(self) -> None:
        """Read what was counted before. Until then, and if it cannot be read, nothing is blocked."""
        first = days_before(self.day, KEPT_DAYS)
        found = await self._sessions.central(
            lambda registry: registry.with_file(partial(agent_usage.read, first_day=first))
        )
        # Keep what was counted while the file was being read: it is newer than the file.
        found.days.update({key: self._usage.days[key] for key in self._changed})
        self._usage = found

    @property
    def day(self) -> str:
        """Today, YYYY-MM-DD in the configured time zone."""
        return day_of(self._clock.now_ms(), self._zone)

    def exceeded(self, agent: str) -> str | None:
        """Return what of the agent's daily budget is used up; None while there is some of everything."""
        settings = self._agents.get(agent)
        budget = settings.budget if settings is not None else AgentBudget()
        return budget.exceeded(self._usage.left_to_count(self.day, agent)) if budget.limited else None

    def used_up(self) -> dict[str, str]:
        """Return what of today's budget is used up, by agent, for those that are stopped."""
        return {agent: spent for agent in self._agents if (spent := self.exceeded(agent)) is not None}

    def blocked_until(self, agent: str) -> int | None:
        """Return when today ends (epoch milliseconds) if the agent's budget is used up, else None."""
        if self.exceeded(agent) is None:
            return None
        now = self._clock.now_ms()
        return now + seconds_left(now, self._zone) * 1000

    def enforce(self) -> None:
        """Stop every agent whose budget is used up: after a start, for the containers that ran on."""
        for agent in self._agents:
            self._check(agent)

    def reconsider(self) -> None:
        """Let the sessions of agents that may work again go on: after a reload or a refill."""
        self._announced = {key for key in self._announced if self.exceeded(key[1]) is not None}
        self.enforce()
        for session in self._sessions:
            if self.exceeded(session.key.agent) is None:
                self._supervisor.look_at(session)

    async def tell_waiting(self, session: Session) -> None:
        """Tell the senders of the session's due messages that these wait."""
        day = self.day

        def tell() -> int:
            with session.files.inbound() as db, db.transaction():
                return tell_waiting(db, day, WAITS, self._clock.now_ms())

        try:
            told = await session.call(tell)
        except ClawbusError as error:  # the next sweep tells them
            self._log.warning("waiting_not_told", agent=session.key.agent, session=session.key.session, code=error.code)
            return
        if told:
            self._supervisor.look_at(session)

    async def flush(self) -> None:
        """Write what was counted since the last time. Raise ClawbusError; then it is written the next time."""
        changed, self._changed = self._changed, set()
        rows = [self._usage.days[key] for key in changed]
        before = "" if self._doubts() else days_before(self.day, KEPT_DAYS)
        try:
            await self._sessions.central(
                lambda registry: registry.with_file(partial(agent_usage.write, days=rows, before=before))
            )
        except ClawbusError:
            self._changed |= changed
            raise

    # --- counting

    def _begun(self, event: TurnsBegun) -> None:
        self._count(event.agent, event.turns, None)

    def _used(self, event: MessageSettled | TurnStopped) -> None:
        if event.usage is not None:
            self._count(event.agent, 0, event.usage)

    def _count(self, agent: str, turns: int, usage: TurnUsage | None) -> None:
        key = (self.day, agent)
        self._usage.days[key] = self._usage.days.get(key, AgentDay(*key)).more(turns, usage)
        self._changed.add(key)
        self._check(agent)
        if not self._flushing:
            self._flushing = True
            self._background.later(self._flush_until_none)

    async def _flush_until_none(self) -> None:
        trouble: str | None = None
        try:
            while self._changed:
                await anyio.sleep(_WRITE_S)
                try:
                    await self.flush()
                except ClawbusError as error:
                    if str(error) != trouble:
                        self._log.warning("agent_usage_not_written", code=error.code, error=str(error))
                    trouble = str(error)
                    await anyio.sleep(_RETRY_S)
                else:
                    trouble = None
        finally:
            self._flushing = False

    def _check(self, agent: str) -> None:
        spent, until = self.exceeded(agent), self.blocked_until(agent)
        if spent is None or until is None:
            return
        self._supervisor.drain(agent, _DRAINED)
        key = (self.day, agent)
        if key not in self._announced:
            self._announced = {one for one in self._announced if one[0] == key[0]} | {key}
            self._events.publish(BudgetUsedUp(self._clock.now_ms(), agent, spent, until))
