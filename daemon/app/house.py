"""The parts that live for as long as the daemon does, built and wired. Nothing runs yet: `main.py` starts and ends them.

The parts do not know each other. What one tells another goes through `Links`, and everything else is passed in.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from daemon.channels.registry import Channels, build_channels, head_rules
from daemon.config.models import Agent, Config
from daemon.config.policies import agent_policy, fate_of, read_limits
from daemon.core.clock import Clock
from daemon.core.events import SessionQuarantined
from daemon.core.message_fate import EXPIRY_GRACE
from daemon.core.trace import Tracing
from daemon.engine.delivery import Delivery
from daemon.engine.events import Events
from daemon.engine.held_files import HeldFiles
from daemon.engine.ingress import Ingress
from daemon.engine.sessions import Session, Sessions
from daemon.engine.supervisor.slots import Hooks, Timings
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.sweep_steps import Settings as SweepSettings
from daemon.engine.sweeper import Sweeper
from daemon.engine.troubles import Troubles
from daemon.engine.watch import Watch
from daemon.logs.engine_log import EngineLog
from daemon.maintenance.retention import Retention
from daemon.maintenance.session_deletion import Deletions
from daemon.maintenance.verification import Verification
from daemon.monitoring.monitoring import Watched
from daemon.runtimes.engine_identity import EngineGuard
from daemon.runtimes.factory import images_of, spec_maker
from daemon.runtimes.members import member_finder
from daemon.runtimes.protocol import ContainerRuntime, Exit
from daemon.store.data_folder import DataFolder
from daemon.store.dead_letters import Operator
from daemon.store.install import InstallFile
from daemon.store.mailbox import Mailbox
from daemon.store.registry import Registry, SessionKey
from daemon.systemd.watchdog import Pulse
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.telemetry import Telemetry
from daemon.telemetry.tracing import build_tracer
from schema.errors import ClawbusError
from schema.rows import MessageIn

_THREADS = 16


@dataclass(slots=True)
class House:
    """Everything that lives for as long as the daemon does."""

    config: Config
    clock: Clock
    agents: dict[str, Agent]
    runtime: ContainerRuntime
    sessions: Sessions
    channels: Channels
    supervisor: Supervisor
    delivery: Delivery
    sweeper: Sweeper
    schedule: Schedule
    watch: Watch
    ingress: Ingress
    pulse: Pulse
    retention: Retention
    verification: Verification
    channel_problems: dict[str, tuple[int, str]]
    telemetry: Telemetry
    events: Events

    def degraded(self) -> list[dict[str, Any]]:
        """Return what does not work now, since when and why."""
        found: list[dict[str, Any]] = []
        if self.sessions.registry_problem is not None:
            since, why = self.sessions.registry_problem
            found.append({"what": "registry", "since": since, "why": why})
        elif self.sessions.central_problem is not None:
            since, why = self.sessions.central_problem
            found.append({"what": "central.db", "since": since, "why": why})
        for what, trouble in (("storage", self.sessions.storage.problem), ("disk", self.sessions.storage.low)):
            if trouble is not None:
                found.append({"what": what, "since": trouble[0], "why": trouble[1]})
                if what == "storage":
                    found[-1] |= {"code": self.sessions.storage.code, "resource": self.sessions.storage.resource}
        if self.supervisor.unavailable is not None:
            since, why = self.supervisor.unavailable
            found.append({"what": "runtime", "since": since, "why": why})
        if self.supervisor.image_problem is not None:
            since, why = self.supervisor.image_problem
            found.append({"what": "image", "since": since, "why": why})
        for name, (since, why) in {**self.delivery.problems(), **self.channel_problems}.items():
            found.append({"what": f"channel {name}", "since": since, "why": why})
        return found

    def watched(self) -> Watched:
        """Return what metrics and readiness read."""
        return Watched(
            data_dir=self.config.data_dir,
            clock=self.clock,
            sessions=self.sessions,
            supervisor=self.supervisor,
            delivery=self.delivery,
            pulse=self.pulse,
            channels=tuple(self.channels),
            agents=lambda: tuple(self.agents),
            problems=lambda: [(str(item["what"]), int(item["since"]), str(item["why"])) for item in self.degraded()],
            max_containers=self.config.runtime.max_containers,
        )

    def status_line(self) -> str:
        """One line for systemd's STATUS=."""
        running, waiting = len(self.supervisor.alive()), len(self.supervisor.waiting())
        trouble = "; ".join(str(item["why"]) for item in self.degraded())
        return f"{running} containers, {waiting} waiting, {len(self.sessions)} active sessions" + (
            f"; degraded: {trouble}" if trouble else ""
        )


