"""Builds and connects the parts that live for as long as the daemon. Nothing runs yet: `main.py` starts and ends them.

Each part gets the parts that it calls. It publishes what it did as events (`core/events.py`), to which others subscribe.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Final, Protocol

from prometheus_client import CollectorRegistry

from daemon.api.daemon_operations import DaemonOperations
from daemon.api.live_status import LiveStatus
from daemon.channels.registry import Channels, build_channels, head_rules
from daemon.config.agents import Agent
from daemon.config.models import Config
from daemon.config.ownership import owned, ownership_of
from daemon.config.policies import fate_of, intake_limits, read_limits, schedule_limits_of
from daemon.core.clock import Clock
from daemon.core.destinations import AGENT_CHANNEL
from daemon.core.egress_usage import UsageRow
from daemon.core.ownership import Ownership
from daemon.core.printable import counted
from daemon.core.session_key import SessionKey
from daemon.core.slots import SlotState
from daemon.core.user_commands import rules
from daemon.core.zones import zone
from daemon.engine.agent_channel import AgentChannel, AgentChannelParts
from daemon.engine.awake import Awake
from daemon.engine.background import Background
from daemon.engine.budgets import Budgets
from daemon.engine.delivery import Delivery
from daemon.engine.events import Events
from daemon.engine.grants import Grants
from daemon.engine.held_files import HeldFiles
from daemon.engine.ingress import Ingress
from daemon.engine.live_destinations import LiveDestinations
from daemon.engine.poll_contexts import DeliverySettings
from daemon.engine.problems import Problems
from daemon.engine.quarantine import Quarantine
from daemon.engine.read_trouble import ReadTrouble
from daemon.engine.router import Router
from daemon.engine.session_sweep import SessionSweep
from daemon.engine.sessions import Sessions, SessionSettings
from daemon.engine.supervisor.slots import Timings
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule
from daemon.engine.sweep_steps import Settings as SweepSettings
from daemon.engine.sweep_steps import session_limits
from daemon.engine.sweeper import Sweeper
from daemon.engine.typing_signs import TypingSigns
from daemon.engine.waking import Waking
from daemon.engine.watch import Watch
from daemon.logs.engine_log import EngineLog
from daemon.maintenance.daemon_executor import DaemonExecutor
from daemon.maintenance.retention import Retention
from daemon.maintenance.session_deletion import Deletions
from daemon.maintenance.user_commands import UserCommands
from daemon.maintenance.verification import Verification
from daemon.monitoring.monitoring import Watched
from daemon.runtimes.engine_identity import EngineGuard
from daemon.runtimes.factory import SpecMaker
from daemon.runtimes.members import member_finder
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.data_folder import DataFolder
from daemon.store.dead_letters import Operator
from daemon.store.install import InstallFile
from daemon.store.mailbox import Mailbox
from daemon.store.registry import Registry
from daemon.systemd.watchdog import Pulse
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.telemetry import Telemetry
from daemon.telemetry.tracing import build_tracer
from daemon.workers.source import Origin
from schema.frozen import frozen

if TYPE_CHECKING:
    from daemon.egress.gate import Gate

_THREADS = 16


@frozen
class Overrides:
    """What is not in the configuration. Tests and benchmarks replace `timings` and `types` (the channel types).

    `main.py` passes the `registry` that it has opened, `source`: the release that runs, and `used_at`: when an earlier
    daemon last changed the folder, in epoch milliseconds.
    """

    timings: Timings | None = None
    types: Mapping[str, EntryPoint] | None = None
    registry: Registry | None = None
    source: Origin | None = None
    used_at: int | None = None


_NO_OVERRIDES: Final = Overrides()


class Registered(Protocol):
    """The daemon's registration, as the bus needs it."""

    def poke(self) -> None:
        """Register again, with the current configuration."""
        ...

    def hold(self, agents: Iterable[str], ownership: Ownership) -> None:
        """Own these agents and the role's channels on this host. Raise DuplicateOwnershipError or StorageError."""
        ...

    def payload(self) -> dict[str, Any]:
        """Return what `/healthz` and `status` report about this worker."""
        ...


