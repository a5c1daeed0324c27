"""Gauges that are read at each scrape: a snapshot of the live objects, taken on the event loop, rendered elsewhere.

The snapshot is cheap and touches no file; what waits in the files comes from `backlog.py`. Rendering runs in a thread, so it
sees nothing but the snapshot: an object of the loop may change under it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.core.clock import Clock
from daemon.core.slots import DEPLOY_STATES, GATES, SlotState
from daemon.engine.supervisor.slots import Phase
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.monitoring.backlog import BacklogWatch
from daemon.monitoring.health import Health, State
from daemon.systemd.watchdog import Pulse
from schema.frozen import frozen

# Always exported, 0 while all is well: an alert on a series that comes and goes is hard to write and easy to miss.
DEGRADABLE: Final = ("registry", "storage", "disk", "runtime", "image")

Labels = tuple[str, ...]
Series = Mapping[Labels, float]


@frozen
class Sources:
    """The live objects that a snapshot reads. `degraded` is what `status` shows as degraded; `channel` makes a label."""

    clock: Clock
    supervisor: Supervisor
    backlog: BacklogWatch
    health: Health
    pulse: Pulse
    degraded: Callable[[], Sequence[str]]
    channels: Sequence[str]
    channel: Callable[[str], str]
    agents: Callable[[], Sequence[str]]
    max_containers: int
    senders: Callable[[], int]
    slots: Callable[[], SlotState]


@dataclass(slots=True)
class _Gauge:
    name: str
    text: str
    labels: Labels = ()
    series: dict[Labels, float] = field(default_factory=dict[Labels, float])


class BusCollector(Collector):
    """Registered once; exports the last snapshot. Built without one, it exports nothing."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._gauges: tuple[_Gauge, ...] = ()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, because registering must not take a snapshot."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return the last snapshot as Prometheus wants it. May be called in any thread."""
        for gauge in self._gauges:
            family = GaugeMetricFamily(f"clawbus_{gauge.name}", gauge.text, labels=gauge.labels)
            for labels, value in gauge.series.items():
                family.add_metric(labels, value)
            yield family

    def take(self) -> None:
        """Take a new snapshot, on the event loop."""
        sources = self._sources
        self._gauges = (
            *_containers(sources),
            *_queues(sources),
            *_state(sources),
            *_deploys(sources),
            *_process(sources),
        )


def _containers(sources: Sources) -> Iterator[_Gauge]:
    phases = Counter(slot.phase for slot in sources.supervisor.slots())
    yield _Gauge(
        "containers", "Containers under supervision.", ("phase",), {(p.value,): float(phases[p]) for p in Phase}
    )
    yield _Gauge("containers_limit", "runtime.max_containers.", (), {(): float(sources.max_containers)})
    waiting = len(sources.supervisor.waiting())
    yield _Gauge("sessions_waiting_for_container", "Sessions in the spawn queue.", (), {(): float(waiting)})


def _queues(sources: Sources) -> Iterator[_Gauge]:
    now, backlog = sources.clock.now_ms(), sources.backlog
    agents = dict.fromkeys([*sources.agents(), *(key.agent for key in backlog.known)])
    waiting, oldest, claimed = ({(agent,): 0.0 for agent in agents} for _ in range(3))
    sends = {(channel,): 0.0 for channel in sources.channels}
    send_ages, scheduled = dict(sends), dict(sends)
    for key, found in backlog.known.items():
        label = (key.agent,)
        waiting[label] += found.waiting
        claimed[label] += found.claimed
        if found.oldest_at is not None:
            oldest[label] = max(oldest[label], (now - found.oldest_at) / 1000)
        for queued in found.answers:
            channel = (sources.channel(queued.channel),)
            sends[channel] = sends.get(channel, 0.0) + queued.count
            scheduled[channel] = scheduled.get(channel, 0.0) + queued.scheduled
            if queued.oldest_at is not None:
                send_ages[channel] = max(send_ages.get(channel, 0.0), (now - queued.oldest_at) / 1000)
    dead = {(agent,): 0.0 for agent in agents}
    for key, count in backlog.dead_letters().items():
        dead[key.agent,] = dead.get((key.agent,), 0.0) + count
    yield _Gauge("messages_waiting", "Messages that are due and unclaimed.", ("agent",), waiting)
    yield _Gauge("messages_oldest_waiting_seconds", "How long the oldest of them has been due.", ("agent",), oldest)
    yield _Gauge("messages_claimed", "Messages that an agent works on.", ("agent",), claimed)
    yield _Gauge("answers_waiting", "Answers that are due and have no receipt.", ("channel",), sends)
    yield _Gauge("answers_scheduled", "Answers that wait for a time of their own.", ("channel",), scheduled)
    yield _Gauge("answers_oldest_waiting_seconds", "How long the oldest of them has been due.", ("channel",), send_ages)
    yield _Gauge("dead_letters", "Open dead letters, of messages and answers.", ("agent",), dead)
    yield _Gauge("sends_in_progress", "Destinations that are being sent to.", (), {(): float(sources.senders())})
    yield _Gauge("backlog_sessions_missed", "Active sessions whose files were not read for this scrape.", (), {(): float(backlog.missed)})  # fmt: skip


def _state(sources: Sources) -> Iterator[_Gauge]:
    yield _Gauge("sessions_active", "Sessions with work.", (), {(): float(len(sources.backlog.sessions))})
    held = float(len(sources.backlog.totals.quarantined))
    yield _Gauge("sessions_in_quarantine", "Sessions out of service.", (), {(): held})
    degraded = set(sources.degraded())
    names = dict.fromkeys([*DEGRADABLE, *(f"channel {name}" for name in sources.channels), *degraded])
    yield _Gauge("degraded", "1 for what does not work now.", ("what",), {(n,): float(n in degraded) for n in names})
    checks = sources.health.checks()
    ready = all(check.state is not State.FAILING for check in checks)
    yield _Gauge("ready", "1 while /readyz reports ready.", (), {(): float(ready)})
    yield _Gauge(
        "check_failing", "1 for a check of /readyz that fails.", ("check",),
        {(check.name,): float(check.state is State.FAILING) for check in checks},
    )  # fmt: skip
    ages = {(name,): age for name, age in sources.pulse.ages().items()}
    yield _Gauge("loop_progress_age_seconds", "Since a loop last made progress.", ("loop",), ages)


def _deploys(sources: Sources) -> Iterator[_Gauge]:
    """Yield the last deploy's gauges, 0 without a deploy. The record outlives the daemons, so both slots export the same."""
    state, now = sources.slots(), sources.clock.now_ms()
    deploy = state.deploy
    gates = {one.name: one for one in deploy.gates} if deploy is not None else {}
    ages = {
        (name,): max(0, (one.ended or now) - one.since) / 1000 if (one := gates.get(name)) is not None and one.since else 0.0
        for name in GATES
    }  # fmt: skip
    failed = {(name,): float(name in gates and gates[name].status == "fail") for name in GATES}
    names = {(one,): float(deploy is not None and deploy.state == one) for one in DEPLOY_STATES}
    ended = (deploy.ended_at or 0) / 1000 if deploy is not None else 0.0
    yield _Gauge("deploy_state", "1 for the state of the last deploy.", ("state",), names)
    yield _Gauge("deploy_ended_timestamp_seconds", "When the last deploy ended (Unix time).", (), {(): ended})
    yield _Gauge(
        "deploy_gate_seconds", "Seconds that each gate of the last deploy took, or has so far.", ("gate",), ages
    )
    yield _Gauge("deploy_gate_failed", "1 for a gate of the last deploy that failed.", ("gate",), failed)
    yield _Gauge("serving_epoch", "How often the serving slot has changed.", (), {(): float(state.epoch)})


def _process(sources: Sources) -> Iterator[_Gauge]:
    yield _Gauge("event_loop_tasks", "Tasks of the event loop.", (), {(): float(len(asyncio.all_tasks()))})
    disk = sources.backlog.disk
    if disk is not None:  # one that cannot be asked has no series; the checks say so
        yield _Gauge("data_disk_free_bytes", "Free on the data folder's disk.", (), {(): float(disk.free)})
        yield _Gauge("data_disk_size_bytes", "Size of the data folder's disk.", (), {(): float(disk.size)})
