"""Idle drain: one look of the delivery at a session where nothing is new, against how much is done in it.

Every message of the history was answered, delivered and settled, so each table that a look could walk is that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from bench.bus import accept_question, fill_history, look, runner_look, runner_of
from bench.figures import Curve, Figure, Of, Result, Target
from bench.settings import Settings
from bench.spread import Spread, noise, spread
from daemon.store.session_files import SessionFiles
from schema.file_pool import FilePool
from schema.plain_file import ReadLimits

T = TypeVar("T")

_SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
_REPEATS: Final = 30
_PER_BLOCK: Final = 20
_WARM_UP: Final = 5
_TARGET: Final = Target(Of.RATIO, 1.1)
_NOTE: Final = (
    "A look opens the other side's file, asks both what is due, new and unfinished, and closes it; each side's own file stays"
    " open, as in the product. It writes nothing. The floor is the same look at the shortest history, taken in turn with"
    " the longer ones."
)


def prepare(root: Path, done: int) -> SessionFiles:
    """A session with `done` messages of history and one that is not finished."""
    files = SessionFiles(root, ReadLimits(max_file_bytes=2**40), kept=FilePool(1))
    files.create()
    fill_history(files, done)
    accept_question(files)
    look(files)  # takes note of what is there
    return files


def look_times(look_once: Callable[[T], object], at: T, count: int) -> list[float]:
    """Milliseconds of `count` looks."""
    found: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        look_once(at)
        found.append((time.perf_counter() - began) * 1000)
    return found


def look_in_turn(look_once: Callable[[T], object], sessions: Sequence[T], repeats: int) -> list[list[list[float]]]:
    """By session: a block of look times for each repetition. All sessions in turn, so that all see the same machine."""
    for session in sessions:
        look_times(look_once, session, _WARM_UP)
    blocks: list[list[list[float]]] = [[] for _ in sessions]
    for _ in range(repeats):
        for session, found in zip(sessions, blocks, strict=True):
            found.append(look_times(look_once, session, _PER_BLOCK))
    return blocks


def measure(settings: Settings) -> Result:
    """The daemon's look at every size, then the runner's."""
    sizes = [max(10, round(size * min(1.0, settings.scale))) for size in _SIZES]
    repeats = settings.count(_REPEATS, 2)
    sessions = [prepare(settings.folder / "history" / str(number), size) for number, size in enumerate(sizes)]
    blocks = look_in_turn(look, sessions, repeats)
    own = _spreads(blocks)
    runners = [runner_of(files) for files in sessions]
    for runner in runners:
        runner_look(runner)  # claims the one message that is not finished
    theirs = _spreads(look_in_turn(runner_look, runners, repeats))
    return Result(
        figures=(
            *(_figure("idle drain", size, found, own[0], longest=size == sizes[-1])
              for size, found in zip(sizes, own, strict=True)),
            _figure("runner's idle look", sizes[-1], theirs[-1], theirs[0], longest=False),
        ),
        notes=(_NOTE,),
        curves={"history": (_curve("daemon, p50", sizes, [found.p50 for found in own]),
                            _curve("daemon, third quartile", sizes, [found.three_quarters for found in own]),
                            _curve("runner, p50", sizes, [found.p50 for found in theirs]))},
        noisy=noise(blocks[0]),
    )  # fmt: skip


def _spreads(blocks: list[list[list[float]]]) -> list[Spread]:
    return [spread([value for block in found for value in block]) for found in blocks]


def _curve(label: str, sizes: Sequence[int], values: Sequence[float]) -> Curve:
    return Curve(label, tuple(zip(map(float, sizes), values, strict=True)))


def _figure(what: str, size: int, own: Spread, shortest: Spread, *, longest: bool) -> Figure:
    text = f"{own.count} looks, p99 {own.p99:.2f}, half {own.quarter:.3f} .. {own.three_quarters:.3f}"
    return Figure(f"{what} at {size:,} rows", own.p50, "ms", shortest.p50, _TARGET if longest else None, text)