class Bus:
    """Everything that lives for as long as the daemon does. Building it starts nothing."""

    def __init__(
        self,
        config: Config,
        folder: DataFolder,
        runtime: ContainerRuntime,
        install_id: str,
        clock: Clock,
        pulse: Pulse,
        overrides: Overrides = _NO_OVERRIDES,
    ) -> None:
        self.ownership = ownership_of(config)
        config = owned(config, self.ownership)
        self.config, self.clock, self.runtime, self.pulse = config, clock, runtime, pulse
        self._source = overrides.source
        self.agents: dict[str, Agent] = dict(config.agents)
        self.elsewhere = self.ownership.elsewhere  # agent -> its role, for agents that other daemons run
        self.slots = SlotState()  # the releases' slots as the conductor last saw them; empty if none are configured
        self.registration: Registered | None = None  # None until the daemon is registered
        self.channels: Channels = build_channels(config, clock, overrides.types)
        self.telemetry = _telemetry(config, self.channels, runtime, install_id, clock)
        self.events = Events()
        EngineLog(self.events)
        self.telemetry.subscribe(self.events)
        self.background = Background()
        self.schedule = Schedule(clock)
        self.awake = Awake(clock, overrides.used_at)
        specs = self._build_containers(folder, install_id, overrides)
        held_files = self._build_held_files(folder)
        self.delivery, self.sweeper, self.session_sweep = self._build_engine(held_files)
        self._build_intake(held_files, specs)
        self._build_maintenance(folder)

    def _build_containers(self, folder: DataFolder, install_id: str, overrides: Overrides) -> SpecMaker:
        """Build the gate, the sessions and their supervisor. Return what makes the containers' specifications."""
        config, clock, events = self.config, self.clock, self.events
        registry = overrides.registry or Registry(folder.central_db)
        self.gate = self._build_gate(folder)
        self.grants = Grants(self.agents, lambda: self.router.table)
        specs = SpecMaker(config, folder, self.agents, install_id, self.gate, self.elsewhere, self.grants.places)
        self.sessions = Sessions(
            folder.sessions_dir,
            registry,
            clock,
            _session_settings(config, specs.owner, self.agents, self.awake),
            events,
        )
        engine = EngineGuard(InstallFile(folder.install_record), install_id, self.runtime)
        self.supervisor = Supervisor(
            engine, self.sessions, config.runtime, clock, specs, self.schedule, events, overrides.timings
        )
        self.sessions.remember_with(self.supervisor.incarnations, install_id)
        self.budgets = Budgets(
            self.agents, zone(config.timezone), clock, self.sessions, self.supervisor, self.background, events,
            self.awake.doubts,
        )  # fmt: skip
        return specs

    def _build_gate(self, folder: DataFolder) -> Gate | None:
        """Build the gate if an agent may reach anything. Import it only then: its HTTP parts take megabytes."""
        config = self.config
        if not config.egress.is_open:
            return None
        from daemon.egress.gate import Gate  # noqa: PLC0415
        from daemon.egress.ledger import Ledger  # noqa: PLC0415

        keeper = _UsageKeeper(lambda: self.sessions)
        ledger = Ledger(config.egress.daily(), zone(config.timezone), self.clock, keeper, self.awake.doubts)
        gate = Gate(config.egress, folder.run_dir / "egress", self.clock, ledger, self.events.publish)
        gate.subscribe(self.events)
        return gate

    def _build_intake(self, held_files: HeldFiles, specs: SpecMaker) -> None:
        """Build what takes messages and events in, and what follows from them: waking, watching, typing signs."""
        config, clock, events = self.config, self.clock, self.events
        self.ingress = Ingress(
            self.sessions, self.agents, clock, held_files,
            limits=intake_limits(config), tracing=self.telemetry, events=events, elsewhere=self.elsewhere,
        )  # fmt: skip
        Waking(self.sessions, self.supervisor, self.schedule, self.background, clock).subscribe(events)
        self.watch = Watch(self.delivery.poke)
        self.watch.follow(events, self.sessions.known)
        self.typing = TypingSigns(self.channels, self.sessions.known, clock, events)
        self.problems = Problems(self.sessions, self.supervisor, self.delivery, held_files)
        self.router = Router(
            self.ingress, self.sessions, config.routes, clock, self.background, events, self.channels, self.awake.doubts
        )
        live_destinations = LiveDestinations(
            self.supervisor, self.background, self.grants.places, specs.write_destinations
        )
        live_destinations.subscribe(events)
        self.router.follow_changes_with(live_destinations.bring_up_to_date)

    def _build_maintenance(self, folder: DataFolder) -> None:
        """Build what carries out the verbs of operators and users, and what deletes and verifies."""
        config, clock, events = self.config, self.clock, self.events
        self.executor = DaemonExecutor(
            self.sessions, self.supervisor, clock, self.sweeper.poke, events, self.router, self.budgets
        )
        known = rules({name: table.rule() for name, table in config.commands.items()})
        self.router.answer_commands_with(UserCommands(self.sessions, self.executor, clock, self.sweeper.poke, known))
        self.retention = Retention(
            self.sessions, Mailbox(folder.mailbox_db), config.retention, clock, self.supervisor.may_run,
            self.sweeper.poke, partial(_expire, self.executor.deletions), self.router.load,
        )  # fmt: skip
        self.verification = Verification(self.sessions, read_limits(config), clock)

    def _build_held_files(self, folder: DataFolder) -> HeldFiles:
        held_files = HeldFiles(
            self.sessions, self.supervisor, self.schedule, self.background, self.clock,
            member_finder(self.config.runtime.kind, folder.run_dir / "process"),
            limit_s=self.config.sweep.claim_stuck_s,
        )  # fmt: skip
        held_files.subscribe(self.events)
        return held_files

    def _build_engine(self, held_files: HeldFiles) -> tuple[Delivery, Sweeper, SessionSweep]:
        """Build delivery, which moves messages, and the sweep, which repairs. Both use the same handler of unreadable files."""
        config, clock, events = self.config, self.clock, self.events
        read_trouble = ReadTrouble(
            clock, self.sessions.troubles, self.schedule,
            Quarantine(self.sessions, self.supervisor, events, self.background, clock),
            held_files, limit_s=config.sweep.claim_stuck_s,
        )  # fmt: skip
        settings = DeliverySettings(
            config.delivery,
            intake_limits(config),
            head_rules(config),
            random.Random().random,  # noqa: S311 - spreads retries; nothing secret
            self.grants.addresses,
            self.awake.since,
        )
        between_agents = AgentChannel(
            AgentChannelParts(
                sessions=self.sessions,
                agents=self.agents,
                limits=config.agent_messages,
                clock=clock,
                accept=lambda incoming: self.ingress.accept(incoming),  # noqa: PLW0108 - built later
                poke=lambda session: self.delivery.poke(session),  # noqa: PLW0108 - built later
            )
        )
        receivers = {**self.channels, AGENT_CHANNEL: between_agents}
        delivery = Delivery(
            receivers, settings, clock, self.supervisor, self.schedule, read_trouble, self.telemetry, events
        )
        session_sweep = SessionSweep(
            self.sessions, self.supervisor, delivery, self.schedule, clock,
            SweepSettings.of(config, self.agents), read_trouble, events,
        )  # fmt: skip
        sweeper = Sweeper(self.sessions, session_sweep, self.schedule, clock, config.sweep, self.pulse, events)
        return delivery, sweeper, session_sweep

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
            problems=lambda: [
                (str(item["what"]), int(item["since"]), str(item["why"])) for item in self.problems.degraded()
            ],
            max_containers=self.config.runtime.max_containers,
            worker=self._worker,
            slots=lambda: self.slots,
        )

    def _worker(self) -> dict[str, Any]:
        return self.registration.payload() if self.registration is not None else {}

    def operations(self) -> DaemonOperations:
        """Return what the control API serves."""
        limits = session_limits(self.config)
        live = LiveStatus(
            self.clock, self.agents, self.sessions, self.supervisor, self.sweeper, self.retention, self.problems, limits
        )
        live.worker = self._worker
        live.budgets = self.budgets.used_up
        live.source = self._source.as_json() if self._source is not None else None
        return DaemonOperations(
            self.config,
            self.clock,
            self.sessions,
            self.router,
            self.supervisor,
            self.channels.local,
            self.executor,
            live,
        )

    def status_line(self) -> str:
        """Return one line for systemd's STATUS=."""
        running, waiting = len(self.supervisor.alive()), len(self.supervisor.waiting())
        trouble = "; ".join(str(item["why"]) for item in self.problems.degraded())
        sessions = counted(len(self.sessions), "active session")
        return f"{counted(running, 'container')}, {waiting} waiting, {sessions}" + (
            f"; degraded: {trouble}" if trouble else ""
        )


