"""A server that is up: it is seen, an apply is refused, and a sweep all the same keeps its gates; and the canary."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.inngest.canary import Waiting, await_completion, event_report, runs_from_server, send_event
from daemon.inngest.database import read_database
from daemon.inngest.errors import InngestCanaryError
from daemon.inngest.holders import find_holders
from daemon.inngest.operations import operate
from daemon.inngest.plan import Scope
from daemon.inngest.reports import sweep_report
from daemon.inngest.sweep import Outcome, Request, sweep
from tests.support.inngest_db import HEALTH, MINUTE, NOW, TRIAGE, InngestDb, event_key
from tests.support.inngest_server import SIGNING_KEY, event_endpoint, open_elsewhere


@pytest.fixture(params=["wal", "delete"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> InngestDb:
    made = InngestDb(tmp_path / "main.db", wal=request.param == "wal")
    made.run(TRIAGE)
    made.run(HEALTH, age=MINUTE)
    return made


@pytest.fixture
def wal(tmp_path: Path) -> InngestDb:
    made = InngestDb(tmp_path / "main.db", wal=True)
    made.run(TRIAGE)
    made.run(HEALTH, age=MINUTE)
    return made


def apply(db: InngestDb, *, while_running: bool, progress: Callable[[str], None] | None = None) -> Outcome:
    scope = Scope(functions=(TRIAGE, HEALTH))
    return sweep(Request(db.path, scope, "ada", apply=True, while_running=while_running), NOW, progress)


def test_a_process_that_has_the_file_open_is_seen_and_this_one_is_not(db: InngestDb) -> None:
    assert find_holders(db.path) == ()
    with open_elsewhere(db.path) as pid:
        (holder,) = find_holders(db.path)
        assert holder.pid == pid
        assert "python" in holder.command
    assert find_holders(db.path) == ()


def test_a_wal_connection_is_seen_by_its_lock_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from another container, whose processes are not in this /proc."""
    db = InngestDb(tmp_path / "main.db", wal=True)
    monkeypatch.setattr("daemon.inngest.holders._open_files", lambda _: ())
    with open_elsewhere(db.path) as pid:
        assert [one.pid for one in find_holders(db.path)] == [pid]
    assert find_holders(db.path) == ()


def test_looking_for_holders_leaves_no_trace_and_takes_no_lock(db: InngestDb) -> None:
    before = db.path.read_bytes(), sorted(db.path.parent.iterdir())
    find_holders(db.path)
    assert (db.path.read_bytes(), sorted(db.path.parent.iterdir())) == before
    assert find_holders(db.path.parent / "nothing") == ()


def test_an_apply_is_refused_while_a_server_is_up_and_a_preview_warns(db: InngestDb) -> None:
    with open_elsewhere(db.path):
        before = db.dump()
        outcome = apply(db, while_running=False)
        assert outcome.error is not None
        assert outcome.error.code == "SWEEP_SERVER_RUNNING"
        assert outcome.backup is None
        assert db.dump() == before
        preview = sweep_report(sweep(Request(db.path, Scope(), "ada"), NOW))
    assert preview["server"]
    assert any("queue" in text for text in preview["warnings"])


def test_beside_a_server_in_delete_mode_nothing_is_swept_at_all(tmp_path: Path) -> None:
    """The server has no busy time-out: the sweep's own locks would lose its commits."""
    db = InngestDb(tmp_path / "main.db")
    db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    with open_elsewhere(db.path):
        before = db.dump()
        outcome = apply(db, while_running=True)
        assert outcome.error is not None
        assert outcome.error.code == "SWEEP_SERVER_WOULD_LOSE_WRITES"
        assert "journal_mode=WAL" in outcome.error.hint
        assert db.dump() == before
    assert list(tmp_path.glob("*.sqlite*")) == []
    assert apply(db, while_running=True).error is None


def test_a_sweep_beside_a_server_lets_it_write_other_things_and_minds_its_own_runs(wal: InngestDb) -> None:
    def other(step: str) -> None:
        if step == "backed_up":
            wal.do("INSERT INTO events VALUES ('e', 'e', 'x', '{}')")

    with open_elsewhere(wal.path):
        outcome = apply(wal, while_running=True, progress=other)
        assert outcome.error is None
        assert outcome.written is not None
        assert outcome.verification is not None
        assert outcome.verification.wrong == ()
    assert len(wal.span_list("Cancelled")) == 1


def test_a_run_that_moves_meanwhile_stops_a_sweep_beside_a_server(wal: InngestDb) -> None:
    def moves(step: str) -> None:
        if step == "backed_up":
            wal.do("UPDATE trace_runs SET status = 300, ended_at = 7 WHERE started_at < ?", (NOW - 30 * MINUTE,))
            wal.do("UPDATE spans SET status = 'Completed' WHERE status = 'Running'")

    with open_elsewhere(wal.path):
        outcome = apply(wal, while_running=True, progress=moves)
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_DATABASE_CHANGED"
    assert outcome.written is None
    assert wal.all("SELECT count(*) FROM function_finishes") == [(0,)]


