"""Alive and ready: what an orchestrator, a load balancer or a person asks first. Each check has a state and a reason.

An answer never waits: the task `run` checks what needs the disk, and a check that does not return is
itself the finding. Being asked changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any, Final

import anyio
import structlog

from daemon.core.clock import Clock
from daemon.monitoring.looplag import LoopLag
from schema.errors import ClawbusError
from schema.frozen import frozen

LATE_S: Final = 2.0
PROBE_S: Final = 5.0
OVERDUE_S: Final = 10.0


class State(StrEnum):
    """`degraded` needs attention but not a redirection of traffic; `failing` needs both."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"


@frozen
class Check:
    """The result of one check. `since` is epoch milliseconds, if known."""

    name: str
    state: State
    reason: str | None = None
    since: int | None = None


@frozen
class Views:
    """What the checks read. `problems`: (what, since epoch ms, why), as `status` shows them as degraded.

    `worker` says who this daemon is. `late_loops` names the loops that make no progress, `probe` asks database and disk and raises ClawbusError.
    """

    problems: Callable[[], Sequence[tuple[str, int, str]]]
    late_loops: Callable[[], Sequence[str]]
    probe: Callable[[], Awaitable[None]]
    worker: Callable[[], Mapping[str, Any]] = dict


# Where a problem belongs, and how bad it is. What is not here is another part's, and degraded.
_CHECKS: Final = ("runtime", "database", "disk")
_FAILING: Final = frozenset({("runtime", "runtime"), ("registry", "database"), ("storage", "disk")})
_DEGRADED: Final = frozenset({("image", "runtime"), ("disk", "disk")})


class Health:
    """Built once; `run` probes, the rest answers at once. `started`: start-up is complete and the end has not begun."""

    def __init__(self, views: Views, lag: LoopLag, clock: Clock, probe_s: float = PROBE_S) -> None:
        self._views = views
        self._lag = lag
        self._clock = clock
        self._probe_s = probe_s
        self._asked: float | None = None  # monotonic: since when a probe is under way
        self._probe_error: tuple[int, str] | None = None
        self.started = False

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await self.probe()
            await anyio.sleep(self._probe_s)

    async def probe(self) -> None:
        """Check the database and the disk once. Keep a failure for later answers."""
        self._asked = self._clock.monotonic()
        try:
            await self._views.probe()
        except ClawbusError as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - a failing check must not end the daemon
            structlog.get_logger("telemetry").error("telemetry_raised", what="probe", exc_info=True)
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._probe_error = None
        self._asked = None

    def _failed(self, why: str) -> None:
        since = self._probe_error[0] if self._probe_error is not None else self._clock.now_ms()
        self._probe_error = since, why

    def alive(self) -> dict[str, Any]:
        """Return the body of /healthz: the loop's lag in seconds, and which worker answers. Any answer means healthy."""
        return {"lag_s": round(self._lag.now(), 3), "worst_lag_s": round(self._lag.worst(), 3),
                "worker": dict(self._views.worker())}  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """Return the body of /readyz: {ready, started, checks: [{name, state, reason, since}]}."""
        checks = self.checks()
        ready = all(check.state is not State.FAILING for check in checks)
        return {"ready": ready, "started": self.started, "checks": [asdict(check) for check in checks]}

    def checks(self) -> list[Check]:
        """Return every check, the most important first."""
        problems = list(self._views.problems())
        found = [self._start(), self._loop(), self._loops()]
        probed = {"database": tuple(self._probed())}
        found += [_worst(name, [*_judged(problems, name), *probed.get(name, ())]) for name in _CHECKS]
        known = {what for what, _ in (*_FAILING, *_DEGRADED)}
        found += [Check(what, State.DEGRADED, why, since) for what, since, why in problems if what not in known]
        return found

    def _start(self) -> Check:
        if self.started:
            return Check("started", State.OK)
        return Check("started", State.FAILING, "start-up is not complete, or the end has begun")

    def _loop(self) -> Check:
        worst = self._lag.worst()
        if worst < LATE_S:
            return Check("loop_lag", State.OK)
        return Check("loop_lag", State.FAILING, f"the event loop was {worst:.1f} s late within the last half minute")

    def _loops(self) -> Check:
        late = self._views.late_loops()
        if not late:
            return Check("loops", State.OK)
        return Check("loops", State.FAILING, f"no progress: {', '.join(late)}")

    def _probed(self) -> Iterator[Check]:
        if self._probe_error is not None:
            since, why = self._probe_error
            yield Check("database", State.FAILING, why, since)
        if self._asked is not None and (waited := self._clock.monotonic() - self._asked) > OVERDUE_S:
            yield Check("database", State.FAILING, f"a read of central.db has not returned for {waited:.0f} s")


def _judged(problems: Sequence[tuple[str, int, str]], name: str) -> Iterator[Check]:
    for what, since, why in problems:
        if (what, name) in _FAILING:
            yield Check(name, State.FAILING, why, since)
        elif (what, name) in _DEGRADED:
            yield Check(name, State.DEGRADED, why, since)


def _worst(name: str, found: Sequence[Check]) -> Check:
    """Return the worst of one check's findings; the first of equals."""
    failing = [check for check in found if check.state is State.FAILING]
    return (failing or [*found, Check(name, State.OK)])[0]
