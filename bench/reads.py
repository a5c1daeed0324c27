"""What an operator's reads cost with many idle sessions and three odd ones among them, with the daemon up and down.

The odd ones (a dead letter, a claim without progress, a run whose container is gone) are in the files alone: central.db calls
their sessions idle, as one that was restored from an older copy does. A read that misses one, or leaves a session out, breaks the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from bench.bus import Odd, make_odd, records_of_idle, register_idle, session_name
from bench.figures import Figure, Of, Result, Target
from bench.idle_sessions import make_sessions
from bench.settings import Settings
from bench.spread import median
from bench.stage import ECHO, BenchFailed, BenchStage
from daemon.core.clock import SystemClock
from daemon.store.session_files import SessionFiles
from schema.plain_file import ReadLimits

_SESSIONS: Final = 10_000
_REPEATS: Final = 3
_LONGEST_S: Final = 1200.0
_LOOK_S: Final = 0.5
_TARGET: Final = Target(Of.VALUE, 2.0)
_ODD: Final[Mapping[str, Odd]] = MappingProxyType(
    {"dead letter": Odd.DEAD, "stuck claim": Odd.STUCK, "ghost run": Odd.GHOST}
)
_NOTE: Final = (
    "Processor time is the command's and, with the daemon up, what the daemon spent meanwhile. The floor is the same command on"
    " a folder without sessions. `first` is before the daemon has read the sessions once: each file is opened then, and what"
    " a report's time does not suffice for is left out, and said to be."
)


@dataclass(frozen=True, slots=True)
class Read:
    """A command, and what its result must say: how many sessions were left out, and whether all that is odd was found."""

    command: str
    left_out: Callable[[Mapping[str, Any]], int]
    complete: Callable[[Mapping[str, Any]], bool]


READS: Final = (
    Read("status", lambda found: found["not_examined"], lambda found: found["queues"]["dead_letters"] == 1
         and found["queues"]["pending"] == 2),
    Read("dead list", lambda found: found["not_examined"], lambda found: found["total"] == 1),
    Read("doctor", lambda found: found["examined"]["not_examined"], lambda found: {"DEAD_LETTERS", "GHOST_RUN"} <= {
        one["code"] for one in found["diagnoses"]} and found["examined"]["runs"] == 2),
    Read("runs --stale", lambda found: found["not_examined"], lambda found: found["total"] == 2),
    Read("sweep stale", lambda found: len(found["unreadable"]), lambda found: len(found["runs"]) == 2),
)  # fmt: skip


def measure(settings: Settings) -> Result:
    """An empty folder, then many sessions: before they were recorded, with the daemon up, and with it down."""
    count = max(len(_ODD) + 1, round(_SESSIONS * min(1.0, settings.scale)))
    repeats = settings.count(_REPEATS, 1)
    with BenchStage(settings.folder) as empty:
        empty.start()
        floors = {f"{read.command}, daemon up": _cpu_s(empty, read, repeats, check=False) for read in READS}
        empty.stop()
        floors |= {f"{read.command}, daemon down": _cpu_s(empty, read, repeats, check=False) for read in READS}
    found: dict[str, float] = {}
    with BenchStage(settings.folder) as stage:
        stage.start()  # makes the data folder and its registry
        stage.stop()
        _make(stage, count)
        first = {f"{read.command}, daemon down, first": _first(stage, read) for read in READS}
        stage.start()
        _until_recorded(stage, count - len(_ODD))
        found |= {f"{read.command}, daemon up": _cpu_s(stage, read, repeats) for read in READS}
        stage.stop()
        found |= {f"{read.command}, daemon down": _cpu_s(stage, read, repeats) for read in READS}
    name = f"{count:,} idle sessions: "
    figures = [Figure(name + what, value, "s", floors[what], _TARGET) for what, value in found.items()]
    figures += [
        Figure(name + what, value, "s", spread=f"{left_out:,} sessions left out")
        for what, (value, left_out) in first.items()
    ]
    return Result(tuple(figures), (_NOTE,))


def _make(stage: BenchStage, count: int) -> None:
    """The sessions; the odd ones lie among the others, where the sweep's slow pass does not come by at once."""
    make_sessions(stage.data, count)
    register_idle(stage.data, count)
    for number, odd in enumerate(_ODD.values(), 1):
        name = session_name(count * number // (len(_ODD) + 1))
        make_odd(SessionFiles(stage.data / "sessions" / ECHO / name, ReadLimits()), odd)


def _until_recorded(stage: BenchStage, sessions: int) -> None:
    """Wait until the daemon has read every session and recorded the idle ones."""
    deadline = time.monotonic() + _LONGEST_S
    while (found := records_of_idle(stage.data, SystemClock().now_ms())) < sessions:
        if time.monotonic() > deadline:
            raise BenchFailed(f"the daemon recorded {found} of {sessions} idle sessions in {_LONGEST_S:g} s")
        time.sleep(_LOOK_S)


def _cpu_s(stage: BenchStage, read: Read, repeats: int, *, check: bool = True) -> float:
    """The median of the processor seconds that one call costs. Raises BenchFailed when it does not tell everything."""
    costs: list[float] = []
    for _ in range(repeats):
        before = stage.usage().cpu_s if stage.runs else 0.0
        spent, result = _run(stage.config, read.command)
        costs.append(spent + (stage.usage().cpu_s - before if stage.runs else 0.0))
        if check and (read.left_out(result) or not read.complete(result)):
            raise BenchFailed(
                f"`{read.command}` left {read.left_out(result)} sessions out, or missed something: {result}"[:2000]
            )
    return median(costs)


def _first(stage: BenchStage, read: Read) -> tuple[float, int]:
    """The processor seconds of one call that has to open everything, and how many sessions it had no time for."""
    spent, result = _run(stage.config, read.command)
    return spent, read.left_out(result)


def _run(config: Path, command: str) -> tuple[float, Mapping[str, Any]]:
    """The processor seconds of one call of the command line, and its result."""
    program = [str(Path(sys.executable).with_name("clawbus")), *command.split(), "--config", str(config), "--json"]
    with closing(os.fdopen(os.memfd_create("out"), "w+b")) as output:
        child = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        envelope: dict[str, Any] = json.loads(output.read() or b"{}")
    if envelope.get("result") is None:
        raise BenchFailed(f"`clawbus {command}` said nothing: {envelope}")
    return usage.ru_utime + usage.ru_stime, envelope["result"]
