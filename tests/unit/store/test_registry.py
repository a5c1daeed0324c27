"""central.db: who has work and who lives; one live incarnation a session, by the file's own word."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

import schema.connect
from daemon.core.session_key import SessionKey
from daemon.store.incarnations import IncarnationRow
from daemon.store.registry import Registry
from schema.errors import SchemaTooNewError

NOW = 1_795_219_200_000
KEY, OTHER = SessionKey("a", "s"), SessionKey("a", "t")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "central.db")


def incarnation(name: str, key: SessionKey = KEY) -> IncarnationRow:
    return IncarnationRow(name, key, "process", "print", None, NOW)


def test_an_install_keeps_its_id(registry: Registry, tmp_path: Path) -> None:
    made = registry.install_id(NOW)
    assert made == made.lower()
    assert registry.install_id(NOW + 1) == made
    assert Registry(tmp_path / "central.db").install_id(NOW + 2) == made
    assert Registry(tmp_path / "other.db").install_id(NOW) != made


def test_an_idle_session_that_is_looked_at_again_is_not_written_again(registry: Registry, tmp_path: Path) -> None:
    """The file's own change counter tells: bytes 24 to 27 of its header (sqlite.org/fileformat2.html)."""

    def changes() -> bytes:
        return (tmp_path / "central.db").read_bytes()[24:28]

    registry.activate(KEY, NOW)
    for next_due_at in (None, NOW + 5):
        registry.deactivate(KEY, next_due_at)
        before = changes()
        registry.deactivate(KEY, next_due_at)
        assert changes() == before
    registry.deactivate(KEY, None)
    assert changes() != before
    row = registry.session(KEY)
    assert row is not None
    assert (row.active, row.next_due_at) == (False, None)


def test_a_session_is_made_active_idle_and_active_again(registry: Registry) -> None:
    assert registry.session(KEY) is None
    registry.activate(KEY, NOW)
    row = registry.session(KEY)
    assert row is not None
    assert (row.key, row.active, row.next_due_at, row.spawn_failures) == (KEY, True, None, 0)
    registry.deactivate(KEY, NOW + 5)
    row = registry.session(KEY)
    assert row is not None
    assert (row.active, row.next_due_at) == (False, NOW + 5)
    registry.activate(KEY, NOW + 1)
    row = registry.session(KEY)
    assert row is not None
    assert row.active


def test_with_work_is_what_is_active_or_has_a_known_time(registry: Registry) -> None:
    for name in ("active", "later", "idle", "both"):
        registry.activate(SessionKey("a", name), NOW)
    registry.deactivate(SessionKey("a", "later"), NOW + 5)
    registry.deactivate(SessionKey("a", "idle"), None)
    registry.deactivate(SessionKey("a", "both"), NOW + 5)
    registry.activate(SessionKey("a", "both"), NOW)
    assert sorted(row.key.session for row in registry.with_work()) == ["active", "both", "later"]


def test_pages_cover_every_session_once_and_in_order(registry: Registry) -> None:
    keys = sorted(SessionKey(agent, f"s{number:02}") for agent in ("a", "a-b", "b") for number in range(7))
    for key in reversed(keys):
        registry.activate(key, NOW)
    seen: list[SessionKey] = []
    while page := registry.all_keys(seen[-1] if seen else None, 4):
        assert len(page) <= 4
        seen += page
    assert seen == keys


def test_quarantine_is_lifted_with_a_clean_slate(registry: Registry) -> None:
    registry.activate(KEY, NOW)
    registry.activate(OTHER, NOW)
    registry.spawn_failed(KEY, 3, NOW + 40_000, "x" * 900)
    registry.quarantine(KEY, "a fifo", NOW)
    registry.deactivate(KEY, None)
    row = registry.session(KEY)
    assert row is not None
    assert (row.quarantine_reason, row.spawn_failures, row.next_spawn_at, row.active) == (
        "a fifo",
        3,
        NOW + 40_000,
        False,
    )
    assert row.last_spawn_error is not None
    assert len(row.last_spawn_error) == 500
    registry.release(KEY)
    row = registry.session(KEY)
    assert row is not None
    assert (row.quarantine_reason, row.spawn_failures, row.next_spawn_at, row.active) == (None, 0, None, True)
    other = registry.session(OTHER)
    assert other is not None
    assert other.quarantine_reason is None


def test_spawn_failures_are_forgotten_after_a_good_one(registry: Registry) -> None:
    registry.activate(KEY, NOW)
    registry.spawn_failed(KEY, 2, NOW + 1, "no image")
    registry.spawn_recovered(KEY)
    row = registry.session(KEY)
    assert row is not None
    assert (row.spawn_failures, row.next_spawn_at, row.last_spawn_error) == (0, None, None)


def test_a_session_has_one_live_incarnation(registry: Registry) -> None:
    assert registry.begin_incarnation(incarnation("i1"))
    assert not registry.begin_incarnation(incarnation("i2"))
    assert registry.begin_incarnation(incarnation("j1", OTHER)), "another session is another matter"
    registry.incarnation_started("i1", "container-1", NOW + 3)
    assert [(row.id, row.container_id) for row in registry.live_incarnations()] == [("i1", "container-1"), ("j1", None)]
    registry.end_incarnation("i1", NOW + 9, 137, "ceiling")
    assert [row.id for row in registry.live_incarnations()] == ["j1"]
    assert registry.begin_incarnation(incarnation("i2"))