class Links:
    """What the parts call each other through. Each of them is built with some of these; `house` is set when all are there."""

    house: House
    held_files: HeldFiles

    def changed(self, session: Session) -> None:
        """The session's outbound.db was written."""
        self.house.delivery.poke(session)

    def due(self, key: SessionKey) -> None:
        """The schedule's time for this session has come."""
        self.house.sweeper.poke(key)

    def wake_at(self, session: Session, when: int) -> None:
        """Something is due then (milliseconds of the epoch)."""
        self.house.schedule.at(session.key, when)

    def look_later(self, session: Session) -> None:
        """Let the sweep look at it next."""
        self.house.sweeper.poke(session.key)

    def look_for_room(self) -> None:
        """A session has settled: its container may make room for one that waits."""
        self.house.supervisor.look_for_room()

    def live_incarnation(self, session: Session) -> str | None:
        """The one that runs now."""
        return self.house.supervisor.live_incarnation(session)

    def container_of(self, session: Session) -> str | None:
        """The id of its container, while that runs."""
        slot = self.house.supervisor.slot(session.key)
        return slot.container_id if slot is not None and not slot.exited.is_set() else None

    async def why_it_may_go(self, session: Session) -> str | None:
        """Why its container may lose its slot to a session that waits."""
        return await self.house.sweeper.why_it_may_go(session)

    async def drain(self, session: Session, incarnation: str) -> bool:
        """Let it claim nothing more; whether it works on nothing."""
        return await self.house.sweeper.drain(session, incarnation)

    def started(self, session: Session) -> None:
        """Its container runs."""
        self.house.watch.add(session)

    async def exited(self, session: Session, incarnation: str, reason: str, exit_: Exit) -> bool:
        """Its container's exit is confirmed; whether it had claimed anything."""
        self.house.watch.remove(session)
        return await self.house.sweeper.after_exit(session, incarnation, reason, exit_)

    def end_container(self, session: Session, reason: str) -> None:
        """Kill it."""
        self.house.supervisor.begin_end(session.key, reason, graceful=False)

    def files_held(self, session: Session, seconds: float, error: ClawbusError) -> None:
        """Its files could not be read for too long."""
        self.held_files.unreadable(session, seconds, error)

    def quarantine(self, session: Session, reason: str) -> None:
        """Out of service, from this moment and durably."""
        session.quarantined = reason
        self.house.delivery.later(partial(_quarantine, self.house, session, reason))

    def accepted(self, session: Session, message: MessageIn) -> None:
        """A message is committed: wake its agent, now or when the message is due."""
        house = self.house
        if message.not_after is not None:
            house.schedule.at(session.key, message.not_after + EXPIRY_GRACE)
        if message.process_after is not None and message.process_after > house.clock.now_ms():
            house.schedule.at(session.key, message.process_after)
        elif message.trigger and house.supervisor.slot(session.key) is None:
            house.delivery.later(partial(house.supervisor.wake, session))