def test_a_run_that_loses_its_registration_meanwhile_is_refused_for_that(wal: InngestDb) -> None:
    def loses(step: str) -> None:
        if step == "backed_up":
            wal.do("DELETE FROM function_runs")

    with open_elsewhere(wal.path):
        outcome = apply(wal, while_running=True, progress=loses)
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert outcome.written is None


class Moved:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def waiting(self) -> Waiting:
        return Waiting(lambda: self.now, self.sleep)


DONE: dict[str, Any] = {"status": 300, "history": "FunctionCompleted", "finish": "Completed", "span": "Completed"}


def canary(db: InngestDb, url: str, seconds: float = 3) -> dict[str, Any]:
    key = send_event(url, "system/health.requested")
    return await_completion(lambda: event_report(db.path, key, NOW), seconds, Moved().waiting)


def test_a_canary_sends_one_event_and_sees_its_run_complete(db: InngestDb) -> None:
    with event_endpoint(db, **DONE) as (url, came):
        result = canary(db, url)
    assert came == [{"name": "system/health.requested", "data": {"clawbus_canary": True}}]
    assert [one["status"] for one in result["runs"]] == ["completed"]


def test_with_its_signing_key_the_server_is_asked_for_the_runs(db: InngestDb) -> None:
    with event_endpoint(db, **DONE) as (url, _):
        key = send_event(url, "system/health.requested")
        result = await_completion(lambda: runs_from_server(url, key, SIGNING_KEY), 3, Moved().waiting)
        assert [one["status"] for one in result["runs"]] == ["completed"]
        with pytest.raises(InngestCanaryError, match="signing key") as caught:
            runs_from_server(url, key, "signkey-wrong")
    assert "signkey-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    "listing", [b"", b"[]", b'{"data": 1}', b'{"data": [{"status": "Completed"}]}', b'{"data": [7]}']
)
def test_a_server_that_does_not_tell_the_runs_is_told(db: InngestDb, listing: bytes) -> None:
    with event_endpoint(db, **DONE, listing=listing) as (url, _), pytest.raises(InngestCanaryError):
        runs_from_server(url, "0" * 26, SIGNING_KEY)


def test_a_run_of_an_unfinished_status_is_waited_for(db: InngestDb) -> None:
    with event_endpoint(db) as (url, _):
        key = send_event(url, "system/health.requested")
        with pytest.raises(InngestCanaryError, match="0 of 1 runs"):
            await_completion(lambda: runs_from_server(url, key, SIGNING_KEY), 3, Moved().waiting)


def test_a_run_that_the_list_alone_ties_to_its_event_is_found_too(db: InngestDb) -> None:
    with event_endpoint(db, **{**DONE, "registered": False}) as (url, _):
        assert len(canary(db, url)["runs"]) == 1


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({}, "0 of 1 runs"),
        (
            {**DONE, "status": 400, "history": "FunctionFailed", "finish": "Failed", "span": "Failed"},
            "did not complete",
        ),
        ({"status": None, "registered": False, "span": None}, "0 of 0 runs"),
        ({**DONE, "code": 401}, "status 401"),
        ({**DONE, "answer": b"<html>"}, "names no ids"),
        ({**DONE, "answer": b'{"ids": []}'}, "names no ids"),
        ({**DONE, "answer": b'{"ids": ["x"]}'}, "no ULID"),
    ],
)
def test_a_canary_that_does_not_come_back_is_told(db: InngestDb, run: dict[str, Any], said: str) -> None:
    with event_endpoint(db, **run) as (url, _), pytest.raises(InngestCanaryError, match=said):
        canary(db, url)


@pytest.mark.parametrize("url", ["main.db", "ftp://x/e", "http://127.0.0.1:9/e/key"])
def test_an_endpoint_that_is_none_is_told(url: str) -> None:
    with pytest.raises(InngestCanaryError):
        send_event(url, "x")


def test_the_operation_answers_for_an_event_from_where_the_file_is(db: InngestDb) -> None:
    made = db.run(HEALTH, age=0, **DONE)
    answer = operate("event", {"path": str(db.path), "event_id": event_key(made.key)}, print, lambda: NOW)
    assert [one["run_id"] for one in answer["result"]["runs"]] == [made.key]
    assert operate("event", {"path": str(db.path), "event_id": made.key}, print)["result"]["runs"] == []


def test_a_reader_of_this_process_does_not_hide_a_server(db: InngestDb) -> None:
    with closing(sqlite3.connect(db.path)) as own:
        own.execute("SELECT count(*) FROM history").fetchone()
        assert find_holders(db.path) == ()


def test_looking_at_a_file_whose_server_is_down_leaves_nothing_beside_it(wal: InngestDb) -> None:
    """A `-wal` or `-shm` of another user would keep the server from writing to its own file."""
    before = sorted(one.name for one in wal.path.parent.iterdir())
    assert read_database(wal.path, lambda reader, _: reader.one("SELECT count(*) AS n FROM function_runs")) is not None
    assert sorted(one.name for one in wal.path.parent.iterdir()) == before
