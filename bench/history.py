"""Idle drain: one look of the delivery at a session where nothing is new, against how much is done in it.

Every message of the history was answered, delivered and settled, so each table that a look could walk is that long.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from bench.figures import Curve, Figure, Of, Result, Target
from bench.house import accept_question, fill_history, look
from bench.settings import Settings
from bench.spread import Spread, noise, spread
from daemon.store.session_files import SessionFiles
from schema.connect import ReadLimits

_SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
_REPEATS: Final = 30
_PER_BLOCK: Final = 20
_WARM_UP: Final = 5
_TARGET: Final = Target(Of.RATIO, 1.3)
_NOTE: Final = (
    "A look opens both files, asks what is due, new and unfinished, and closes them; it writes nothing. The floor is the"
    " same look at the shortest history, taken in turn with the longer ones."
)


def prepare(root: Path, done: int) -> SessionFiles:
    """A session with `done` messages of history and one that is not finished."""
    files = SessionFiles(root, ReadLimits(max_file_bytes=2**40))
    files.create()
    fill_history(files, done)
    accept_question(files)
    look(files)  # takes note of what is there
    return files


def look_times(files: SessionFiles, count: int) -> list[float]:
    """Milliseconds of `count` looks."""
    found: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        look(files)
        found.append((time.perf_counter() - began) * 1000)
    return found


def measure(settings: Settings) -> Result:
    """Looks at every size in turn, so that all of them see the same machine."""
    sizes = [max(10, round(size * min(1.0, settings.scale))) for size in _SIZES]
    sessions = [prepare(settings.folder / "history" / str(number), size) for number, size in enumerate(sizes)]
    for files in sessions:
        look_times(files, _WARM_UP)
    blocks: list[list[list[float]]] = [[] for _ in sessions]
    for _ in range(settings.count(_REPEATS, 2)):
        for files, found in zip(sessions, blocks, strict=True):
            found.append(look_times(files, _PER_BLOCK))
    spreads = [spread([value for block in found for value in block]) for found in blocks]
    return Result(
        figures=tuple(_figure(size, own, spreads[0], longest=size == sizes[-1])
                      for size, own in zip(sizes, spreads, strict=True)),
        notes=(_NOTE,),
        curves={"history": (Curve("one look, p50", tuple(zip(map(float, sizes), (own.p50 for own in spreads), strict=True))),
                            Curve("one look, p99", tuple(zip(map(float, sizes), (own.p99 for own in spreads), strict=True))))},
        noisy=noise(blocks[0]),
    )  # fmt: skip


def _figure(size: int, own: Spread, shortest: Spread, *, longest: bool) -> Figure:
    text = f"{own.count} looks, p99 {own.p99:.2f}, half {own.quarter:.3f} .. {own.three_quarters:.3f}"
    return Figure(f"idle drain at {size:,} rows", own.p50, "ms", shortest.p50, _TARGET if longest else None, text)
