"""The facts that diagnoses are made from: about the host, one session, one run. Data only.

Times are epoch milliseconds, durations milliseconds. What could not be found out is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from daemon.core.command_words import restart_command, start_command
from daemon.core.daemon_status import DaemonState
from daemon.core.run_state import Life, RunEvidence, Verdict
from schema.frozen import frozen

HELD_MS: Final = 5 * 60_000


@frozen
class Degradation:
    """A part that the running daemon reports as not working. `what` is its name: runtime, image, storage, disk, registry."""

    what: str
    why: str
    since: int | None
    code: str | None = None  # the code of the error, where it says more than `what`
    resource: str | None = None  # the resource that this host has run out of, one of schema.os_faults.RESOURCES


@frozen
class Container:
    """A container of this install as the runtime lists it. `restarts`: by a restart policy; `paused`: frozen."""

    container_id: str
    agent: str
    session: str
    incarnation: str
    started_at: int
    restarts: bool = False
    paused: bool = False


@frozen
class ClockFacts:
    """Evidence of a jump of the wall clock.

    `ahead_ms`: how far the newest evidence lies in the future. `jumped_at`: the daemon saw one, `by_ms` forward (or back,
    when negative). `waits_until`: the latest time that something due was put off to by the clock as it was then.
    """

    ahead_ms: int = 0
    where: str | None = None
    jumped_at: int | None = None
    by_ms: int | None = None
    agent: str | None = None
    session: str | None = None
    message_id: str | None = None
    waits_until: int | None = None


@frozen
class Holder:
    """A session whose container takes one of the slots. `message_id` is what it works on, None for nothing.

    `since`: when it claimed that, or when the container was started.
    """

    agent: str
    session: str
    since: int
    message_id: str | None = None


@frozen
class UsedUp:
    """A process that has every descriptor open that its limit allows. `hard` is what it may be given."""

    pid: int
    limit: int
    hard: int


@frozen
class Limit:
    """A resource limit of the daemon's process. `option` is prlimit's; a negative number means no limit.

    `used` is what it uses now, None if unknown.
    """

    option: str
    soft: int
    hard: int
    used: int | None = None

    @property
    def tight(self) -> bool:
        """Whether the process is near it, or past nine tenths."""
        return self.soft >= 0 and self.used is not None and self.used * 10 >= self.soft * 9


@frozen
class LockHolder:
    """A process that holds a lock on a file: neither the daemon nor one of the session's container. `name` has its pid."""

    pid: int
    name: str
    file: str


@frozen
class SlotFacts:
    """The two slots of a folder that uses them.

    `error`: why the record of slots cannot be read. `absent`: the slot, linked to a release, in which no standby answers.
    `release`: the short id of the release that serves.
    `serving` is the recorded slot. `stuck`: the same, where its release is gone or damaged; `instead` is one that it may be linked to.
    """

    error: str | None = None
    absent: str | None = None
    release: str = ""
    stuck: str | None = None
    instead: str = ""
    serving: str | None = None


@frozen
class HostFacts:
    """The host: the daemon, the registry, the runtime, the disk, the clock."""

    now: int
    data_dir: str
    daemon: DaemonState = DaemonState.UP
    daemon_detail: str | None = None
    registry_missing: bool = False
    registry_error: str | None = None
    file_errors: tuple[str, ...] = ()  # errors of the data folder's other files, such as mailbox.db
    runtime: str = "docker"
    runtime_error: str | None = None
    runtime_repair: str | None = None  # the command that repairs `runtime_error`
    other_engine: bool = False  # the engine that answered is not the containers' own; `runtime_error` names both
    # The installation that this folder was copied from, while no daemon has started on the copy.
    copied_from: str | None = None
    other_runtime: str | None = None  # the runtime that the containers run under, when another one is configured
    image_error: str | None = None
    image_repair: str | None = None
    image_others: tuple[tuple[str, str], ...] = ()
    images_checked: bool = False  # every configured image was found usable just now
    unit: str | None = None  # the systemd unit that starts this configuration's daemon
    holder_pid: int | None = None  # the process of a daemon that holds the folder and does not answer
    used_up: UsedUp | None = None  # set when that process has no file descriptor left
    lock_holders: tuple[LockHolder, ...] = ()  # who holds locks on central.db and mailbox.db
    limits: tuple[Limit, ...] = ()  # the resource limits of the process `holder_pid`
    max_machine_files: int = 0  # the kernel's limit of open files, fs.file-max
    mount: str | None = None  # the mount point of the data folder
    denied: str | None = None  # the command that lets the daemon's user write to the data folder again
    free_bytes: int | None = None
    free_inodes: int | None = None  # only when few are left
    low_bytes: int = 0
    max_open_answers: int = 10_000
    write_error: str | None = None
    clock: ClockFacts = ClockFacts()
    degraded: tuple[Degradation, ...] = ()
    last_sweep_at: int | None = None
    sweep_interval_ms: int = 60_000
    claim_stuck_ms: int = 60_000
    held_ms: int = HELD_MS  # how long an earlier message may hold others back before that is a finding
    ceiling_ms: int = 30 * 60_000
    max_declared_ms: int = 6 * 3_600_000
    # Agent -> limit; "" stands for every other agent.
    claim_max_ms: Mapping[str, int] = field(default_factory=dict[str, int])
    max_containers: int = 8
    holders: tuple[Holder, ...] = ()
    secret_errors: tuple[tuple[str, str], ...] = ()  # secret files of [egress] that cannot be used: (why, repair)
    budgets_used_up: tuple[tuple[str, str], ...] = ()  # today's budgets at the gate: (agent, how much of what is used)
    agents_stopped: tuple[tuple[str, str], ...] = ()  # today's budgets of agents: (agent, how much of what is used)
    slots: SlotFacts = SlotFacts()
    config_faults: tuple[str, ...] = ()  # why the configuration cannot be used, and what stays unseen for it
    agents: frozenset[str] | None = None  # those that have a table; None where nobody read the configuration

    @property
    def start(self) -> str:
        """The command that starts the daemon of this folder."""
        return start_command(self.unit, self.slots.serving)

    @property
    def restart(self) -> str:
        """The command that ends a daemon that hangs. Without a service, `start` starts it again."""
        return restart_command(self.unit, self.holder_pid)

    @property
    def orderly_restart(self) -> str:
        """The command that restarts a daemon that answers, and so can stop in an orderly way."""
        return restart_command(self.unit, self.holder_pid, "TERM")

    def lost(self, agent: str) -> bool:
        """Whether this agent has no table any more. Of a configuration that is broken, another's or none, nobody knows."""
        known = bool(self.agents) and not self.config_faults and self.other_runtime is None
        return known and agent not in (self.agents or ())

    def trouble(self, what: str) -> Degradation | None:
        """Return the trouble with this that the daemon itself reports, or None."""
        return next((item for item in self.degraded if item.what == what), None)


