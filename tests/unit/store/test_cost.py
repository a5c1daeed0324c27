"""A look costs what is new and open, never what was: no query of it scans a table, and an idle one writes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import schema.connect
from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules
from daemon.core.lifecycle import Container, Policy
from daemon.core.session_key import SessionKey
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.sweep_steps import Settings, sweep_files
from daemon.store.registry import Registry
from tests.support.session_world import NOW, SessionWorld

MANY = 10_000
MEANS = DeliveryContext({"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}, Delivery(), 10_000, frozenset(),
              frozenset(), 0.5)  # fmt: skip
SETTINGS = Settings(Policy())


def fill(world: SessionWorld, many: int) -> None:
    """`many` messages that are answered, delivered and done."""
    at = "2026-11-21T00:00:00.000Z"
    numbers = range(1, many + 1)
    with world.runner() as db, db.transaction():
        db.executemany("INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES (?, ?, ?, 'chat', '{}')",
                       [(f"o{n}", 4 * n + 1, at) for n in numbers])  # fmt: skip
        db.executemany("INSERT INTO processing_ack VALUES (?, 'completed', ?, 'i')", [(f"m{n}", at) for n in numbers])
    with world.files.outbound() as out:
        file_id = out.file_id if out is not None else ""
    with world.files.inbound() as db, db.transaction():
        db.executemany("INSERT INTO messages_in(id, seq, kind, timestamp, status, series_id, content)"
                       " VALUES (?, ?, 'chat', ?, 'completed', ?, '{}')",
                       [(f"m{n}", 4 * n, at, f"m{n}") for n in numbers])  # fmt: skip
        db.executemany("INSERT INTO message_history(message_id, event, at) VALUES (?, 'accepted', 0)",
                       [(f"m{n}",) for n in numbers])  # fmt: skip
        db.executemany("INSERT INTO attempts VALUES (?, 'i', 0, 0, 'completed')", [(f"m{n}",) for n in numbers])
        db.executemany("INSERT INTO delivered VALUES (?, NULL, 'delivered', ?)", [(f"o{n}", at) for n in numbers])
        db.execute("INSERT INTO delivery_cursor VALUES (1, ?, ?)", (4 * many + 1, file_id))


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """(file name, statement with its values) of everything that SQLite runs in here."""
    seen: list[tuple[str, str]] = []
    connect = schema.connect._connect

    def tracing(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        connection.set_trace_callback(lambda sql: seen.append((path.name, sql)))
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(schema.connect, "_connect", tracing)
        yield seen


def look(world: SessionWorld) -> object:
    return collect(world.files, MEANS, "i2", world)


def sweep(world: SessionWorld) -> object:
    return sweep_files(world.files, Container("i2", NOW), world.now, SETTINGS, occupied=False, floor=0)


def sweep_alone(world: SessionWorld) -> object:
    return sweep_files(world.files, None, world.now, SETTINGS, occupied=False, floor=0)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> SessionWorld:
    world = SessionWorld(tmp_path_factory.mktemp("full") / "s")
    fill(world, MANY)
    return world


LOOKS = [look, sweep, sweep_alone]


@pytest.mark.parametrize("operation", LOOKS)
def test_an_idle_look_writes_nothing(
    full: SessionWorld, monkeypatch: pytest.MonkeyPatch, operation: Callable[[SessionWorld], object]
) -> None:
    before = (full.files.folder.inbound_db.stat(), full.files.folder.outbound_db.stat())
    with traced(monkeypatch) as seen:
        operation(full)
    assert seen
    # A transaction that only reads ends in a rollback: no commit, and nothing that takes the lock of a writer.
    others = [sql for _, sql in seen if not sql.lstrip().upper().startswith(("SELECT", "PRAGMA"))]
    assert others in ([], ["BEGIN", "ROLLBACK"])
    after = (full.files.folder.inbound_db.stat(), full.files.folder.outbound_db.stat())
    assert [(stat.st_mtime_ns, stat.st_size) for stat in after] == [(stat.st_mtime_ns, stat.st_size) for stat in before]


def scans(world: SessionWorld, seen: list[tuple[str, str]]) -> list[str]:
    """Statements that walk a whole table or a whole index without a condition on it, as SQLite plans them."""
    found: list[str] = []
    files = {path.name: path for path in (world.files.folder.inbound_db, world.files.folder.outbound_db)}
    for name, sql in seen:
        if not sql.upper().startswith(("SELECT", "UPDATE", "DELETE")):
            continue
        connection = sqlite3.connect(files[name])
        for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}"):
            detail = str(row[3])
            table = detail.split()[1] if detail.startswith("SCAN") else ""
            # A walk over a partial index is a walk over what is open; those tables are as small as what they route to.
            partial = ("messages_in_pending", "messages_in_rearm", "delivery_attempts_open", "delivery_attempts_retrying",
                       "attempts_open", "processing_ack_claimed", "delivery_attempts_dead", "messages_in_failed", "questions_open")  # fmt: skip
            small = (
                "session_routing",
                "destinations",
                "delivery_cursor",
                "sqlite_schema",
                "container_state",
                "CONSTANT",
            )
            if table and table not in small and not any(name in detail for name in partial):
                found.append(f"{detail}: {sql}")
        connection.close()
    return found


@pytest.mark.parametrize("operation", LOOKS)
def test_no_query_scans_what_is_done(
    full: SessionWorld, monkeypatch: pytest.MonkeyPatch, operation: Callable[[SessionWorld], object]
) -> None:
    with traced(monkeypatch) as seen:
        operation(full)
    assert scans(full, seen) == []


def test_the_search_for_scans_is_not_blind(full: SessionWorld) -> None:
    bad = [
        ("inbound.db", "SELECT * FROM delivered WHERE status = 'failed'"),
        ("outbound.db", "SELECT count(*) FROM messages_out"),
    ]
    assert len(scans(full, bad)) == 2


def test_a_look_with_news_scans_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = SessionWorld(tmp_path / "s")
    fill(world, 500)
    world.accept("new")
    world.accept("other")
    world.accept("late", process_after=NOW + 1)
    world.ack("completed", "new", by="i2")
    world.claim("other", by="i2")
    for number in range(3):
        world.say(f"new{number}", in_reply_to="new")
    with traced(monkeypatch) as seen:
        look(world)
        look(world)
        sweep(world)
        sweep_alone(world)
    assert scans(world, seen) == []


def test_steps_of_an_idle_look_do_not_grow_with_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in SQLite's own steps, on the host's file; the container's has a progress handler of its own."""
    counts: list[int] = []
    connect = schema.connect._connect

    def counting(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        if path.name == "inbound.db":

            def step() -> int:
                counts[-1] += 1
                return 0

            connection.set_progress_handler(step, 1)
        return connection

    worlds = []
    for many in (10, 2000):
        worlds.append(SessionWorld(tmp_path / str(many)))
        fill(worlds[-1], many)
    monkeypatch.setattr(schema.connect, "_connect", counting)
    for world in worlds:
        counts.append(0)
        look(world)
        sweep(world)
    assert counts[0] > 100
    assert counts[1] <= counts[0] + 50


def test_the_registry_finds_work_by_index(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "central.db")
    registry.activate(SessionKey("a", "s"), NOW)
    connection = sqlite3.connect(tmp_path / "central.db")
    sql = "SELECT * FROM sessions WHERE active = 1 UNION SELECT * FROM sessions WHERE next_due_at IS NOT NULL"
    plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    connection.close()
    assert any("sessions_active" in line for line in plan), plan
    assert any("sessions_due" in line for line in plan), plan
