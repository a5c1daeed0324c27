"""History first: a status and the row that explains it are one transaction, through one function."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from daemon.store import transitions
from daemon.store.transitions import change_status, record, schedule_retry
from schema.handles import Writer
from schema.rows import MessageStatus
from schema.states import TRANSITIONS, IllegalTransitionError
from tests.support.invariants import check_session
from tests.support.session_world import NOW, SessionWorld
from tests.support.source_trees import nodes_of, tree_of

ROOT = Path(__file__).resolve().parents[3]
S = MessageStatus


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "s")
    made.accept("m")
    return made


def change(world: SessionWorld, target: MessageStatus, **fields: object) -> bool:
    with world.files.inbound() as db, db.transaction():
        return change_status(db, "m", target, target.value, NOW, **fields)  # pyright: ignore[reportArgumentType]


def put(world: SessionWorld, status: MessageStatus) -> None:
    world.change("UPDATE messages_in SET status = ?", (status.value,))


@pytest.mark.parametrize("current", S)
@pytest.mark.parametrize("target", S)
def test_every_pair_changes_both_or_neither(world: SessionWorld, current: MessageStatus, target: MessageStatus) -> None:
    put(world, current)
    if current is target:
        assert not change(world, target)
    elif target in TRANSITIONS[current]:
        assert change(world, target)
        assert (world.message("m")["status"], world.events("m")) == (target.value, ["accepted", target.value])
        return
    else:
        with pytest.raises(IllegalTransitionError):
            change(world, target)
    assert (world.message("m")["status"], world.events("m")) == (current.value, ["accepted"])


def test_a_message_that_is_not_there_changes_nothing(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        assert not change_status(db, "nobody", S.COMPLETED, "completed", NOW)
    assert world.events("nobody") == []


def test_the_history_row_says_who_when_and_why(world: SessionWorld) -> None:
    change(world, S.FAILED, incarnation="i", detail={"reason": "ünder"})
    row = world.read("SELECT * FROM message_history ORDER BY id DESC LIMIT 1")[0]
    assert (row["incarnation"], row["at"], json.loads(row["detail"])) == ("i", NOW, {"reason": "ünder"})


class Crash(Exception):
    """The daemon dies here."""


@pytest.mark.faults
@pytest.mark.parametrize("where", ["before the history", "between history and status", "after the status"])
def test_a_crash_leaves_neither(world: SessionWorld, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    really_record, really_execute = transitions.record, Writer.execute

    def dying_record(*arguments: object, **named: object) -> None:
        if where == "before the history":
            raise Crash
        really_record(*arguments, **named)  # pyright: ignore[reportArgumentType]

    def dying_execute(self: Writer, sql: str, params: tuple[object, ...] = ()) -> int:
        ours = sql.startswith("UPDATE messages_in SET status")
        if ours and where == "between history and status":
            raise Crash
        changed = really_execute(self, sql, params)
        if ours:
            raise Crash
        return changed

    monkeypatch.setattr(transitions, "record", dying_record)
    monkeypatch.setattr(Writer, "execute", dying_execute)
    with pytest.raises(Crash):
        change(world, S.COMPLETED)
    monkeypatch.undo()
    assert (world.message("m")["status"], world.events("m")) == ("pending", ["accepted"])
    check_session(world.root)


def test_a_retry_is_history_and_schedule_in_one(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        schedule_retry(db, "m", 2, NOW + 10_000, NOW, incarnation="i", reason="it died")
    row = world.message("m")
    assert (row["status"], row["tries"], row["process_after"]) == ("pending", 2, "2026-11-21T00:00:10.000Z")
    detail = json.loads(world.read("SELECT detail FROM message_history WHERE event = 'retry_scheduled'")[0]["detail"])
    assert detail == {"tries": 2, "process_after": "2026-11-21T00:00:10.000Z", "reason": "it died"}


@pytest.mark.parametrize("status", [S.COMPLETED, S.CANCELLED, S.PAUSED, S.FAILED])
def test_a_retry_moves_only_what_is_pending(world: SessionWorld, status: MessageStatus) -> None:
    put(world, status)
    with world.files.inbound() as db, db.transaction():
        schedule_retry(db, "m", 2, NOW + 10_000, NOW, incarnation="i", reason="it died")
    row = world.message("m")
    assert (row["status"], row["tries"], row["process_after"]) == (status.value, 0, None)


def test_history_is_append_only_and_in_order(world: SessionWorld) -> None:
    with world.files.inbound() as db, db.transaction():
        for number in range(5):
            record(db, "m", f"e{number}", NOW - number)
    assert world.events("m") == ["accepted", "e0", "e1", "e2", "e3", "e4"]


STATUS_UPDATE = re.compile(r"update\s+messages_in\s+set\b[^\"]*\bstatus\s*=", re.IGNORECASE)
# Of another meaning: nothing before the WHERE.
HISTORY_CHANGE = re.compile(r"(update\s+message_history|delete\s+from\s+message_history)", re.IGNORECASE)


@cache
def sql_of(path: Path) -> list[str]:
    """Every string of a file, adjacent literals joined as Python joins them, up to the WHERE."""
    found: list[str] = []
    for node in nodes_of(tree_of(path)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return [re.split(r"\bwhere\b", text, flags=re.IGNORECASE)[0] for text in found]


def offenders(pattern: re.Pattern[str]) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in ("daemon", "container_runner", "schema")
        for path in (ROOT / package).rglob("*.py")
        if any(pattern.search(text) for text in sql_of(path))
    }


def test_only_this_file_changes_a_status() -> None:
    assert offenders(STATUS_UPDATE) == {"daemon/store/transitions.py"}


def test_nothing_changes_the_history() -> None:
    assert offenders(HISTORY_CHANGE) == set()


@pytest.mark.parametrize(
    "line",
    [
        "db.execute(\"UPDATE messages_in SET tries = 1, status = 'failed'\")",
        'db.execute("update messages_in"\n    " set status = ?", (1,))',
        'db.execute(f"UPDATE messages_in SET {x} status = 1")',
    ],
)
def test_the_search_is_not_blind(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.py").write_text(line)
    assert any(STATUS_UPDATE.search(text) for text in sql_of(tmp_path / "x.py"))
    (tmp_path / "y.py").write_text("db.execute(\"UPDATE messages_in SET tries = ? WHERE status = 'pending'\")")
    assert not any(STATUS_UPDATE.search(text) for text in sql_of(tmp_path / "y.py"))
