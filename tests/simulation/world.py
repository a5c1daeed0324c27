"""What every part of a simulated run shares: seed, clocks, faults, counters, trace, and the bookkeeping of deaths.

All randomness comes from here. The bus under test never sees this object; it sees a clock, a runtime and channels.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any, Final

from schema.instants import to_text
from schema.questions import Decision
from tests.simulation.loop import PROCESS, Process, SimLoop
from tests.simulation.talk_records import TalkRecords

EPOCH_MS: Final = 1_800_000_000_000


class ProcessKilledError(BaseException):
    """Unwinds the operation of a process that was killed in the middle of it. Never reaches the code under test's end."""


@dataclass
class Faults:
    """How likely each fault is, at each opportunity. All zero: a calm run; `heal` makes it so."""

    crash_daemon: float = 0.0  # at a durable step, a send or a call to the runtime
    crash_runner: float = 0.0  # at a durable step
    io_error: float = 0.0  # an open or a commit fails
    read_race: float = 0.0  # a read of a living container's file meets its commit
    slow_disk: float = 0.0  # an operation takes seconds
    lose_event: float = 0.0  # a file event never comes
    spawn: float = 0.0  # a spawn fails in one of its ways
    boot: float = 0.0  # a container ends or hangs before it reads anything
    agent: float = 0.0  # a turn goes wrong in one of its ways
    receiver: float = 0.0  # a send goes wrong in one of its ways
    runtime_slow: float = 0.0  # a call to the runtime takes very long
    unkillable: float = 0.0  # SIGKILL takes a minute

    def heal(self) -> None:
        """No faults from now on."""
        for item in fields(self):
            setattr(self, item.name, 0.0)

    @classmethod
    def drawn(cls, rng: Random) -> Faults:
        """Some kinds and no others, so that a run is not all noise."""
        faults = cls()
        if rng.random() < 0.06:
            return faults
        for item in fields(cls):
            if rng.random() < 0.45:
                setattr(faults, item.name, rng.choice((0.02, 0.05, 0.1, 0.25)))
        faults.crash_daemon = min(faults.crash_daemon, 0.05) * 0.6
        faults.crash_runner = min(faults.crash_runner, 0.1)
        faults.io_error = min(faults.io_error, 0.1) * 0.3
        faults.agent *= 2.5
        faults.receiver *= 3.0
        return faults


@dataclass
class SimClock:
    """daemon.core.clock.Clock over virtual time. `offset_ms` is what the wall clock was set off by."""

    loop: SimLoop
    offset_ms: int = 0

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return EPOCH_MS + int(self.loop.time() * 1000) + self.offset_ms

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self.loop.time()

    def slept_s(self) -> float:
        """It never sleeps."""
        return 0.0


@dataclass
class Finding:
    """A broken invariant: when, and what."""

    at: float
    text: str


@dataclass
class World:
    """One run. `root` is its data folder."""

    seed: int
    root: Path
    tracing: bool = False
    closed: bool = False
    rng: Random = field(init=False)
    loop: SimLoop = field(init=False)
    clock: SimClock = field(init=False)
    faults: Faults = field(init=False)
    healing: bool = False
    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    decisions: list[tuple[str, str, str, Decision]] = field(default_factory=list[tuple[str, str, str, Decision]])
    talk: TalkRecords = field(default_factory=TalkRecords)
    put_off: Counter[str] = field(default_factory=Counter[str])  # how often each message was put off by its agent
    findings: list[Finding] = field(default_factory=list[Finding])
    trace_lines: list[str] = field(default_factory=list[str])
    on_death: dict[Process, Callable[[], None]] = field(default_factory=dict[Process, Callable[[], None]])
    watchers: dict[str, list[asyncio.Event]] = field(default_factory=dict[str, list[asyncio.Event]])
    programs: list[Any] = field(default_factory=list[Any])  # those that run now
    versions: Counter[Path] = field(default_factory=Counter[Path])

    def __post_init__(self) -> None:
        self.rng = Random(f"clawbus {self.seed}")
        self.faults = Faults.drawn(self.rng)
        shuffle = self.rng.choice((0, 10, 50, 100))
        self.loop = SimLoop(Random(f"order {self.seed}"), shuffle)
        self.clock = SimClock(self.loop)

    # --- what happened

    def step(self, actor: str, what: str) -> None:
        """One scheduled action or operation on files."""
        self.steps += 1
        self.trace(actor, what)

    def trace(self, actor: str, what: str) -> None:
        """A line of the trace, with virtual and wall time."""
        if self.tracing and not self.closed:
            wall = to_text(self.clock.now_ms())[11:23]
            said = what.replace(str(self.root), "DATA")  # it has another name in every run
            self.trace_lines.append(f"{self.loop.time() - 1000:12.4f} {wall} {actor:<22} {said}")

    def fault(self, kind: str, actor: str, what: str = "") -> None:
        """Count and trace an injected fault."""
        self.counts[kind] += 1
        self.trace(actor, f"FAULT {kind} {what}")

    def broken(self, text: str) -> None:
        """An invariant does not hold."""
        if len(self.findings) < 20 and not self.closed:
            self.findings.append(Finding(self.loop.time(), text))
        self.trace("INVARIANT", text)

    # --- chance

    def chance(self, probability: float) -> bool:
        """True with this probability; draws nothing for zero."""
        return probability > 0 and self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        """Evenly drawn."""
        return self.rng.uniform(low, high)

    # --- life and death

    def kill(self, process: Process, why: str) -> None:
        """SIGKILL: none of its code runs again."""
        if process.dead:
            return
        process.dead = True
        process.parked.clear()
        self.step(process.name, f"KILLED {why}")
        self.counts[f"kill_{process.role}"] += 1
        noticed = self.on_death.pop(process, None)
        if noticed is not None:
            self.loop.world_later(0.0, noticed)

    def crash_probability(self, process: Process) -> float:
        """At one opportunity."""
        return self.faults.crash_daemon if process.role == "daemon" else self.faults.crash_runner

    async def crash_point(self, where: str, weight: float = 1.0) -> None:
        """A place in simulated code where the calling process may be killed; `weight` for one that is worth more tries."""
        process = PROCESS.get()
        if process is not None and self.chance(min(0.5, weight * self.crash_probability(process))):
            self.kill(process, f"at {where}")
        if process is not None and process.dead:
            await asyncio.get_running_loop().create_future()  # its code goes no further

    def freeze(self, process: Process, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        if process.dead or process.frozen:
            return
        process.frozen = True
        self.fault(f"freeze_{process.role}", process.name, f"for {seconds:.0f} s")
        self.loop.world_later(seconds, self.thaw, process)

    def thaw(self, process: Process) -> None:
        """SIGCONT."""
        if process.frozen and not process.dead:
            self.step(process.name, "thawed")
            self.loop.thaw(process)

    # --- file events

    def version(self, path: Path) -> tuple[int, int] | None:
        """What a stat tells of a file: how often it was committed. Real times would differ from run to run."""
        return (self.versions[path], 0) if path.exists() else None

    def changed(self, path: Path) -> None:
        """A file was committed: tell who watches its folder, a little later, or never."""
        self.versions[path] += 1
        for event in self.watchers.get(str(path.parent), ()):
            if self.chance(self.faults.lose_event):
                self.counts["event_lost"] += 1
            else:
                self.loop.world_later(self.rng.uniform(0.002, 0.05), event.set)
