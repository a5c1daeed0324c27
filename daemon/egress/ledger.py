"""Counts what agents use, and stops those whose daily budget is used up. Durable within a second.

Totals of a day are kept in memory and written as a whole, so a repeated write counts nothing twice; a crash loses at most what
the last second added. A registry that cannot be written delays the writing and stops no request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import tzinfo
from typing import Final, Protocol

import anyio
import structlog
from anyio.abc import TaskStatus

from daemon.core.clock import Clock
from daemon.core.egress_usage import EVERY_AGENT, KEPT_DAYS, Budget, Usage, UsageRow, day_of, days_before, seconds_left
from daemon.egress.refusals import BudgetExceededError
from schema.errors import ClawbusError

_WRITE_S: Final = 1.0
_KEPT: Final = 3  # days kept in memory, so that a clock that is set back finds its day's count again
_MAX_AHEAD: Final = 5_000  # the most rows kept while the registry cannot be written


class Keeper(Protocol):
    """Where the totals are durable: central.db."""

    def load(self, first_day: str) -> Awaitable[Sequence[UsageRow]]:
        """Return the rows from a day on. Raise ClawbusError."""
        ...

    def write(self, rows: Sequence[UsageRow], before: str) -> Awaitable[None]:
        """Put the rows in the place of earlier ones and remove days before `before`. Raise ClawbusError."""
        ...


class Ledger:
    """Built once. `run` writes until it is cancelled; everything else is called in the event loop and does no I/O.

    `doubts` returns whether the clock may be wrong now: then no day is forgotten.
    """

    def __init__(
        self,
        budgets: Mapping[str, Budget],
        zone: tzinfo,
        clock: Clock,
        keeper: Keeper,
        doubts: Callable[[], bool] = lambda: False,
    ) -> None:
        self._doubts = doubts
        self._budgets = budgets
        self._zone = zone
        self._clock = clock
        self._keeper = keeper
        self._rows: dict[tuple[str, str, str], UsageRow] = {}
        self._changed: set[tuple[str, str, str]] = set()
        self._days: dict[str, None] = {}  # the days in `_rows`; the day counted last comes last
        self._told: set[tuple[str, str]] = set()
        self._log = structlog.get_logger("egress")

    def admit(self, agent: str, route: str) -> None:
        """Count a request that is passed on. Raise BudgetExceededError if the agent's daily budget is used up."""
        day = self._day()
        budget = self._budgets.get(agent) or self._budgets.get(EVERY_AGENT)
        if budget is not None:
            mine = [row for (of_day, of, _), row in self._rows.items() if (of_day, of) == (day, agent)]
            if (spent := budget.exceeded(mine)) is not None:
                self._tell(day, agent, spent)
                left = seconds_left(self._clock.now_ms(), self._zone)
                raise BudgetExceededError(f"{agent} has used {spent} of this day's budget.", retry_after_s=left)
        self._change(agent, route, lambda row: replace(row, requests=row.requests + 1))

    def refused(self, agent: str, route: str) -> None:
        """Count a request that was not passed on."""
        self._change(agent, route, lambda row: replace(row, refused=row.refused + 1))

    def ended(self, agent: str, route: str, usage: Usage, up: int, down: int, *, whole: bool) -> None:
        """Count what an admitted request used: tokens, and bytes of both bodies."""

        def change(row: UsageRow) -> UsageRow:
            counted = replace(
                row, failed=row.failed + (not whole), bytes_up=row.bytes_up + up, bytes_down=row.bytes_down + down
            )
            return counted.with_usage(usage)

        self._change(agent, route, change)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Load this day's rows, then write what changes, every second and at the end."""
        for row in await self._keeper.load(days_before(self._day(), _KEPT)):
            self._rows[row.day, row.agent, row.route] = row
            self._days[row.day] = None
        task_status.started()
        try:
            while True:
                await anyio.sleep(_WRITE_S)
                await self._write()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2 * _WRITE_S):
                await self._write()

    async def _write(self) -> None:
        changed, self._changed = self._changed, set()
        if not changed:
            return
        before = "" if self._doubts() else days_before(self._day(), KEPT_DAYS)
        try:
            await self._keeper.write([self._rows[key] for key in changed], before)
        except ClawbusError as error:
            if len(changed) < _MAX_AHEAD:
                self._changed |= changed
            self._log.warning("egress_usage_not_written", code=error.code, error=str(error))
            return
        while len(self._days) > _KEPT:
            oldest = next(iter(self._days))
            for key in [key for key in self._rows if key[0] == oldest and key not in self._changed]:
                del self._rows[key]
            del self._days[oldest]

    def _change(self, agent: str, route: str, change: Callable[[UsageRow], UsageRow]) -> None:
        day = self._day()
        key = (day, agent, route)
        self._days[day] = self._days.pop(day, None)  # the last one again
        self._rows[key] = change(self._rows.get(key) or UsageRow(*key))
        self._changed.add(key)

    def _day(self) -> str:
        return day_of(self._clock.now_ms(), self._zone)

    def _tell(self, day: str, agent: str, spent: str) -> None:
        if (day, agent) not in self._told:
            self._told = {one for one in self._told if one[0] == day} | {(day, agent)}
            self._log.warning("egress_budget_used_up", agent=agent, spent=spent)
