"""What the bus reports of its work: facts in, metrics and traces out.

Nothing here may disturb what it watches: every method is quick, waits for nothing and swallows its own defects (logged).
It decides nothing, and nothing is read back from it but the trace context of what begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec

import structlog
from prometheus_client import CollectorRegistry

from daemon.core.attempt_end import RETRIED, AttemptEnd
from daemon.core.clock import Clock, SystemClock
from daemon.telemetry.context import TraceContext, new_context, parse
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.spans import Event, Role, Span, about, context_of_row
from daemon.telemetry.tracing import NoTracer, Tracer
from schema.rows import Cause, MessageIn

_P = ParamSpec("_P")


def _harmless(method: Callable[Concatenate[Telemetry, _P], None]) -> Callable[Concatenate[Telemetry, _P], None]:
    @wraps(method)
    def guarded(self: Telemetry, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 - what is told must never harm what is told of
            structlog.get_logger("telemetry").error("telemetry_raised", what=method.__name__, exc_info=True)

    return guarded


@dataclass(frozen=True, slots=True)
class Beginning:
    """Work that has begun: when, and as which span. `traceparent` goes with it, into a row or a header."""

    at: int
    parent: TraceContext | None
    context: TraceContext | None

    @property
    def traceparent(self) -> str | None:
        """Our own span's where we trace, else what came from outside, unchanged."""
        known = self.context or self.parent
        return known.header if known is not None else None


@dataclass(frozen=True, slots=True)
class _Spawned:
    asked_at: int
    started_at: int


