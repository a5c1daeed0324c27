"""Checks that the important loops make progress, and notifies systemd's watchdog only while they do.

A daemon whose event loop responds but whose sweep hangs must be restarted. So the watchdog notification does not come
from a plain timer: it is sent only while every registered loop has reported progress within its own time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import anyio
import structlog

from daemon.core.clock import Clock
from daemon.systemd.notify import Notifier
from schema.frozen import frozen

DEFAULT_CHECK_S: Final = 10.0


@frozen
class Stall:
    """A loop that is late. `age_s`: seconds since its last progress."""

    name: str
    age_s: float
    allowed_s: float


class Pulse:
    """Records when each loop last reported progress, in monotonic seconds. No I/O."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._allowed: dict[str, float] = {}
        self._beats: dict[str, float] = {}

    def register(self, name: str, allowed_s: float) -> None:
        """Require a beat from `name` at least every `allowed_s` seconds. Registering it again replaces the limit."""
        self._allowed[name] = allowed_s
        self._beats[name] = self._clock.monotonic()

    def forget(self, name: str) -> None:
        """Stop watching a loop that has ended normally."""
        self._allowed.pop(name, None)
        self._beats.pop(name, None)

    def beat(self, name: str) -> None:
        """Record progress. Raise KeyError for an unregistered name: a typo would otherwise go unnoticed."""
        if name not in self._allowed:
            raise KeyError(name)
        self._beats[name] = self._clock.monotonic()

    def ages(self) -> Mapping[str, float]:
        """Return the seconds since each loop's last progress."""
        now = self._clock.monotonic()
        return {name: now - at for name, at in self._beats.items()}

    def stale(self, now: float | None = None) -> list[Stall]:
        """Return the loops that are late at `now` (monotonic seconds, default: the clock's), the latest first."""
        at = self._clock.monotonic() if now is None else now
        late = [
            Stall(name, at - self._beats[name], allowed)
            for name, allowed in self._allowed.items()
            if at - self._beats[name] > allowed
        ]
        return sorted(late, key=lambda stall: stall.allowed_s - stall.age_s)


class Watchdog:
    """Checks the pulse, notifies systemd while no loop is late, and logs each stall once."""

    def __init__(self, pulse: Pulse, notifier: Notifier, status: Callable[[], str] | None = None) -> None:
        self._pulse = pulse
        self._notifier = notifier
        self._status = status
        self._stalled: frozenset[str] = frozenset()
        self._log = structlog.get_logger()

    @property
    def interval_s(self) -> float:
        """Seconds between checks: at most a third of systemd's watchdog timeout, so that one late check is not fatal."""
        allowed = self._notifier.watchdog_interval
        return DEFAULT_CHECK_S if allowed is None else min(DEFAULT_CHECK_S, allowed / 3)

    async def run(self) -> None:
        """Check until cancelled, which happens when the daemon stops."""
        while True:
            self.check()
            await anyio.sleep(self.interval_s)

    def check(self) -> bool:
        """Check once. Return True when no loop is late; only then was systemd's watchdog notified."""
        late = self._pulse.stale()
        for stall in late:
            if stall.name not in self._stalled:
                self._log.error(
                    "loop_stalled",
                    loop=stall.name,
                    silent_s=round(stall.age_s, 1),
                    allowed_s=stall.allowed_s,
                    restart_expected=self._notifier.watchdog_interval is not None,
                )
        names = frozenset(stall.name for stall in late)
        for name in sorted(self._stalled - names):
            self._log.info("loop_recovered", loop=name)
        self._stalled = names
        if self._status is not None:
            self._notifier.status(self._status())
        if not late:
            self._notifier.watchdog()
        return not late
