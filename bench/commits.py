"""What one durable commit costs by SQLite's modes, beside one bare fdatasync: the ground on which every other figure stands.

It tells what the bus's choice (journal DELETE, synchronous EXTRA, open and close for every operation) costs over others.
It imports nothing of the product.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench.figures import Figure, Result
from bench.settings import Settings
from bench.spread import noise, spread

_BLOCKS: Final = 20
_PER_BLOCK: Final = 10
_INSERT: Final = "INSERT INTO rows(body) VALUES ('hello')"
_PAGE: Final = b"\0" * 4096
# name -> (journal mode, synchronous)
_MODES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "DELETE, EXTRA (the bus)": ("DELETE", "EXTRA"),
        "DELETE, FULL": ("DELETE", "FULL"),
        "TRUNCATE, FULL": ("TRUNCATE", "FULL"),
        "PERSIST, FULL": ("PERSIST", "FULL"),
        "WAL, FULL": ("WAL", "FULL"),
    }
)
_NOTE: Final = (
    "The floor is a 4 KB append and its fdatasync. WAL needs memory that both sides share, which a VM's mount does not give;"
    " after a power cut FULL may undo a DELETE-mode commit that was acknowledged (sqlite.org/pragma.html#pragma_synchronous)."
)


def measure(settings: Settings) -> Result:
    """Every mode in turn, so that all of them see the same disk."""
    folder = settings.folder
    with ExitStack() as opened:
        file = opened.enter_context((folder / "sync").open("wb", buffering=0))
        works: dict[str, Callable[[], object]] = {"fdatasync": lambda: _sync(file.fileno())}
        for number, (name, modes) in enumerate(_MODES.items()):
            connection = opened.enter_context(closing(_connect(folder / f"{number}.db", *modes)))
            works[name] = partial(connection.execute, _INSERT)
        works["DELETE, EXTRA, opened and closed"] = lambda: _open_commit_close(folder / "0.db")
        times: dict[str, list[list[float]]] = {name: [] for name in works}
        for _ in range(settings.count(_BLOCKS, 2)):
            for name, work in works.items():
                times[name].append([_timed(work) for _ in range(_PER_BLOCK)])
    floor = spread([value for block in times["fdatasync"] for value in block])
    figures: list[Figure] = []
    for name, blocks in times.items():
        own = spread([value for block in blocks for value in block])
        text = f"{own.count} of them, p99 {own.p99:.2f}, half {own.quarter:.2f} .. {own.three_quarters:.2f}"
        figures.append(Figure(name if name == "fdatasync" else f"commit, {name}", own.p50, "ms", floor.p50, None, text))
    return Result(tuple(figures), (_NOTE,), noisy=noise(times["fdatasync"]))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _sync(descriptor: int) -> None:
    os.write(descriptor, _PAGE)
    os.fdatasync(descriptor)


def _connect(path: Path, journal: str, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    return connection


def _open_commit_close(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute(_INSERT)