@frozen
class _UsageKeeper:
    """Loads and writes the gate's token totals in central.db."""

    sessions: Callable[[], Sessions]  # a function, because the sessions are built after the gate, which they need

    async def load(self, first_day: str) -> Sequence[UsageRow]:
        """See `daemon.egress.ledger.Keeper`."""
        return await self.sessions().central(lambda registry: registry.egress_days(first_day))

    async def write(self, rows: Sequence[UsageRow], before: str) -> None:
        """See `daemon.egress.ledger.Keeper`."""
        await self.sessions().central(lambda registry: registry.write_egress(rows, before))


def _session_settings(
    config: Config, owner: tuple[int, int] | None, agents: Mapping[str, Agent], awake: Awake
) -> SessionSettings:
    return SessionSettings(
        read_limits(config),
        owner,
        # A container that locks its file can block a thread for as long as it likes, so there is one more for each.
        threads=_THREADS + config.runtime.max_containers,
        operation_s=config.sweep.session_timeout_s * 0.8,  # an operation gives up before the sweep gives up on it
        fate_of=lambda name: replace(
            fate_of(agents.get(name), config), trying_since=awake.since(), doubted=awake.doubts()
        ),
        schedule_limits_of=lambda name: schedule_limits_of(agents.get(name), config),
    )


def _telemetry(
    config: Config, channels: Channels, runtime: ContainerRuntime, install_id: str, clock: Clock
) -> Telemetry:
    metrics = Metrics(CollectorRegistry(), (*channels, AGENT_CHANNEL), runtime.name)
    traces = config.telemetry
    tracer = build_tracer(traces.otlp_endpoint, traces.trace_sample_ratio, install_id, metrics.count_spans)
    return Telemetry(metrics, tracer, clock)


async def _expire(deletions: Deletions, key: SessionKey) -> None:
    """Delete a session that was idle for longer than the configuration keeps one."""
    await deletions.delete(key, Operator("retention", "idle for longer than retention.idle_sessions_s"), force=False)
