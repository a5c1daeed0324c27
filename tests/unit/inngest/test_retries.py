"""A run that waits to be tried again is silent and healthy: until when its history says."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from daemon.inngest.plan import Scope
from daemon.inngest.retries import backoff_ms
from daemon.inngest.sweep import Request, sweep
from tests.support.inngest_db import HOUR, MINUTE, NOW, TRIAGE, InngestDb, Made

SCOPE = Scope(functions=(TRIAGE,))


def failed(tmp_path: Path, attempt: int, *, headers: object = None, age: int = 40 * MINUTE) -> tuple[InngestDb, Made]:
    """A run whose step failed `age` ago and is scheduled for its next try."""
    db = InngestDb(tmp_path / "main.db")
    made = db.run(TRIAGE, age=9 * HOUR)
    result = json.dumps({"response_headers": headers, "output": "x" * 9000})
    db.history(made, "StepErrored", NOW - age - 100, step_id="step", group_id="g", result=result)
    db.history(made, "StepScheduled", NOW - age, step_id="step", group_id="g")
    with closing(sqlite3.connect(db.path)) as other, other:
        other.execute("UPDATE history SET attempt = ? WHERE type = 'StepScheduled'", (attempt,))
    return db, made


def waits(db: InngestDb) -> bool:
    plan = sweep(Request(db.path, SCOPE, "ada"), NOW).plan
    assert len(plan.candidates) + len(plan.held) == 1
    return bool(plan.held)


@pytest.mark.parametrize(("attempt", "held"), [(1, False), (6, False), (7, True), (8, True), (9, True), (30, True)])
def test_the_server_s_own_table_says_how_long_a_retry_may_be_silent(tmp_path: Path, attempt: int, held: bool) -> None:
    """40 minutes after the failure: the seventh retry may still be due."""
    db, _ = failed(tmp_path, attempt)
    assert waits(db) is held


def test_the_table_is_the_server_s() -> None:
    assert [backoff_ms(attempt) // 1000 - 30 for attempt in range(-1, 12)] == [
        15, 15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200, 7200, 7200,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (["2026-03-04T19:29:44Z"], True),
        (["2026-03-04T19:29:42Z"], False),
        (["2500"], True),
        (["2300"], False),
        ("2500", True),
        (["Wed, 04 Mar 2026 19:30:43 GMT"], True),
        (["Wed, 04 Mar 2026 19:28:43 GMT"], False),
        (["soon"], False),
        ([], False),
        ([None], False),
    ],
)
def test_what_the_application_asked_for_comes_first(tmp_path: Path, value: object, held: bool) -> None:
    db, _ = failed(tmp_path, 1, headers={"retry-after": value})
    assert waits(db) is held


@pytest.mark.parametrize("kind", ["StepStarted", "StepCompleted", "StepFailed", "FunctionFailed"])
def test_what_came_after_the_failure_ends_the_wait(tmp_path: Path, kind: str) -> None:
    db, made = failed(tmp_path, 9)
    db.history(made, kind, NOW - 35 * MINUTE, step_id="step", group_id="g")
    assert waits(db) is False


def test_another_branch_of_the_run_does_not_end_it(tmp_path: Path) -> None:
    db, made = failed(tmp_path, 9)
    db.history(made, "StepCompleted", NOW - 35 * MINUTE, step_id="other", group_id="h")
    assert waits(db) is True


def test_a_failure_whose_retry_was_never_written_waits_as_long(tmp_path: Path) -> None:
    """The server may lose the row of the retry, and goes on all the same."""
    db, _ = failed(tmp_path, 9)
    db.do("DELETE FROM history WHERE type = 'StepScheduled'")
    db.do("UPDATE history SET attempt = 8 WHERE type = 'StepErrored'")
    assert waits(db) is True


def test_a_step_that_is_scheduled_after_another_one_is_no_retry(tmp_path: Path) -> None:
    db, _ = failed(tmp_path, 0)
    assert waits(db) is False


def test_a_file_without_the_group_s_column_is_read_as_one_group(tmp_path: Path) -> None:
    db, _ = failed(tmp_path, 9)
    db.do("ALTER TABLE history DROP COLUMN group_id")
    assert waits(db) is True
