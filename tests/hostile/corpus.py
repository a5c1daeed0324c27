"""Valid outbound.db files to mutate, as bytes: every shape that a runner may leave, with and without a hot journal."""

import random
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schema.connect import open_owner
from schema.layout import OUTBOUND_DB
from schema.migrate import Role
from tests.support.hot_journal import strand_journal

STAMP: Final = "2026-11-21T00:00:00.000Z"


@dataclass(frozen=True, slots=True)
class Pair:
    """A database and its journal, if it has one."""

    name: str
    database: bytes
    journal: bytes | None = None


def build() -> list[Pair]:
    """All of them. The same bytes on every run but for SQLite's own version number in the header."""
    makers: dict[str, Callable[[Path], None]] = {
        "empty contract": _contract,
        "contract": lambda path: _filled(path, 40),
        "many rows": lambda path: _filled(path, 1500),
        "large rows": lambda path: _filled(path, 12, width=30_000),
        "small pages": lambda path: _paged(path, 512),
        "large pages": lambda path: _paged(path, 65536),
        "auto vacuum": lambda path: _paged(path, 1024, "PRAGMA auto_vacuum=FULL"),
        "free pages": _freed,
        "without keys": _loose,
        "hot journal": lambda path: _hot(path, 300),
        "hot journal, small": lambda path: _hot(path, 60),
    }
    return [_bytes(name, make) for name, make in makers.items()]


def _bytes(name: str, make: Callable[[Path], None]) -> Pair:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / OUTBOUND_DB
        make(path)
        journal = path.with_name(OUTBOUND_DB + "-journal")
        return Pair(name, path.read_bytes(), journal.read_bytes() if journal.exists() else None)


def _contract(path: Path) -> None:
    open_owner(path, Role.OUTBOUND).close()


def _rows(connection: sqlite3.Connection, count: int, width: int) -> None:
    rng = random.Random(count)
    for number in range(count):
        content = f'{{"text":"{"x" * rng.randrange(1, width)}"}}'
        reply = rng.choice((None, "m1", "m2", "m9"))
        place = rng.choice(((None, None), ("local", "me"), ("webhook", "hook"), ("nowhere", "x")))
        connection.execute(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, deliver_after, recurrence, kind, platform_id,"
            " channel_type, thread_id, content) VALUES (?, ?, ?, ?, ?, NULL, 'chat', ?, ?, ?, ?)",
            (
                f"o{number}", 2 * number + 1, reply, STAMP, rng.choice((None, STAMP)),
                place[1], place[0], rng.choice((None, "thread")), content,
            ),
        )  # fmt: skip
        status = rng.choice(("processing", "completed", "failed"))
        name = f"m{number}" if number < 10 else f"old{number}"
        connection.execute("INSERT INTO processing_ack VALUES (?, ?, ?, 'i')", (name, status, STAMP))
    connection.execute("INSERT INTO session_state VALUES ('key', 'value', ?)", (STAMP,))
    connection.execute("INSERT INTO container_state VALUES (1, 'Bash', 60000, ?, ?)", (STAMP, STAMP))


def _filled(path: Path, count: int, width: int = 200) -> None:
    _contract(path)
    connection = sqlite3.connect(path)
    _rows(connection, count, width)
    connection.commit()
    connection.close()


def _paged(path: Path, page: int, *pragmas: str) -> None:
    connection = sqlite3.connect(path)
    for pragma in (f"PRAGMA page_size={page}", *pragmas):
        connection.execute(pragma)
    connection.execute("VACUUM")
    connection.close()
    _filled(path, 120)


def _freed(path: Path) -> None:
    _filled(path, 400)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM messages_out WHERE seq > 200")
    connection.commit()
    connection.close()


def _loose(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE messages_out (id, seq, in_reply_to, timestamp, deliver_after, recurrence, kind, platform_id,"
        " channel_type, thread_id, content)"
    )
    connection.execute("CREATE TABLE processing_ack (message_id, status, status_changed, incarnation)")
    connection.execute("CREATE TABLE session_state (key, value, updated_at)")
    connection.execute(
        "CREATE TABLE container_state (id, current_tool, tool_declared_timeout_ms, tool_started_at, updated_at)"
    )
    _rows(connection, 60, 200)
    connection.commit()
    connection.close()


def _hot(path: Path, rows: int) -> None:
    _filled(path, 30)
    strand_journal(path, "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(900)), 'x')", rows=rows)