def build_house(
    config: Config,
    folder: DataFolder,
    runtime: ContainerRuntime,
    install_id: str,
    clock: Clock,
    pulse: Pulse,
    timings: Timings | None = None,
    types: Mapping[str, EntryPoint] | None = None,
    registry: Registry | None = None,
) -> House:
    """Wire everything; nothing runs yet.

    `timings` and `types` (of channels) default to the supervisor's and to what is installed, `registry` to the folder's.
    """
    links, agents = Links(), dict(config.agents)
    specs = spec_maker(config, folder, agents, install_id)
    sessions = _sessions(config, folder, registry or Registry(folder.central_db), clock, specs.owner, agents)
    channels = build_channels(config, clock, types)
    telemetry, events = _telemetry(config, channels, runtime, install_id, clock), Events()
    EngineLog(events)
    telemetry.subscribe(events)
    hooks = Hooks(
        make_spec=specs.make,
        prepare=specs.prepare,
        on_started=links.started,
        on_exit=links.exited,
        after_exit=links.look_later,
        wake_at=links.wake_at,
        why_it_may_go=links.why_it_may_go,
        drain=links.drain,
        images=lambda: images_of(agents.values(), config),
        cap_of=lambda agent: found.max_containers if (found := agents.get(agent)) is not None else None,
    )
    engine = EngineGuard(InstallFile(folder.install_record), install_id, runtime)
    supervisor = Supervisor(runtime, sessions, config.runtime, clock, hooks, events, engine, timings)
    sessions.remember_with(supervisor.incarnations, install_id)
    delivery = _delivery(config, channels, clock, links, telemetry, events, sessions.troubles)
    members = member_finder(config.runtime.kind, folder.run_dir / "process")
    links.held_files = HeldFiles(
        clock,
        sessions.troubles,
        limit_s=config.sweep.claim_stuck_s,
        container_of=links.container_of,
        session_of=sessions.known,
        members=members,
        end_container=links.end_container,
        wake_at=links.wake_at,
        later=delivery.later,
    )
    sessions.on_refused = links.held_files.refused
    sessions.check_holder, sessions.check_holders = links.held_files.check, links.held_files.check_all
    schedule = Schedule(clock, links.due)
    links.house = House(
        config=config,
        clock=clock,
        agents=agents,
        runtime=runtime,
        sessions=sessions,
        channels=channels,
        supervisor=supervisor,
        delivery=delivery,
        sweeper=Sweeper(
            sessions,
            supervisor,
            delivery,
            schedule,
            clock,
            config.sweep,
            SweepSettings.of(config),
            pulse,
            events,
            members=members,
            policy_of=lambda agent: agent_policy(config, agents.get(agent)),
        ),
        schedule=schedule,
        watch=Watch(links.changed),
        ingress=Ingress(
            sessions,
            agents,
            clock,
            links.accepted,
            max_content_bytes=config.limits.max_content_bytes,
            tracing=telemetry,
            events=events,
        ),
        pulse=pulse,
        retention=Retention(
            sessions,
            Mailbox(folder.mailbox_db),
            config.retention,
            clock,
            supervisor.may_run,
            links.due,
            partial(_expire, Deletions(sessions, supervisor, folder.sessions_dir, clock)),
        ),
        verification=Verification(sessions, read_limits(config), clock),
        channel_problems={},
        telemetry=telemetry,
        events=events,
    )
    return links.house


def _sessions(
    config: Config,
    folder: DataFolder,
    registry: Registry,
    clock: Clock,
    owner: tuple[int, int] | None,
    agents: Mapping[str, Agent],
) -> Sessions:
    return Sessions(
        folder.sessions_dir,
        registry,
        clock,
        read_limits(config),
        owner,
        # A container can make one thread wait as long as it likes (with locks); all of them together leave enough.
        threads=_THREADS + config.runtime.max_containers,
        operation_s=config.sweep.session_timeout_s * 0.8,  # so that the operation's end comes before the sweep's
        fate_of=lambda name: fate_of(agents.get(name), config),
    )


def _telemetry(
    config: Config, channels: Channels, runtime: ContainerRuntime, install_id: str, clock: Clock
) -> Telemetry:
    metrics = Metrics(CollectorRegistry(), channels, runtime.name)
    traces = config.telemetry
    tracer = build_tracer(traces.otlp_endpoint, traces.trace_sample_ratio, install_id, metrics.count_spans)
    return Telemetry(metrics, tracer, clock)


def _delivery(
    config: Config, channels: Channels, clock: Clock, links: Links, tracing: Tracing, events: Events, troubles: Troubles
) -> Delivery:
    return Delivery(
        channels,
        config.delivery,
        clock,
        live_incarnation=links.live_incarnation,
        wake_at=links.wake_at,
        look_later=links.look_later,
        on_settled=links.look_for_room,
        quarantine=links.quarantine,
        files_held=links.files_held,
        unreadable_s=config.sweep.claim_stuck_s,
        max_content_bytes=config.limits.max_content_bytes,
        head_rules=head_rules(config),
        rng=random.Random(),  # noqa: S311 - spreads retries; nothing secret
        tracing=tracing,
        events=events,
        troubles=troubles,
    )


async def _expire(deletions: Deletions, key: SessionKey) -> None:
    """Delete a session that was idle for longer than the configuration keeps one."""
    await deletions.delete(key, Operator("retention", "idle for longer than retention.idle_sessions_s"), force=False)


async def _quarantine(house: House, session: Session, reason: str) -> None:
    """Out of service until an operator releases it; its container is ended, its messages are kept."""
    key, now = session.key, house.clock.now_ms()
    house.events.publish(SessionQuarantined(now, key.agent, key.session, reason))
    try:
        await house.sessions.central(lambda registry: registry.quarantine(key, reason, now))
    except ClawbusError as error:
        structlog.get_logger("quarantine").error("quarantine_not_recorded", error=str(error), hint=error.hint)
    house.supervisor.begin_end(key, "quarantine", graceful=False)
