"""Files as the simulation sees them: real SQLite, with a crash possible before, in the middle of and after every commit.

A crash in the middle of a commit leaves what a killed process leaves: some new pages, some old ones, and the hot journal
that brings the old ones back (sqlite.org/fileformat2.html#the_rollback_journal).
"""

from __future__ import annotations

import asyncio
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import anyio

from schema.connect import BUSY_TIMEOUT_MS
from tests.simulation.loop import PROCESS, Process
from tests.simulation.world import ProcessKilledError, World

T = TypeVar("T")

_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_SECTOR: Final = 512
_ERRORS: Final = (
    (sqlite3.SQLITE_FULL, "database or disk is full"),
    (sqlite3.SQLITE_IOERR, "disk I/O error"),
    (sqlite3.SQLITE_BUSY, "database is locked"),
)
_READ_RACE: Final = sqlite3.SQLITE_READONLY_ROLLBACK


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    """What the module raises, with its code."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = f"simulated {code}"
    return error


class SimConnection(sqlite3.Connection):
    """A real connection whose commits are durable steps."""

    disk: Disk
    path: Path

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:  # type: ignore[override]
        """As ever, but for the two statements that matter."""
        if sql == "COMMIT":
            return self.disk.commit(self)
        return super().execute(sql, parameters)

    def really(self, sql: str) -> sqlite3.Cursor:
        """Past the simulation."""
        return super().execute(sql)


class Disk:
    """Opens files for schema.connect and runs what was meant for threads. `guard` is told of every write to outbound.db."""

    def __init__(self, world: World, guard: Callable[[Path, str], None]) -> None:
        self.world = world
        self._guard = guard
        self.living: Callable[[Path], bool] = lambda _: False

    def connect(self, path: Path, mode: str, more: str = "") -> sqlite3.Connection:
        """What `schema.connect._connect` does, and the faults of an open."""
        process, world = PROCESS.get(), self.world
        if process is not None and process.pause is not None:
            process.pause()
        if process is not None:
            if mode != "ro" and process.role != "runner" and path.name == "outbound.db":
                self._guard(path, f"opened {mode}")
            if mode == "ro" and process.role != "runner" and self.living(path) and world.chance(world.faults.read_race):
                world.fault("read_race", process.name)
                raise sqlite_error(_READ_RACE, "attempt to write a readonly database")
            if world.chance(world.faults.io_error):
                code, text = world.rng.choice(_ERRORS)
                world.fault("io_error", process.name, f"opening {path.name}: {text}")
                raise sqlite_error(code, text)
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}{more}",
            uri=True,
            timeout=0.0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=32,
            factory=SimConnection,
        )
        connection.disk, connection.path = self, path
        return connection

    def commit(self, connection: SimConnection) -> sqlite3.Cursor:
        """A durable step: before it, in it and after it the process may be killed, or the disk be full."""
        process, world = PROCESS.get(), self.world
        if process is None:
            return connection.really("COMMIT")
        folder, name = connection.path.parent, connection.path.name
        name = name if folder == world.root else f"{folder.parent.name}/{name}"
        if world.chance(world.faults.io_error):
            code, text = world.rng.choice(_ERRORS)
            world.fault("io_error", process.name, f"committing {name}: {text}")
            raise sqlite_error(code, text)
        where = world.rng.choice(("before", "in", "after")) if world.chance(world.crash_probability(process)) else ""
        if where == "before":
            self._die_before(process, connection, name)
        old = connection.path.read_bytes() if where == "in" else b""
        cursor = connection.really("COMMIT")
        if where == "in":
            self._tear(connection.path, old)
            world.counts["hot_journal"] += 1
            world.kill(process, f"in the commit of {name}")
            raise ProcessKilledError
        world.counts["commits"] += 1
        world.trace(process.name, f"committed {name}")
        world.changed(connection.path)
        if where == "after":
            world.kill(process, f"after the commit of {name}")
            raise ProcessKilledError
        return cursor

    def _die_before(self, process: Process, connection: SimConnection, name: str) -> None:
        """Killed with the changes in memory; half of the time the journal has been opened already."""
        old = connection.path.read_bytes()
        connection.rollback()
        if old and self.world.chance(0.5):
            journal(connection.path).write_bytes(_journal_of(old, [1], self.world.rng, synced=False))
            self.world.counts["cold_journal"] += 1
        self.world.kill(process, f"before the commit of {name}")
        raise ProcessKilledError

    def _tear(self, path: Path, old: bytes) -> None:
        new = path.read_bytes()
        size = int.from_bytes(new[16:18], "big")
        if size == 1:
            size = 65536
        pages = range(1, len(new) // size + 1)
        before = {page: old[(page - 1) * size : page * size] for page in pages}
        after = {page: new[(page - 1) * size : page * size] for page in pages}
        changed = [page for page in pages if before[page] != after[page] and before[page]]
        torn = [after[page] if self.world.rng.random() < 0.5 else before[page] or after[page] for page in pages]
        journal(path).write_bytes(_journal_of(old, changed, self.world.rng, synced=True, page_size=size))
        path.write_bytes(b"".join(torn))


def journal(path: Path) -> Path:
    """Where a database's rollback journal lies."""
    return path.with_name(path.name + "-journal")


