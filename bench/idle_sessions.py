"""Many idle sessions: what a daemon costs that has them, beside one that has none.

Sessions are folders as a finished conversation leaves them, both files there. The daemon is the real one; its sweep ticks more
often than the shipped one, so that there are enough ticks to tell of. What it does at its start is measured apart.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.bus import fill_history, know_outbound, register_idle, session_name
from bench.figures import Curve, Figure, Of, Result, Target
from bench.settings import Settings
from bench.spread import median
from bench.stage import ECHO, BenchFailed, BenchStage
from daemon.store.session_files import SessionFiles
from schema.plain_file import ReadLimits

_COUNTS: Final = (0, 1_000, 10_000)
_DONE: Final = 20  # messages of history in each
_WINDOW_S: Final = 60.0
_SAMPLE_S: Final = 1.0
_QUIET_SHARE: Final = 0.05
_QUIET_SAMPLES: Final = 5
_LONGEST_PASS_S: Final = 600.0
_READY_REPEATS: Final = 3
_MB: Final = 1024**2
# Every tick of the sweep is told with its duration, and comes six times as often as it would.
_TABLES: Final = '[sweep]\ninterval_s = 10.0\n[logs]\nlevel = "debug"\n'
_NOTE: Final = (
    "The floor is the same daemon without sessions, measured in this run. The share of a core is what it uses in a quiet"
    " window after its start; the full pass over every session runs in it, because it is spread over its whole interval."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one daemon with `sessions` idle sessions: shares of a core, bytes, seconds, milliseconds."""

    sessions: int
    ready_s: float
    share: float
    start_s: float
    rss_bytes: int
    ticks_ms: tuple[float, ...]


def make_sessions(data: Path, count: int) -> None:
    """`count` session folders, copies of one; without syncs."""
    template = SessionFiles(data.parent / "template", ReadLimits())
    template.create()
    fill_history(template, _DONE)
    contents = (template.folder.inbound_db.read_bytes(), template.folder.outbound_db.read_bytes())
    shutil.rmtree(template.folder.root)
    parent = data / "sessions" / ECHO
    parent.mkdir(parents=True)
    for number in range(count):
        files = SessionFiles(parent / session_name(number), ReadLimits())
        for folder in (files.folder.inbox, files.folder.outbox, files.folder.logs):
            folder.mkdir(parents=True)
        files.folder.inbound_db.write_bytes(contents[0])
        files.folder.outbound_db.write_bytes(contents[1])
        know_outbound(files)


def measure_one(settings: Settings, count: int) -> Cost:
    """Start several times, then let the last one run on until it is quiet, and through a window."""
    with BenchStage(settings.folder, tables=_TABLES) as stage:
        stage.start()  # makes the data folder and its registry
        stage.stop()
        make_sessions(stage.data, count)
        register_idle(stage.data, count)
        ready: list[float] = []
        for _ in range(settings.count(_READY_REPEATS, 1)):
            stage.stop()
            ready.append(stage.start())
        start_s = _until_quiet(stage)
        began, before = time.monotonic(), stage.usage()
        time.sleep(_WINDOW_S * min(1.0, settings.scale))
        after = stage.usage()
        quiet = (after.cpu_s - before.cpu_s) / (time.monotonic() - began)
        stage.stop()
        ticks = tuple(float(event["duration_ms"]) for event in stage.events("swept"))
    if not ticks:
        raise BenchFailed("no tick of the sweep was seen")
    return Cost(count, median(ready), quiet, start_s, after.rss_bytes, ticks)


def _until_quiet(stage: BenchStage) -> float:
    """Wait until the start's work is over: the processor seconds that it took since the process began."""
    deadline, quiet, last = time.monotonic() + _LONGEST_PASS_S, 0, stage.usage().cpu_s
    while quiet < _QUIET_SAMPLES:
        if time.monotonic() > deadline:
            raise BenchFailed(f"the daemon was not quiet {_LONGEST_PASS_S:g} s after its start")
        time.sleep(_SAMPLE_S)
        now = stage.usage().cpu_s
        quiet = quiet + 1 if (now - last) / _SAMPLE_S < _QUIET_SHARE else 0
        last = now
    return last


def measure(settings: Settings) -> Result:
    """None, some and many."""
    counts = sorted({round(count * min(1.0, settings.scale)) for count in _COUNTS})
    costs = [measure_one(settings, count) for count in counts]
    none, many = costs[0], costs[-1]
    name = f"{many.sessions:,} idle sessions"
    start_s = many.start_s - none.start_s
    return Result(
        figures=(
            Figure(f"{name}: share of a core", 100 * many.share, "%", 100 * none.share, Target(Of.VALUE, 0.5),
                   f"after {start_s:.1f} s of a core more than without them at its start"),
            Figure(f"{name}: resident memory", many.rss_bytes / _MB, "MB", none.rss_bytes / _MB, Target(Of.VALUE, 100)),
            Figure(f"{name}: sweep tick", median(many.ticks_ms), "ms", median(none.ticks_ms), Target(Of.VALUE, 50),
                   f"{len(many.ticks_ms)} ticks, the slowest {max(many.ticks_ms):.0f}; whole milliseconds"),
            Figure(f"{name}: ready after start", many.ready_s, "s", none.ready_s, Target(Of.VALUE, 2.0),
                   "from the process's start to its yes on the socket"),
        ),
        notes=(_NOTE,),
        curves={"sessions": _curves(costs)},
    )  # fmt: skip


def _curves(costs: list[Cost]) -> tuple[Curve, ...]:
    return (
        Curve("resident memory, MB", tuple((float(one.sessions), one.rss_bytes / _MB) for one in costs)),
        Curve("ready after, s", tuple((float(one.sessions), one.ready_s) for one in costs)),
        Curve("sweep tick, ms", tuple((float(one.sessions), median(one.ticks_ms)) for one in costs)),
        Curve("share of a core, %", tuple((float(one.sessions), 100 * one.share) for one in costs)),
    )