class Telemetry:
    """Built by the composition root and passed to every part. Times are epoch milliseconds, durations seconds."""

    def __init__(
        self, metrics: Metrics | None = None, tracer: Tracer | None = None, clock: Clock | None = None
    ) -> None:
        self.metrics = metrics or Metrics(CollectorRegistry())
        self.tracer = tracer or NoTracer()
        self._clock = clock or SystemClock()
        self._spawned: dict[str, _Spawned] = {}  # by incarnation, of those that live

    # --- in

    def begin(self, traceparent: str | None) -> Beginning:
        """Something comes in, perhaps with a context of its own."""
        return self._begin(parse(traceparent))

    def _begin(self, parent: TraceContext | None) -> Beginning:
        ratio = self.tracer.ratio
        return Beginning(self._clock.now_ms(), parent, None if ratio is None else new_context(parent, ratio))

    @_harmless
    def accepted(
        self, begun: Beginning, agent: str, session: str, message_id: str, channel: str | None, *, duplicate: bool
    ) -> None:
        """A message is stored, or was before."""
        kind = self.metrics.duplicates if duplicate else self.metrics.accepted
        kind.labels(agent, self.metrics.channel(channel)).inc()
        if begun.context is None:
            return
        self._emit(
            "accept", begun.context, begun.parent, begun.at, self._clock.now_ms(), Role.PRODUCER,
            about(agent, session, message_id, channel=channel, duplicate=duplicate),
        )  # fmt: skip

    @_harmless
    def refused(self, code: str) -> None:
        """A message is not stored."""
        self.metrics.refused.labels(code).inc()

    @_harmless
    def rearmed(self, agent: str, session: str, messages: Iterable[MessageIn]) -> None:
        """Repeating messages have their next occurrence; each begins a trace of its own."""
        for message in messages:
            context = self._context(agent, session, message.id, None)
            now = self._clock.now_ms()
            self._emit(
                "rearm", context, None, now, now, Role.PRODUCER,
                about(agent, session, message.id, series=message.series_id),
            )  # fmt: skip

    # --- containers

    @_harmless
    def spawned(self, agent: str, incarnation: str, asked_at: int, started_at: int) -> None:
        """A container runs."""
        self.metrics.spawns.labels(agent, "started").inc()
        self.metrics.spawn.labels(agent).observe(max(0, started_at - asked_at) / 1000)
        self._spawned[incarnation] = _Spawned(asked_at, started_at)

    @_harmless
    def adopted(self, incarnation: str, asked_at: int, started_at: int) -> None:
        """A container ran already when the daemon started."""
        self._spawned[incarnation] = _Spawned(asked_at, started_at)

    @_harmless
    def spawn_failed(self, agent: str, code: str) -> None:
        """A container could not be started."""
        self.metrics.spawns.labels(agent, code).inc()

    @_harmless
    def exited(self, agent: str, incarnation: str, reason: str) -> None:
        """An exit is confirmed and all that it entails is done."""
        self.metrics.exits.labels(agent, reason).inc()
        self._spawned.pop(incarnation, None)

    # --- tries

    @_harmless
    def ended(self, agent: str, session: str, endings: Iterable[AttemptEnd]) -> None:
        """Tries are over: for the message too, or until the next one."""
        for ending in endings:
            if ending.outcome == RETRIED:
                self.metrics.retries.labels(agent).inc()
            else:
                self.metrics.finished.labels(agent, ending.outcome).inc()
            self.metrics.wait.labels(agent).observe((ending.claimed_at - ending.due_at) / 1000)
            self.metrics.turn.labels(agent).observe((ending.ended_at - ending.claimed_at) / 1000)
            self._trace_try(agent, session, ending)

    def _trace_try(self, agent: str, session: str, ending: AttemptEnd) -> None:
        root = self._context(agent, session, ending.message.id, ending.message.traceparent)
        if root is None or self.tracer.ratio is None:
            return
        facts = about(agent, session, ending.message.id, incarnation=ending.incarnation, tries=ending.message.tries)
        spawned = self._spawned.get(ending.incarnation or "")
        self._child("wait", root, ending.due_at, ending.claimed_at, Role.INTERNAL, facts)
        if spawned is not None and spawned.started_at >= ending.due_at:
            # Its runner may have claimed before the runtime told us that it runs.
            end = min(spawned.started_at, ending.claimed_at)
            self._child("spawn", root, min(spawned.asked_at, end), end, Role.INTERNAL, facts)
        good = ending.outcome == "completed"
        events = (Event("claimed", ending.claimed_at), Event("answered" if good else ending.outcome, ending.ended_at))
        self._child(
            "turn", root, ending.claimed_at, ending.ended_at, Role.CONSUMER, facts, events,
            None if good else ending.outcome,
        )  # fmt: skip

    # --- out

    def sending(self, agent: str, session: str, cause: Cause | None) -> Beginning:
        """A send begins. `cause` is the message that it answers, if it answers one."""
        if cause is None:
            return self._begin(None)
        return self._begin(self._context(agent, session, cause.message_id, cause.traceparent))

    @_harmless
    def sent(
        self, begun: Beginning, agent: str, session: str, channel: str, message_out_id: str, cause: Cause | None,
        *, ended_at: int, error_code: str | None, attempt: int,
    ) -> None:  # fmt: skip
        """A send is over and recorded: with a receipt, or with an error."""
        now = self._clock.now_ms()
        self.metrics.sends(channel).observe(max(0, ended_at - begun.at) / 1000)
        if error_code is None:
            moved = self.metrics.deliveries(agent, channel)
            moved.delivered.inc()
            if cause is not None and cause.due_at is not None:
                moved.round_trip.observe(max(0, now - cause.due_at) / 1000)
        else:
            self.metrics.delivery_failures.labels(self.metrics.channel(channel), error_code).inc()
        if begun.context is None:
            return
        result = Event("sent" if error_code is None else "delivery_failed", ended_at)
        recorded = (Event("receipt_recorded", now),) if error_code is None else ()
        facts = about(agent, session, message_out_id, channel=channel, attempt=attempt)
        self._emit(
            "deliver", begun.context, begun.parent, begun.at, now, Role.CLIENT, facts, (result, *recorded), error_code
        )

    @_harmless
    def in_doubt(self, channel: str) -> None:
        """It is unknown whether a send arrived; the answer is sent again."""
        self.metrics.in_doubt.labels(self.metrics.channel(channel)).inc()

    @_harmless
    def deferred(self, channel: str, code: str) -> None:
        """Nothing could take an answer now; it counts as a failed send."""
        self.metrics.delivery_failures.labels(self.metrics.channel(channel), code).inc()

    @_harmless
    def buried(self, agent: str, session: str, message_out_id: str, cause: Cause | None, code: str) -> None:
        """An answer is a dead letter."""
        self.metrics.answers_buried.labels(agent, code).inc()
        begun = self.sending(agent, session, cause)
        now = self._clock.now_ms()
        facts = about(agent, session, message_out_id)
        self._emit("dead letter", begun.context, begun.parent, now, now, Role.INTERNAL, facts, (), code)

    # --- the sweep

    @_harmless
    def swept(self, duration_s: float, errors: int) -> None:
        """A pass over the active sessions is over."""
        self.metrics.sweep.observe(duration_s)
        self.metrics.sweep_errors.inc(errors)
        self.metrics.swept_at.set(self._clock.now_ms() / 1000)

    @_harmless
    def quarantined(self, agent: str) -> None:
        """A session is out of service."""
        self.metrics.quarantines.labels(agent).inc()

    # --- spans

    def _context(self, agent: str, session: str, message_id: str, traceparent: str | None) -> TraceContext | None:
        """The context that a message's row carries; for one that carries none, where we trace, always the same one."""
        known, ratio = parse(traceparent), self.tracer.ratio
        if known is not None or ratio is None:
            return known
        return context_of_row(agent, session, message_id, ratio)

    def _child(
        self, name: str, root: TraceContext, start: int, end: int, role: Role, facts: dict[str, str | int | bool],
        events: tuple[Event, ...] = (), error: str | None = None,
    ) -> None:  # fmt: skip
        ratio = self.tracer.ratio
        if ratio is not None:
            self._emit(name, new_context(root, ratio), root, start, end, role, facts, events, error)

    def _emit(
        self, name: str, context: TraceContext | None, parent: TraceContext | None, start: int, end: int, role: Role,
        facts: dict[str, str | int | bool], events: tuple[Event, ...] = (), error: str | None = None,
    ) -> None:  # fmt: skip
        if context is not None:
            self.tracer.emit(Span(name, context, parent, start, max(start, end), role, facts, events, error))