def test_the_file_itself_refuses_a_second_live_one(registry: Registry, tmp_path: Path) -> None:
    registry.begin_incarnation(incarnation("i1"))
    connection = sqlite3.connect(tmp_path / "central.db")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO incarnations(id, agent, session, runtime, fingerprint, created_at)"
                           " VALUES ('i2', 'a', 's', 'p', 'f', 0)")  # fmt: skip
    connection.close()


def test_two_hosts_at_once_get_one_incarnation(registry: Registry) -> None:
    registry.install_id(NOW)
    ready, won = threading.Barrier(4), list[bool]()

    def begin(name: str) -> None:
        ready.wait(10)
        won.append(registry.begin_incarnation(incarnation(name)))

    threads = [threading.Thread(target=begin, args=(f"i{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(won) == [False, False, False, True]


def test_an_end_is_recorded_once(registry: Registry, tmp_path: Path) -> None:
    registry.begin_incarnation(incarnation("i1"))
    registry.end_incarnation("i1", NOW + 9, 137, "ceiling")
    registry.end_incarnation("i1", NOW + 99, 0, "exited")
    registry.end_incarnation("nobody", NOW, 0, "exited")
    connection = sqlite3.connect(tmp_path / "central.db")
    assert connection.execute("SELECT ended_at, exit_code, end_reason FROM incarnations").fetchall() == [
        (NOW + 9, 137, "ceiling")
    ]
    connection.close()


def test_a_newer_registry_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.activate(KEY, NOW)
    connection = sqlite3.connect(tmp_path / "central.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SchemaTooNewError):
        registry.with_work()


DAY = 86_400_000


def lived(registry: Registry, name: str, key: SessionKey, created_at: int, ended_at: int | None) -> None:
    registry.begin_incarnation(IncarnationRow(name, key, "process", "print", None, created_at))
    if ended_at is not None:
        registry.end_incarnation(name, ended_at, 0, "idle")


def prune(registry: Registry, cutoff: int, batch: int = 2) -> int:
    taken, after = 0, ""
    while True:
        number, following = registry.prune_incarnations(cutoff, after, batch, NOW)
        taken += number
        if following is None:
            return taken
        after = following


def incarnations(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        return [name for (name,) in db.execute("SELECT id FROM incarnations ORDER BY id")]


def test_old_incarnations_go_but_the_newest_the_live_and_the_young(registry: Registry, tmp_path: Path) -> None:
    for number in range(5):
        lived(registry, f"i{number}", KEY, NOW + number * DAY, NOW + number * DAY + 5)
    lived(registry, "i5", OTHER, NOW, NOW + 9 * DAY)  # it lived long, and ended of late
    lived(registry, "i6", SessionKey("a", "u"), NOW, NOW + 1)  # all that is known of that session
    lived(registry, "i7", OTHER, NOW + 9 * DAY, None)
    assert prune(registry, NOW + 7 * DAY) == 4
    assert incarnations(tmp_path / "central.db") == ["i4", "i5", "i6", "i7"]
    assert prune(registry, NOW + 100 * DAY) == 1  # i5 is followed by a live one
    assert [row.id for row in registry.live_incarnations()] == ["i7"]


def test_what_was_pruned_is_added_up(registry: Registry, tmp_path: Path) -> None:
    registry.note_pruned({"messages": 3, "receipts": 2}, NOW, NOW - 10)
    registry.note_pruned({"messages": 4}, NOW + 1, NOW - 20)
    with sqlite3.connect(tmp_path / "central.db") as db:
        rows = db.execute("SELECT what, rows, at, through FROM pruned ORDER BY what").fetchall()
    assert rows == [("messages", 7, NOW + 1, NOW - 10), ("receipts", 2, NOW, NOW - 10)]


def test_a_live_incarnation_stays_even_when_the_clock_has_made_it_look_followed(
    registry: Registry, tmp_path: Path
) -> None:
    lived(registry, "i1", KEY, NOW + DAY, NOW + DAY)  # made by a clock that was ahead
    lived(registry, "i2", KEY, NOW, None)
    assert prune(registry, NOW + 100 * DAY) == 0
    assert incarnations(tmp_path / "central.db") == ["i1", "i2"]


def test_a_page_of_verified_sessions_costs_the_page_and_not_all_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, statements = Registry(tmp_path / "central.db"), list[str]()
    connect = schema.connect._connect

    def tracing(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(schema.connect, "_connect", tracing)
    registry.add_sessions([SessionKey("a", "s")], 1)
    registry.verified_idle(9, SessionKey("a", "s"), SessionKey("a", "t"))
    [sql] = [one for one in statements if "verified_idle AS v" in one]
    with closing(sqlite3.connect(tmp_path / "central.db")) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert plan[0].endswith("((agent,session)>(?,?) AND (agent,session)<(?,?))"), plan
    assert not any(line.startswith("SCAN") for line in plan), plan
