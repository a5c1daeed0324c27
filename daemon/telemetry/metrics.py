"""The instruments: every counter and histogram of the daemon, in a separate registry.

Gauges that are read at a scrape are in `collector.py`. A label never holds what a container or a sender may choose: agents
and channels come from the configuration, codes and reasons from our own classes. Never a session's or a message's id.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

OTHER: Final = "other"  # a channel that is not configured
NONE: Final = "none"  # no address at all
CURRENCIES: Final = ("EUR", "USD")  # what a cost is counted in; any other one is OTHER

_MOMENTS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0)


class Deliveries(NamedTuple):
    """The instruments for one agent and channel. Cached, because a delivery would look them up for every row."""

    delivered: Counter
    round_trip: Histogram


class Metrics:
    """Built once, with the names of the configured channels. Every method is cheap and safe from any thread."""

    def __init__(self, registry: CollectorRegistry, channels: Collection[str] = (), runtime: str = "") -> None:
        self.registry = registry
        self._channels = frozenset(channels)
        self._deliveries: dict[tuple[str, str], Deliveries] = {}
        self._sends: dict[str, Histogram] = {}
        self._for_messages()
        self._for_answers()
        self._for_containers()
        self._for_host()
        Info("clawbus_build", "The running program.", registry=registry).info(
            {"version": program_version(), "python": platform.python_version(), "runtime": runtime}
        )
        ProcessCollector(registry=registry)

    def channel(self, name: str | None) -> str:
        """Return a label's value for a channel that a message or a container named."""
        if name is None:
            return NONE
        return name if name in self._channels else OTHER

    def deliveries(self, agent: str, channel: str) -> Deliveries:
        """Return the instruments for one agent's receipts on one channel."""
        label = self.channel(channel)
        found = self._deliveries.get((agent, label))
        if found is None:
            found = self._deliveries[agent, label] = Deliveries(
                self.delivered.labels(agent, label), self.round_trip.labels(agent, label)
            )
        return found

    def sends(self, channel: str) -> Histogram:
        """Return the histogram of send times of one channel."""
        label = self.channel(channel)
        found = self._sends.get(label)
        if found is None:
            found = self._sends[label] = self.delivery.labels(label)
        return found

    def count_spans(self, outcome: str, count: int) -> None:
        """Count spans that were exported, failed or dropped."""
        self.spans.labels(outcome).inc(count)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"clawbus_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"clawbus_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _for_messages(self) -> None:
        """Make the instruments of messages and turns."""
        self.accepted = self._counter("messages_accepted", "Messages stored.", "agent", "channel")
        self.duplicates = self._counter(
            "messages_duplicate", "Messages that had been stored before.", "agent", "channel"
        )
        self.refused = self._counter("messages_refused", "Messages refused; nothing was stored.", "code")
        self.finished = self._counter(
            "messages_finished", "Messages that ended: completed, failed (by the agent), dead_lettered.", "agent", "outcome"
        )  # fmt: skip
        self.retries = self._counter("message_retries", "Tries that ended because their container did.", "agent")
        self.wait = self._histogram(
            "message_wait_seconds", "From accepted, or due, to claimed.", "agent", buckets=_LONG
        )
        self.turn = self._histogram("turn_duration_seconds", "From claimed to acked.", "agent", buckets=_LONG)
        self.tokens = self._counter("agent_tokens", "Tokens that agents report.", "agent", "kind")
        self.cost = self._counter("agent_cost", "Cost that agents report, in the currency.", "agent", "currency")
        self.tools = self._histogram(
            "tool_duration_seconds", "From a tool's start to its end, of turns that ended.", "agent", buckets=_LONG
        )
        self.budget_stops = self._counter("agent_budget_stops", "Daily budgets that were used up.", "agent")

    def _for_answers(self) -> None:
        """Make the instruments of answers and their delivery."""
        self.delivered = self._counter("answers_delivered", "Answers with a receipt.", "agent", "channel")
        self.delivery_failures = self._counter(
            "delivery_failures", "Sends that failed and are tried again.", "channel", "code"
        )
        self.in_doubt = self._counter("sends_in_doubt", "Sends that may or may not have arrived.", "channel")
        self.answers_buried = self._counter("answers_dead_lettered", "Answers given up.", "agent", "code")
        self.delivery = self._histogram(
            "delivery_duration_seconds", "Duration of a send, whatever its outcome.", "channel", buckets=_MOMENTS
        )
        self.round_trip = self._histogram(
            "round_trip_seconds", "From accepted, or due, to an answer's receipt.", "agent", "channel", buckets=_LONG
        )

    def _for_containers(self) -> None:
        """Make the instruments of containers, of the sweep and of the event loop."""
        self.spawns = self._counter("container_spawns", "Containers asked for: started, or the error's code.", "agent", "outcome")  # fmt: skip
        self.spawn = self._histogram(
            "container_spawn_duration_seconds", "From asked for to started.", "agent", buckets=_MOMENTS
        )
        self.exits = self._counter("container_exits", "Confirmed exits.", "agent", "reason")
        self.sweep = self._histogram(
            "sweep_duration_seconds", "One pass over the active sessions, without its pauses.", buckets=_MOMENTS
        )
        self.sweep_errors = self._counter("sweep_errors", "Sessions that a pass could not sweep.")
        self.swept_at = Gauge(
            "clawbus_sweep_last_completed_timestamp_seconds", "When the last pass ended (Unix time).", registry=self.registry
        )  # fmt: skip
        self.lag = self._histogram("event_loop_lag_seconds", "How late the event loop ran a timer.", buckets=_MOMENTS)
        self.quarantines = self._counter("sessions_quarantined", "Sessions taken out of service.", "agent")

    def _for_host(self) -> None:
        """Make the instruments of the gate, of deploys and of traces."""
        self.egress = self._counter(
            "egress_requests", "Requests at the gate: answered, or the refusal's code.", "agent", "route", "outcome"
        )
        self.egress_tokens = self._counter("egress_tokens", "Tokens that models report.", "agent", "route", "direction")
        self.egress_bytes = self._counter(
            "egress_bytes", "Bytes of bodies through the gate.", "agent", "route", "direction"
        )
        self.deploys = self._counter("deploys", "Deploys that ended while this daemon ran, by their state.", "state")
        self.spans = self._counter(
            "trace_spans", "Spans handed to the collector: exported, failed, dropped.", "outcome"
        )


def program_version() -> str:
    """Return the installed version, or `unknown` in a tree that was never installed."""
    try:
        return version("clawbus")
    except PackageNotFoundError:
        return "unknown"