def _journal_of(old: bytes, pages: list[int], rng: Random, *, synced: bool, page_size: int = 0) -> bytes:
    """The rollback journal that brings `pages` of `old` back. Not synced: its header says that it holds nothing yet."""
    size = page_size or int.from_bytes(old[16:18], "big")
    nonce = rng.getrandbits(32)
    header = struct.pack(">8sIIIII", _MAGIC, len(pages) if synced else 0, nonce, len(old) // size, _SECTOR, size)
    parts = [header.ljust(_SECTOR, b"\0")]
    for page in pages:
        data = old[(page - 1) * size : page * size]
        total = (nonce + sum(data[position] for position in range(size - 200, 0, -200))) & 0xFFFFFFFF
        parts += [struct.pack(">I", page), data, struct.pack(">I", total)]
    return b"".join(parts)


class Threads:
    """`anyio.to_thread.run_sync` without threads: the operation happens at one instant, some time after it was asked for."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run_sync(
        self,
        func: Callable[..., T],
        *args: object,
        abandon_on_cancel: bool = False,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> T:
        """Same contract as anyio's."""
        await anyio.lowlevel.checkpoint()
        if limiter is None:
            return await self._run(func, args, abandon_on_cancel)
        async with limiter:
            return await self._run(func, args, abandon_on_cancel)

    async def _run(self, func: Callable[..., T], args: tuple[object, ...], abandon: bool) -> T:  # pyright: ignore[reportReturnType] - every way out returns or raises
        loop, world = asyncio.get_running_loop(), self._world
        done: asyncio.Future[T] = loop.create_future()
        process = PROCESS.get()
        slow = world.chance(world.faults.slow_disk)
        if slow:
            world.counts["slow_disk"] += 1
        delay = world.rng.uniform(0.5, 40.0) if slow else world.rng.expovariate(1000.0)
        back = world.rng.uniform(0.0, 0.002)

        def work() -> None:
            world.step(process.name if process else "world", f"file operation {_name(func)}")
            try:
                result = func(*args)
            except ProcessKilledError:
                return
            except BaseException as error:
                loop.call_later(back, _fail, done, error)
            else:
                loop.call_later(back, _succeed, done, result)

        live = self._live_journal(process, func)
        if live is None:
            loop.call_later(delay, work)
        else:
            # In the middle of a commit, and perhaps frozen or killed there: the host meets the journal of a living writer.
            loop.call_later(delay, live.begin)

            def commit() -> None:
                live.end()
                work()

            loop.call_later(delay + world.rng.choice((0.02, 0.02, 0.3, 2.0)), commit)
        with anyio.CancelScope(shield=not abandon):
            return await done

    def _live_journal(self, process: Process | None, func: Any) -> LiveJournal | None:
        world = self._world
        if process is None or process.role != "runner" or not world.chance(world.faults.read_race):
            return None
        store = getattr(getattr(func, "func", func), "__self__", None)
        outbound = getattr(store, "_outbound", None)
        return LiveJournal(world, outbound) if outbound is not None else None


class LiveJournal:
    """The journal of a runner that is in the middle of a commit, for as long as that takes."""

    def __init__(self, world: World, path: Path) -> None:
        self._world = world
        self._path = path
        self._written = b""

    def begin(self) -> None:
        """Write it, unless there is no file yet."""
        if self._path.exists() and self._path.stat().st_size and not journal(self._path).exists():
            self._written = _journal_of(self._path.read_bytes(), [1], self._world.rng, synced=False)
            journal(self._path).write_bytes(self._written)
            self._world.step("disk", f"journal of a living writer: {self._path.parent.parent.name}")
            self._world.counts["live_journal"] += 1

    def end(self) -> None:
        """The writer is done with it."""
        if self._written and journal(self._path).exists() and journal(self._path).read_bytes() == self._written:
            journal(self._path).unlink()


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _name(func: Any) -> str:
    while True:
        if hasattr(func, "func"):
            func = func.args[0] if func.args and callable(func.args[0]) else func.func
        elif getattr(func, "__self__", None) is not None and hasattr(func.__self__, "_operation"):
            func = func.__self__._operation
        else:
            return str(getattr(func, "__qualname__", func)).split(".<locals>")[0]


__all__ = ["BUSY_TIMEOUT_MS", "Disk", "SimConnection", "Threads", "journal", "sqlite_error"]
