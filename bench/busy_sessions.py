"""Busy sessions: fifty agents that are each asked once a second, through one real daemon with the process runtime.

Short by default; `--minutes 10` is the run of the promise. Lost or doubled answers break the benchmark: they are no figure.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.figures import Curve, Figure, Of, Result, Target
from bench.floor import RoundTripFloor, commits_cpu_ms
from bench.load import Account, Load, check, schedule
from bench.round_trip import CPU, DAEMON_COMMITS, RUNNER_COMMITS
from bench.settings import Settings
from bench.spread import median, noise, percentile, spread
from bench.stage import BenchStage

_SESSIONS: Final = 50
_RATE: Final = 1.0
_MINUTES: Final = 1.0
_WARM_UP_S: Final = 5.0
_START_S: Final = 120.0
_ANSWER_S: Final = 60.0
_FLOOR: Final = 50
_SAMPLE_S: Final = 1.0
_MB: Final = 1024**2
_TABLES: Final = "max_containers = 64\n"
_NOTE: Final = (
    "A message's time runs from the instant at which it was due to be sent to the answer in the mailbox reader's hands. The"
    " floor is one bare round trip (3 commits, 2 wakes) on the machine without this load, its 99th percentile."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds of the daemon and of its runners for `messages` messages in `seconds` seconds."""

    daemon_s: float
    runners_s: float
    seconds: float
    messages: int

    def of_message_ms(self, cpu_s: float) -> float:
        """Return the milliseconds of one message."""
        return 1000 * cpu_s / max(1, self.messages)


class MemoryCurve:
    """Samples what the daemon and its agents use, from a thread of its own, until closed."""

    def __init__(self, stage: BenchStage) -> None:
        self._stage = stage
        self._done = threading.Event()
        self.daemon: list[tuple[float, float]] = []  # (seconds, MB)
        self.agents: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._sample, name="memory curve")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        began = time.monotonic()
        while True:
            at = time.monotonic() - began
            self.daemon.append((at, self._stage.usage().rss_bytes / _MB))
            self.agents.append((at, self._stage.agents_usage().rss_bytes / _MB))
            if self._done.wait(_SAMPLE_S):
                return


def quarters(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The median of the second quarter of a curve, when everything is warm, and of the last."""
    values = [value for _, value in points]
    size = max(1, len(values) // 4)
    return median(values[size : 2 * size] or values), median(values[-size:])


def measure(settings: Settings) -> Result:
    """Warm up every agent, then the load, with the floor before and after it."""
    sessions = settings.count(_SESSIONS, 2)
    seconds = 60 * (settings.minutes if settings.minutes is not None else _MINUTES * min(1.0, settings.scale))
    with BenchStage(settings.folder, tables=_TABLES) as stage:
        stage.start()
        check(Load(stage).run(schedule(sessions, _RATE, 1), "start", _START_S), "the agents' start")
        Load(stage).run(schedule(sessions, _RATE, _WARM_UP_S), "warm", _ANSWER_S)
        blocks = [_floor(settings, "before")]
        curve, before, began = MemoryCurve(stage), _used(stage), time.monotonic()
        try:
            account = Load(stage).run(schedule(sessions, _RATE, seconds), "load", _ANSWER_S)
        finally:
            curve.close()
        after, took = _used(stage), time.monotonic() - began
        blocks.append(_floor(settings, "after"))
    check(account, f"{sessions} busy sessions")
    cost = Cost(after[0] - before[0], after[1] - before[1], took, len(account.due))
    return _result(sessions, seconds, account, curve, (cost, _commits_alone(settings)), blocks)


def _floor(settings: Settings, name: str) -> list[float]:
    folder: Path = settings.folder / f"floor-{name}"
    folder.mkdir()
    with RoundTripFloor(folder) as floor:
        return floor.measure(settings.count(_FLOOR, 5))


def _used(stage: BenchStage) -> tuple[float, float]:
    """Processor seconds so far of the daemon, and of all its agents together."""
    return stage.usage().cpu_s, stage.agents_usage().cpu_s


def _commits_alone(settings: Settings) -> tuple[float, float]:
    """Processor milliseconds of the commits that daemon and runner make for a message, alone."""
    count = settings.count(_FLOOR, 5)
    daemon, runner = (
        median(commits_cpu_ms(settings.folder, number, count)) for number in (DAEMON_COMMITS, RUNNER_COMMITS)
    )
    return daemon, runner


def _result(
    sessions: int,
    seconds: float,
    account: Account,
    curve: MemoryCurve,
    cpu: tuple[Cost, tuple[float, float]],
    blocks: list[list[float]],
) -> Result:
    cost, alone = cpu
    floor = spread([value for block in blocks for value in block])
    found = account.latencies()
    own = spread(found)
    warm, last = quarters(curve.daemon)
    name = f"{sessions} busy sessions"
    text = f"{own.count:,} messages in {seconds / 60:g} min, half {own.quarter:.1f} .. {own.three_quarters:.1f}"
    return Result(
        figures=(
            Figure(f"{name}: p99", own.p99, "ms", floor.p99, Target(Of.VALUE, 100), text),
            Figure(f"{name}: p50", own.p50, "ms", floor.p50),
            Figure(f"{name}: lost or doubled", 0.0, "messages", None, Target(Of.VALUE, 0), f"of {len(account.due):,}"),
            Figure(f"{name}: daemon's memory at the end", last, "MB", warm, None, "the floor here: when it was warm"),
            Figure(f"{name}: daemon's share of a core", 100 * cost.daemon_s / cost.seconds, "%", None,
                   Target(Of.VALUE, 40)),
            Figure(f"{name}: processor time of a message, daemon", cost.of_message_ms(cost.daemon_s), "ms", alone[0],
                   CPU, f"floor: {DAEMON_COMMITS} commits on the machine without this load"),
            Figure(f"{name}: processor time of a message, runners", cost.of_message_ms(cost.runners_s), "ms",
                   alone[1], CPU, f"floor: {RUNNER_COMMITS} commits"),
        ),
        notes=(_NOTE,),
        curves={
            "memory": (
                Curve("daemon", tuple(curve.daemon)),
                Curve("one agent, on average", tuple((at, mb / sessions) for at, mb in curve.agents)),
            ),
            "latency": (Curve(name, tuple((percentile(found, step / 200), step / 200) for step in range(201))),),
        },
        noisy=noise(blocks),
    )  # fmt: skip
