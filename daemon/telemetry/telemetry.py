"""Turns the engine's events into metrics and spans. Decides nothing.

Nothing is read back from it except the trace context of new work.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from daemon.core.attempt_end import RETRIED, AttemptEnd
from daemon.core.clock import Clock, SystemClock
from daemon.core.events import (
    AnswerDeadLettered,
    AnswerDeferred,
    AnswersDelivered,
    BudgetUsedUp,
    ContainerAdopted,
    ContainerSpawned,
    DeliveredAnswer,
    DeployEnded,
    EgressRequest,
    ExitSettled,
    MessageAccepted,
    MessageDeadLettered,
    MessageRefused,
    MessageRetried,
    MessageSettled,
    ScheduleFired,
    SendFailed,
    SendInDoubt,
    SeriesRearmed,
    SessionQuarantined,
    SpawnFailed,
    Subscriptions,
    SweepFinished,
    TurnStopped,
)
from daemon.core.printable import one_line
from daemon.core.trace import SpanStart, TraceContext
from daemon.telemetry.context import new_context, parse
from daemon.telemetry.deploy_spans import deploy_spans
from daemon.telemetry.metrics import CURRENCIES, NONE, OTHER, Metrics
from daemon.telemetry.spans import EXECUTE_TOOL, Event, Role, Span, about, context_of_row, tool_facts, turn_facts
from daemon.telemetry.tracing import NoTracer, Tracer
from schema.frozen import frozen
from schema.rows import Cause, TurnUsage


@frozen
class _Spawned:
    asked_at: int
    started_at: int


class Telemetry:
    """Built by the composition root, which subscribes it. Times are epoch milliseconds, durations seconds."""

    def __init__(
        self, metrics: Metrics | None = None, tracer: Tracer | None = None, clock: Clock | None = None
    ) -> None:
        self.metrics = metrics or Metrics(CollectorRegistry())
        self.tracer = tracer or NoTracer()
        self._clock = clock or SystemClock()
        self._spawned: dict[str, _Spawned] = {}  # by incarnation, of those that live

    def subscribe(self, events: Subscriptions) -> None:
        """Measure every event from now on."""
        events.subscribe(MessageAccepted, self._accepted)
        events.subscribe(MessageRefused, self._refused)
        events.subscribe(SeriesRearmed, self._rearmed)
        events.subscribe(ScheduleFired, self._rearmed)
        events.subscribe(ContainerSpawned, self._container_spawned)
        events.subscribe(ContainerAdopted, self._adopted)
        events.subscribe(SpawnFailed, self._spawn_failed)
        events.subscribe(ExitSettled, self._exit_settled)
        events.subscribe(MessageSettled, self._attempt_ended)
        events.subscribe(MessageSettled, self._used)
        events.subscribe(TurnStopped, self._used)
        events.subscribe(BudgetUsedUp, self._budget_used_up)
        events.subscribe(MessageRetried, self._attempt_ended)
        events.subscribe(MessageDeadLettered, self._attempt_ended)
        events.subscribe(AnswersDelivered, self._delivered)
        events.subscribe(SendFailed, self._send_failed)
        events.subscribe(SendInDoubt, self._in_doubt)
        events.subscribe(AnswerDeferred, self._deferred)
        events.subscribe(AnswerDeadLettered, self._dead_lettered)
        events.subscribe(SessionQuarantined, self._quarantined)
        events.subscribe(SweepFinished, self._swept)
        events.subscribe(EgressRequest, self._egress)
        events.subscribe(DeployEnded, self._deployed)

    # --- starts of spans, for the engine (`core.trace.Tracing`)

    def begin(self, traceparent: str | None) -> SpanStart:
        """Start the span of an incoming message, perhaps in a trace of its sender's."""
        return self._begin(parse(traceparent))

    def sending(self, agent: str, session: str, cause: Cause | None) -> SpanStart:
        """Start the span of a send. `cause` is the message that it answers, if it answers one."""
        if cause is None:
            return self._begin(None)
        return self._begin(self._context(agent, session, cause.message_id, cause.traceparent))

    def _begin(self, parent: TraceContext | None) -> SpanStart:
        ratio = self.tracer.ratio
        return SpanStart(self._clock.now_ms(), parent, None if ratio is None else new_context(parent, ratio))

    # --- in

    def _accepted(self, event: MessageAccepted) -> None:
        kind = self.metrics.duplicates if event.duplicate else self.metrics.accepted
        kind.labels(event.agent, self.metrics.channel(event.channel)).inc()
        if event.span.context is None:
            return
        self._emit(
            "accept", event.span.context, event.span.parent, event.span.at, event.at, Role.PRODUCER,
            about(event.agent, event.session, event.message_id, channel=event.channel, duplicate=event.duplicate),
        )  # fmt: skip

    def _refused(self, event: MessageRefused) -> None:
        self.metrics.refused.labels(event.code).inc()

    def _rearmed(self, event: SeriesRearmed | ScheduleFired) -> None:
        """Start a new trace for each occurrence."""
        context = self._context(event.agent, event.session, event.message_id, None)
        self._emit(
            "rearm", context, None, event.at, event.at, Role.PRODUCER,
            about(event.agent, event.session, event.message_id, series=event.series_id),
        )  # fmt: skip

    # --- containers

    def _container_spawned(self, event: ContainerSpawned) -> None:
        self.metrics.spawns.labels(event.agent, "started").inc()
        self.metrics.spawn.labels(event.agent).observe(max(0, event.at - event.asked_at) / 1000)
        self._spawned[event.incarnation] = _Spawned(event.asked_at, event.at)

    def _adopted(self, event: ContainerAdopted) -> None:
        self._spawned[event.incarnation] = _Spawned(event.asked_at, event.started_at)

    def _spawn_failed(self, event: SpawnFailed) -> None:
        if not event.started:
            self.metrics.spawns.labels(event.agent, event.code).inc()

    def _exit_settled(self, event: ExitSettled) -> None:
        self.metrics.exits.labels(event.agent, event.reason).inc()
        self._spawned.pop(event.incarnation, None)

    # --- attempts

    def _attempt_ended(self, event: MessageSettled | MessageRetried | MessageDeadLettered) -> None:
        attempt = event.attempt
        if attempt is None:
            return
        if attempt.outcome == RETRIED:
            self.metrics.retries.labels(event.agent).inc()
        else:
            self.metrics.finished.labels(event.agent, attempt.outcome).inc()
        self.metrics.wait.labels(event.agent).observe(max(0, attempt.claimed_at - attempt.due_at) / 1000)
        self.metrics.turn.labels(event.agent).observe((attempt.ended_at - attempt.claimed_at) / 1000)
        self._trace_try(event.agent, event.session, attempt, event.usage if isinstance(event, MessageSettled) else None)

    def _budget_used_up(self, event: BudgetUsedUp) -> None:
        self.metrics.budget_stops.labels(event.agent).inc()

    def _used(self, event: MessageSettled | TurnStopped) -> None:
        """Count what the agent says that the turn used."""
        usage = event.usage
        if usage is None:
            return
        for call in usage.tools:
            self.metrics.tools.labels(event.agent).observe((call.ended_at - call.started_at) / 1000)
        counts = {"input": usage.input_tokens, "output": usage.output_tokens, "cached": usage.cached_tokens}
        for kind, count in counts.items():
            if count:
                self.metrics.tokens.labels(event.agent, kind).inc(count)
        if usage.cost:
            currency = usage.currency if usage.currency in CURRENCIES else OTHER
            self.metrics.cost.labels(event.agent, currency).inc(usage.cost)

    def _trace_try(self, agent: str, session: str, ending: AttemptEnd, usage: TurnUsage | None) -> None:
        root = self._context(agent, session, ending.message.id, ending.message.traceparent)
        if root is None or self.tracer.ratio is None:
            return
        facts = about(agent, session, ending.message.id, incarnation=ending.incarnation, tries=ending.message.tries)
        spawned = self._spawned.get(ending.incarnation or "")
        self._child("wait", root, ending.due_at, ending.claimed_at, Role.INTERNAL, facts)
        if spawned is not None and spawned.started_at >= ending.due_at:
            # Its runner may have claimed before the runtime reported it as running.
            end = min(spawned.started_at, ending.claimed_at)
            self._child("spawn", root, min(spawned.asked_at, end), end, Role.INTERNAL, facts)
        good = ending.outcome == "completed"
        events = (Event("claimed", ending.claimed_at), Event("answered" if good else ending.outcome, ending.ended_at))
        turn = new_context(root, self.tracer.ratio)
        self._emit(
            "turn", turn, root, ending.claimed_at, ending.ended_at, Role.CONSUMER,
            facts | turn_facts(agent, session, usage), events, None if good else ending.outcome,
        )  # fmt: skip
        for call in usage.tools if usage is not None else ():
            # Within the turn, whatever the container's clock says.
            start, end = (min(max(at, ending.claimed_at), ending.ended_at) for at in (call.started_at, call.ended_at))
            name = one_line(call.name)
            self._emit(
                f"{EXECUTE_TOOL} {name}", new_context(turn, self.tracer.ratio), turn, start, end, Role.INTERNAL,
                facts | tool_facts(agent, session, name),
            )  # fmt: skip

    # --- out

    def _delivered(self, event: AnswersDelivered) -> None:
        for answer in event.answers:
            moved = self.metrics.deliveries(event.agent, answer.channel)
            moved.delivered.inc()
            cause = answer.cause
            if cause is not None and cause.due_at is not None:
                moved.round_trip.observe(max(0, event.at - cause.due_at) / 1000)
            self._send_ended(event, answer, "sent", None)

    def _send_failed(self, event: SendFailed) -> None:
        if event.in_doubt:
            self.metrics.in_doubt.labels(self.metrics.channel(event.channel)).inc()
        self.metrics.delivery_failures.labels(self.metrics.channel(event.channel), event.code).inc()
        self._send_ended(event, event, "delivery_failed", event.code)

    def _send_ended(
        self, event: AnswersDelivered | SendFailed, send: DeliveredAnswer | SendFailed, name: str, error: str | None
    ) -> None:
        """Measure one send, and emit its span: the send itself, then the commit of its receipt."""
        start = send.span
        if start is None:
            return
        self.metrics.sends(send.channel).observe(max(0, send.ended_at - start.at) / 1000)
        if start.context is None:
            return
        recorded = (Event("receipt_recorded", event.at),) if error is None else ()
        facts = about(event.agent, event.session, send.message_out_id, channel=send.channel, attempt=send.attempt)
        self._emit(
            "deliver", start.context, start.parent, start.at, event.at, Role.CLIENT, facts,
            (Event(name, send.ended_at), *recorded), error,
        )  # fmt: skip

    def _in_doubt(self, event: SendInDoubt) -> None:
        self.metrics.in_doubt.labels(self.metrics.channel(event.channel)).inc()

    def _deferred(self, event: AnswerDeferred) -> None:
        self.metrics.delivery_failures.labels(self.metrics.channel(event.channel), event.code).inc()

    def _dead_lettered(self, event: AnswerDeadLettered) -> None:
        self.metrics.answers_buried.labels(event.agent, event.code).inc()
        start = self.sending(event.agent, event.session, event.cause)
        facts = about(event.agent, event.session, event.message_out_id)
        self._emit("dead letter", start.context, start.parent, event.at, event.at, Role.INTERNAL, facts, (), event.code)

    # --- the gate

    def _egress(self, event: EgressRequest) -> None:
        route = event.name or NONE
        self.metrics.egress.labels(event.agent, route, event.code or "answered").inc()
        self.metrics.egress_tokens.labels(event.agent, route, "in").inc(event.usage.tokens_in)
        self.metrics.egress_tokens.labels(event.agent, route, "out").inc(event.usage.tokens_out)
        self.metrics.egress_bytes.labels(event.agent, route, "up").inc(event.bytes_up)
        self.metrics.egress_bytes.labels(event.agent, route, "down").inc(event.bytes_down)

    # --- the sweep

    def _deployed(self, event: DeployEnded) -> None:
        self.metrics.deploys.labels(event.deploy.state).inc()
        if self.tracer.ratio is not None:
            for span in deploy_spans(event.deploy, event.at):
                self.tracer.emit(span)

    def _swept(self, event: SweepFinished) -> None:
        self.metrics.sweep.observe(event.duration_s)
        self.metrics.sweep_errors.inc(event.errors)
        self.metrics.swept_at.set(event.at / 1000)

    def _quarantined(self, event: SessionQuarantined) -> None:
        self.metrics.quarantines.labels(event.agent).inc()

    # --- spans

    def _context(self, agent: str, session: str, message_id: str, traceparent: str | None) -> TraceContext | None:
        """Return the context in a message's row. If it has none and tracing is on, return one that is derived from its id."""
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
