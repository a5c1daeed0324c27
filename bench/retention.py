"""Retention over a long history: how long one step holds a file's write lock, and how long a whole pass takes.

Every message of the history was answered, delivered and settled, and all of it is old. The runner prunes its file first, then
the daemon its own, in the product's own steps and with its own pauses left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from bench.bus import fill_history
from bench.figures import Curve, Figure, Result
from bench.floor import commit_times
from bench.settings import Settings
from bench.spread import noise, spread
from container_runner.retention import Retention
from daemon.config.models import Retention as RetentionConfig
from daemon.store.pruning import prune_messages, prune_receipts
from daemon.store.session_files import SessionFiles
from schema.file_pool import FilePool
from schema.handles import Writer
from schema.plain_file import ReadLimits

_HISTORY: Final = 1_000_000
_COMMITS: Final = 20
_BLOCKS: Final = 10
_DAY_MS: Final = 86_400_000
_KEEP_MS: Final = 30 * _DAY_MS
_NOTE: Final = (
    "A step looks at `retention.batch` rows and takes those that are done, in one transaction. The lock is held from BEGIN"
    " IMMEDIATE to the end of COMMIT: meanwhile readers go on until the commit itself. The floor is one durable commit of one row."
)


def measure(settings: Settings) -> Result:
    """Fill, prune the runner's file, then the daemon's; the floor's commits are taken in between."""
    rows, batch = settings.count(_HISTORY, 100), RetentionConfig().batch
    files = SessionFiles(settings.folder / "retention", ReadLimits(max_file_bytes=2**40), kept=FilePool(1))
    files.create()
    fill_history(files, rows)
    floor = [commit_times(settings.folder, _COMMITS) for _ in range(_BLOCKS)]
    before = sum(path.stat().st_size for path in (files.folder.inbound_db, files.folder.outbound_db))
    runner = _pass(lambda: _runner(files, batch))
    floor += [commit_times(settings.folder, _COMMITS) for _ in range(_BLOCKS)]
    daemon = _pass(lambda: _daemon(files, batch))
    floor += [commit_times(settings.folder, _COMMITS) for _ in range(_BLOCKS)]
    with files.inbound() as db:
        given_back = db.compact(min_free_bytes=1, max_live_bytes=2**40)
    base = spread([value for block in floor for value in block]).p50
    sizes = (
        f"{before / 1024**2:,.0f} MB before; compacting inbound.db at the end gave {given_back / 1024**2:,.0f} MB back"
    )
    return Result(
        figures=(*_figures("the runner", runner, base, rows), *_figures("the daemon", daemon, base, rows)),
        notes=(_NOTE, f"{sizes}; {_left(files)} rows of {4 * rows:,} are left."),
        curves={"locks": (_curve("the runner", runner), _curve("the daemon", daemon))},
        noisy=noise(floor),
    )


class _Timed:
    """The steps of one pass and the transactions in them, in milliseconds."""

    def __init__(self) -> None:
        self.locks: list[float] = []
        self.seconds = 0.0


def _pass(work: Callable[[], None]) -> _Timed:
    timed = _Timed()
    with _timing(timed.locks):
        began = time.perf_counter()
        work()
        timed.seconds = time.perf_counter() - began
    return timed


@contextmanager
def _timing(found: list[float]) -> Generator[None]:
    """Time every transaction of a Writer, from before its BEGIN to after its COMMIT."""
    real = Writer.transaction

    @contextmanager
    def transaction(self: Writer, *, exclusive: bool = False) -> Generator[Writer]:
        began = time.perf_counter()
        with real(self, exclusive=exclusive) as db:
            yield db
        found.append((time.perf_counter() - began) * 1000)

    Writer.transaction = transaction
    try:
        yield
    finally:
        Writer.transaction = real


def _later() -> int:
    """A time at which all of the history is old."""
    return time.time_ns() // 1_000_000 + _KEEP_MS + _DAY_MS


def _runner(files: SessionFiles, batch: int) -> None:
    retention = Retention(files.folder.inbox, files.folder.outbox, keep_ms=_KEEP_MS, batch=batch, now_ms=_later)
    while retention.step().more:
        pass


def _daemon(files: SessionFiles, batch: int) -> None:
    now = _later()
    for prune in (prune_messages, prune_receipts):
        position, done = 0, False
        while not done:
            step = prune(files, now - _KEEP_MS, position, batch, now)
            position, done = step.position, step.done


def _left(files: SessionFiles) -> int:
    with files.inbound() as db, files.outbound() as out:
        assert out is not None
        tables = ((db, "messages_in"), (db, "delivered"), (out, "messages_out"), (out, "processing_ack"))
        found = [one.one(f"SELECT count(*) AS n FROM {table}") for one, table in tables]
    return sum(int(row["n"]) for row in found if row is not None)


def _figures(who: str, timed: _Timed, base: float, rows: int) -> tuple[Figure, ...]:
    held = spread(timed.locks)
    text = f"{held.count} steps, p99 {held.p99:.1f}, longest {max(timed.locks):.1f}, half {held.quarter:.1f} .. {held.three_quarters:.1f}"
    return (
        Figure(f"{who}: a step holds the lock, {rows:,} rows of history", held.p50, "ms", base, None, text),
        Figure(f"{who}: a whole pass over them", timed.seconds, "s", note="steps one after the other, without pauses"),
    )


def _curve(label: str, timed: _Timed) -> Curve:
    ordered = sorted(timed.locks)
    return Curve(label, tuple((value, (place + 1) / len(ordered)) for place, value in enumerate(ordered)))
