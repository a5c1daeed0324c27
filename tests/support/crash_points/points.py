"""Counting durable steps in a real process, and dying by SIGKILL at one of them.

A point is `label#occurrence:phase`. Phases: `before` a step, `after` it, and for a SQLite transaction `torn`: its pages
are partly in the database file, so that the death leaves a genuine hot journal. A plan is a folder: `plan.json` names
party, point and victims (it is removed when the point is reached, so a process dies at it once); every party appends
the points it passes to `<party>.points`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schema import connect, migrate


class Points:
    """The points of one process. `party` is daemon or runner."""

    def __init__(self, folder: Path, party: str) -> None:
        self._folder = folder
        self._party = party
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._log = os.open(folder / f"{party}.points", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        plan = self._plan()
        self._wanted: str | None = plan["point"] if plan and plan["party"] == party else None

    def step(self, label: str) -> str:
        """Begin a step: its name with its occurrence."""
        with self._lock:
            self._seen[label] = self._seen.get(label, 0) + 1
            return f"{label}#{self._seen[label]}"

    def at(self, step: str, phase: str) -> None:
        """The process stands at this point now."""
        point = f"{step}:{phase}"
        if point == self._wanted:
            self._die()
        os.write(self._log, f"{point}\n".encode())

    def wants(self, step: str, phase: str) -> bool:
        return f"{step}:{phase}" == self._wanted

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Make a function or coroutine function of a class or module a step."""
        original = getattr(owner, name)
        setattr(
            owner, name, self._asynchronous(original, label) if _is_async(original) else self._plain(original, label)
        )

    def _plain(self, original: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def stepped(*args: Any, **keys: Any) -> Any:
            step = self.step(label)
            self.at(step, "before")
            result = original(*args, **keys)
            self.at(step, "after")
            return result

        return stepped

    def _asynchronous(self, original: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(original)
        async def stepped(*args: Any, **keys: Any) -> Any:
            step = self.step(label)
            self.at(step, "before")
            result = await original(*args, **keys)
            self.at(step, "after")
            return result

        return stepped

    def transactions(self) -> None:
        """Every transaction of a Writer, and every making of a file, is a step, named by who asked for it."""
        original = connect.Writer.transaction
        points = self

        @contextmanager
        def transaction(self: connect.Writer, *, exclusive: bool = False) -> Iterator[connect.Writer]:
            step = points.step(_caller())
            points.at(step, "before")
            torn = points.wants(step, "torn")
            if torn:
                self._connection.execute("PRAGMA cache_size=1")
            with original(self, exclusive=exclusive) as db:
                yield db
                if torn and _spilled(db._connection):
                    points.at(step, "torn")
            points.at(step, "after")

        connect.Writer.transaction = transaction
        ensure = migrate.ensure

        def ensured(connection: sqlite3.Connection, role: migrate.Role, path: Path) -> None:
            fresh = int(connection.execute("PRAGMA user_version").fetchone()[0]) < migrate.VERSION
            step = points.step(f"make.{role.value}") if fresh else ""
            if fresh:
                points.at(step, "before")
            ensure(connection, role, path)
            if fresh:
                points.at(step, "after")

        migrate.ensure = ensured

    def _plan(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self._folder / "plan.json").read_text())
        return None

    def _die(self) -> None:
        """Once: whoever removes the plan dies, and takes the other victims with it."""
        plan = self._plan()
        try:
            (self._folder / "plan.json").rename(self._folder / "fired.json")
        except FileNotFoundError:
            return
        assert plan is not None
        for pid in _others(plan, self._party):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _others(plan: dict[str, Any], party: str) -> list[int]:
    """The pids of the other side, when both shall die."""
    if not plan["both"]:
        return []
    data = Path(plan["data"])
    if party == "runner":
        return [int(json.loads((data / "clawbus.lock").read_text())["pid"])]
    records = [json.loads(path.read_text()) for path in (data / "run" / "process").glob("*.json")]
    return [pid for record in records for pid in (record["pid"], *_children(record["pid"]))]


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _spilled(connection: sqlite3.Connection) -> bool:
    """Read every page through a cache of one page, so that changed pages must go to the file. True if something changed."""
    if not connection.total_changes:
        return False
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        connection.execute(f'SELECT * FROM "{name}"').fetchall()
    connection.execute("PRAGMA integrity_check").fetchall()
    return True


def _is_async(function: Any) -> bool:
    return bool(getattr(getattr(function, "__code__", None), "co_flags", 0) & 0x80)


def _caller() -> str:
    """Who began the transaction: module and function, without the machinery between."""
    frame = sys._getframe(2)
    while frame is not None and (
        "contextlib" in frame.f_code.co_filename
        or frame.f_code.co_filename == __file__
        or frame.f_code.co_name == "_update"  # the registry's own shorthand; who asked for it tells more
    ):
        frame = frame.f_back
    assert frame is not None
    module = frame.f_globals["__name__"].rpartition(".")[2]
    return f"{module}.{frame.f_code.co_name}"
