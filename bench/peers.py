"""The same work in other durable queues on SQLite: put messages in one by one, take them out one by one.

Each is used as its own documentation shows it, with its own durability, on the same disk in the same run. What each does
not do is printed with its figures: none of them is a message bus, and a faster line is not a better promise.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import anyio
from huey.storage import SqliteStorage  # pyright: ignore[reportMissingTypeStubs] - it has none
from persistqueue import SQLiteAckQueue

from bench.bus import accept_many, open_house
from bench.drain import drain_once
from bench.figures import Figure, Result
from bench.floor import commit_times
from bench.settings import Settings
from bench.spread import median, noise, spread

_MESSAGES: Final = 2_000
_REPEATS: Final = 3
_COMMITS: Final = 100
_BODY: Final = '{"text": "hello"}'
_SELF: Final = "clawbus"
_LEVELS: Final = ("OFF", "NORMAL", "FULL", "EXTRA")
_WORDS: Final[Mapping[str, str]] = MappingProxyType({"put": "durable put", "take": "durable drain"})
MISSING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "huey": (
            "SqliteStorage: journal WAL, synchronous {level} (its fsync option left as it is). A task is deleted when it"
            " is taken: a worker that dies loses it. No receipt, no order per destination, no second process's file to read."
        ),
        "persist-queue": (
            "SQLiteAckQueue: journal WAL, synchronous {level}. Three commits a message (put, get, ack); one that was"
            " not acked comes back after a restart. No receipt of a delivery, no back-off, no dead letter, one process."
        ),
        _SELF: (
            "journal DELETE at synchronous EXTRA, as files shared with a container must be. A put stores the message, its"
            " history and its route; a drain stores each answer's intent before its send and its receipt after it."
        ),
    }
)


class Queue(Protocol):
    """A peer: `put` returns when the message is durable, `take` when it is gone."""

    def put(self) -> None: ...

    def take(self) -> None: ...


class Huey:
    """huey's storage, without its consumer."""

    def __init__(self, folder: Path) -> None:
        self._storage = SqliteStorage(filename=str(folder / "huey.db"))

    def put(self) -> None:
        """One commit."""
        self._storage.enqueue(_BODY.encode())  # pyright: ignore[reportUnknownMemberType] - no stubs

    def take(self) -> None:
        """One commit."""
        assert self._storage.dequeue() is not None


class PersistQueue:
    """persist-queue's queue with acknowledgements."""

    def __init__(self, folder: Path) -> None:
        self._queue = SQLiteAckQueue(str(folder / "persist-queue"))

    def put(self) -> None:
        """One commit."""
        self._queue.put(_BODY)

    def take(self) -> None:
        """Two commits."""
        self._queue.ack(self._queue.get(block=False))


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages a second, in and out, of each repetition."""

    put: tuple[float, ...]
    take: tuple[float, ...]


def default_synchronous() -> str:
    """SQLite's own level where nobody sets one, which is what both peers run at: a build may have another."""
    with closing(sqlite3.connect(":memory:")) as connection:
        level = int(connection.execute("PRAGMA synchronous").fetchone()[0])
    return _LEVELS[level]


def rate(queue: Queue, messages: int, repeats: int) -> Rate:
    """After a warm-up of a tenth."""
    for _ in range(max(1, messages // 10)):
        queue.put()
        queue.take()
    pairs = [(_per_second(queue.put, messages), _per_second(queue.take, messages)) for _ in range(repeats)]
    return Rate(tuple(put for put, _ in pairs), tuple(take for _, take in pairs))


def _per_second(work: Callable[[], None], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - began)


async def own_rate(data: Path, messages: int, repeats: int) -> Rate:
    """The bus's own: messages through its ingress one after the other, answers through its delivery."""
    put: list[float] = []
    take: list[float] = []
    async with open_house(data) as bus:
        await accept_many(bus, "warm", max(1, messages // 10))
        for number in range(repeats):
            began = time.perf_counter()
            await accept_many(bus, f"put-{number}", messages)
            put.append(messages / (time.perf_counter() - began))
            take.append((await drain_once(bus, f"take-{number}", messages, 1)).rate)
    return Rate(tuple(put), tuple(take))


def measure(settings: Settings) -> Result:
    """The bus, then each peer, with the floor between them."""
    messages, repeats = settings.count(_MESSAGES, 20), settings.count(_REPEATS, 1)
    floor = partial(commit_times, settings.folder, settings.count(_COMMITS, 5))
    blocks = [floor()]
    rates = {_SELF: anyio.run(own_rate, settings.folder / "own", messages, repeats)}
    for name, peer in (("huey", Huey), ("persist-queue", PersistQueue)):
        blocks.append(floor())
        rates[name] = rate(peer(settings.folder), messages, repeats)
    blocks.append(floor())
    per_second = 1000 / spread([value for block in blocks for value in block]).p50
    figures: list[Figure] = []
    for what in ("put", "take"):
        for name, found in rates.items():
            values: tuple[float, ...] = getattr(found, what)
            text = f"{repeats} x {messages:,} messages, {min(values):,.0f} .. {max(values):,.0f}"
            figures.append(Figure(f"{_WORDS[what]}, {name}", median(values), "messages/s", per_second, None, text))
    notes = tuple(f"{name}: {text.format(level=default_synchronous())}" for name, text in MISSING.items())
    return Result(tuple(figures), notes, noisy=noise(blocks))
