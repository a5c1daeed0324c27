"""The floor: what this machine asks for the same durable commits and wakes, with nothing of ours in between.

Two processes, raw inotify, and SQLite as the product opens it (journal DELETE, synchronous EXTRA) on connections that stay
open. It imports nothing of the product. `python -m bench.floor FOLDER COMMITS` is the second process.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.inotify import DeleteWatch

_IN: Final = "in.db"
_OUT: Final = "out.db"
_BOX: Final = "box.db"
LEAST: Final = 3  # a question, an answer, a receipt
SAME: Final = 5  # as the bus: the message, the claim, the answer with its ack, the receiver's copy, the receipt
_SETTLE_S: Final = 0.003
_BODY: Final = '{"text": "hello"}'
_RECHECK_S: Final = 0.05
_IDLE_RECHECK_S: Final = 0.25
_LONGEST_S: Final = 60.0
_PAUSE_S: Final = (0.010, 0.030)  # as between the messages of a round trip: caches are as cold as theirs


def open_durable(path: Path) -> sqlite3.Connection:
    """A connection whose commits are as durable as the bus's own."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    return connection


def commit(connection: sqlite3.Connection, rows: int = 1) -> None:
    """One durable transaction of `rows` rows."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO rows(body) VALUES (?)", [(_BODY,)] * rows)
    connection.execute("COMMIT")


def last(connection: sqlite3.Connection) -> int:
    """The highest row that is there."""
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM rows").fetchone()[0])


def commit_times(folder: Path, count: int) -> list[float]:
    """Milliseconds of `count` durable commits of one row each."""
    with closing(open_durable(folder / "commits.db")) as connection:
        commit(connection)
        return [_timed(lambda: commit(connection)) for _ in range(count)]


def commits_cpu_ms(folder: Path, commits: int, count: int) -> list[float]:
    """Processor milliseconds of `commits` durable commits, kernel included, `count` times with a pause before each.

    They go to two files in turn, as the bus's do.
    """
    pauses = random.Random(count)  # noqa: S311 - the same pauses in every run
    found: list[float] = []
    with closing(open_durable(folder / "cpu-a.db")) as one, closing(open_durable(folder / "cpu-b.db")) as other:
        for _ in range(count):
            time.sleep(pauses.uniform(*_PAUSE_S))
            began = time.process_time()
            for number in range(commits):
                commit(other if number % 2 else one)
            found.append((time.process_time() - began) * 1000)
    return found


def row_cpu_us(folder: Path, rows: int, per_commit: int, commits: int) -> float:
    """Processor microseconds of a row when `commits` durable transactions, one after the other, write a batch of rows."""
    with closing(open_durable(folder / "row-cpu.db")) as connection:
        commit(connection)
        began = time.process_time()
        for done in range(0, rows, per_commit):
            for _ in range(commits):
                commit(connection, min(per_commit, rows - done))
        return (time.process_time() - began) / rows * 1_000_000


def rows_per_second(folder: Path, rows: int, per_commit: int) -> float:
    """How fast rows become durable with that many in a commit."""
    with closing(open_durable(folder / "rows.db")) as connection:
        commit(connection)
        began = time.perf_counter()
        for done in range(0, rows, per_commit):
            commit(connection, min(per_commit, rows - done))
        return rows / (time.perf_counter() - began)


def _timed(work: object) -> float:
    assert callable(work)
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


class RoundTripFloor:
    """Question, wake, answer, wake, receipt: two wakes between two processes, and LEAST or SAME commits. A context manager.

    With SAME the other side commits a claim before its answer, and the receiver's copy is a file of its own.
    """

    def __init__(self, folder: Path, commits: int = LEAST) -> None:
        self._folder = folder
        self._commits = commits
        self._asked = 0

    def __enter__(self) -> Self:
        (self._folder / "in").mkdir(parents=True, exist_ok=True)
        (self._folder / "out").mkdir(exist_ok=True)
        self._in = open_durable(self._folder / "in" / _IN)
        self._out = open_durable(self._folder / "out" / _OUT)
        self._box = open_durable(self._folder / _BOX)
        self._watch = DeleteWatch(self._folder / "out", f"{_OUT}-journal")
        self._other = subprocess.Popen(
            [sys.executable, "-m", "bench.floor", str(self._folder), str(self._commits)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert self._other.stdout is not None
        assert self._other.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._other.kill()
        self._other.communicate()
        self._watch.__exit__(None, None, None)
        for connection in (self._in, self._out, self._box):
            connection.close()

    def measure(self, count: int, warm_up: int = 10) -> list[float]:
        """Milliseconds of `count` round trips, after `warm_up` that are not told."""
        return [self._once() for _ in range(warm_up + count)][warm_up:]

    def _once(self) -> float:
        time.sleep(_SETTLE_S)  # the receipt wakes the other side too; its look is not part of this round trip
        self._asked += 1
        began = time.perf_counter()
        commit(self._in)
        # Not a look after the first of two: it would meet the second one's lock, and be no floor.
        self._watch.heard(_RECHECK_S, deletions=_answers(self._commits))
        self._until_answered(began + _LONGEST_S)
        commit(self._in)
        if self._commits == SAME:
            commit(self._box)
        return (time.perf_counter() - began) * 1000

    def _until_answered(self, deadline: float) -> None:
        """Wait for what the file says. A wake is a hint: the one that mattered may have come before this wait."""
        while last(self._out) < self._asked * _answers(self._commits):
            if self._other.poll() is not None or time.perf_counter() > deadline:
                raise TimeoutError("the other process of the floor does not answer")
            self._watch.heard(_RECHECK_S)


def _answers(commits: int) -> int:
    """How many of them are the other side's."""
    return 2 if commits == SAME else 1


def answer_for_ever(folder: Path, commits: int) -> None:
    """The second process: every odd row of in.db is a question, every even one a receipt."""
    with (
        DeleteWatch(folder / "in", f"{_IN}-journal") as watch,
        closing(open_durable(folder / "in" / _IN)) as questions,
        closing(open_durable(folder / "out" / _OUT)) as answers,
    ):
        print("ready", flush=True)
        while True:
            watch.heard(_IDLE_RECHECK_S)
            while last(answers) < (last(questions) + 1) // 2 * _answers(commits):
                commit(answers)


if __name__ == "__main__":
    answer_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