@frozen
class LiveRecord:
    """The incarnation that central.db records as living, and whether the runtime confirms that."""

    incarnation: str
    container_id: str | None
    created_at: int
    started_at: int | None
    life: Life


@frozen
class Failing:
    """Work on a session that the running daemon has failed at since `since`."""

    code: str
    sentence: str
    since: int
    times: int
    resource: str | None = None


@frozen
class SessionFacts:
    """One session: its row in central.db, its files, its containers.

    `container` is the recorded incarnation's as the runtime lists it; `containers` are the others of the session that it
    lists. `registered` is False for a folder that central.db does not know.
    """

    agent: str
    session: str
    registered: bool = True
    quarantined_at: int | None = None
    quarantine_reason: str | None = None
    spawn_failures: int = 0
    next_spawn_at: int | None = None
    last_spawn_error: str | None = None
    next_due_at: int | None = None  # when a message or a schedule is due next
    live: LiveRecord | None = None
    container: Container | None = None
    containers: tuple[Container, ...] = ()
    journal: bool = False
    later: int = 0  # its pending messages that are not due yet
    due: int = 0
    oldest_due_at: int | None = None
    claimed: bool = False
    moved_at: int | None = None  # when its living container last began or ended a turn, if it claims nothing now
    failed: int = 0
    dead: int = 0
    dead_example: str | None = None
    dead_reason: str | None = None
    dead_code: str | None = None
    retrying: int = 0
    retrying_example: Mapping[str, Any] | None = None  # as daemon.inspect.answer_reading returns it
    open_answers: int = 0
    held: int = 0
    oldest_held_at: int | None = None
    holder: str | None = None
    holder_sentence: str | None = None
    crashing: str | None = None  # a waiting message whose container ended several times before the message was done
    crashing_sentence: str | None = None
    failing_schedules: tuple[tuple[str, int], ...] = ()  # schedules paused after failures: (key, failures in a row)
    zoneless_schedules: tuple[tuple[str, str], ...] = ()  # (key, zone) of active ones whose zone this machine lacks
    questions: int = 0  # how many questions are open
    question: str | None = None  # the id of the most urgent one
    question_text: str | None = None
    question_options: tuple[str, ...] = ()
    question_deadline: int | None = None
    overdue_answers: int = 0
    oldest_overdue_at: int | None = None
    errors: tuple[str, ...] = ()
    failing: tuple[Failing, ...] = ()
    lock_holders: tuple[LockHolder, ...] = ()  # who holds locks on its files, while one of them is busy
    folder: str | None = None
    near_limit: str | None = None  # how full its out/ or home/ is, when that is near a limit

    @property
    def name(self) -> str:
        """AGENT/SESSION."""
        return f"{self.agent}/{self.session}"


@frozen
class RunFacts:
    """One run: its evidence, the verdict on it, and the progress of its container.

    `heartbeat_at` is the session's, and counts for the run only when it is not older than its container.
    """

    evidence: RunEvidence
    verdict: Verdict
    born_at: int | None = None
    heartbeat_at: int | None = None
    tool: str | None = None
    declared_ms: int | None = None
