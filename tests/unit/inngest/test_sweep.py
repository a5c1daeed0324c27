"""The sweep end to end on a whole main.db: seven and three stale runs by function, one of them completed, one unregistered."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.inngest.plan import Scope
from daemon.inngest.reports import sweep_report
from daemon.inngest.sweep import Outcome, Request, sweep
from daemon.inngest.values import instant, run_key, ulid_ms
from tests.support.inngest_db import HEALTH, HOUR, MINUTE, NOW, TRIAGE, InngestDb, Night, event_key, go_time

SCOPE = Scope(functions=(TRIAGE, HEALTH))


def ask(db: InngestDb, scope: Scope = SCOPE, *, apply: bool = False, **more: Any) -> Outcome:
    return sweep(Request(db.path, scope, "ada", "the night of the restart", apply=apply, **more), NOW)


def without(night: Night) -> Scope:
    return replace(SCOPE, exclude=(night.unregistered.key,))


def done(outcome: Outcome) -> Outcome:
    assert outcome.error is None, outcome.error
    assert outcome.written is not None
    return outcome


def test_the_preview_names_all_ten_by_function_and_changes_nothing(night: Night) -> None:
    before = night.db.dump(), sorted(night.db.path.parent.glob("*.sqlite*"))
    report = sweep_report(ask(night.db))
    assert {name: one["total"] for name, one in report["by_function"].items()} == {TRIAGE: 7, HEALTH: 3}
    assert {one["run_id"] for one in report["candidates"]} == {one.key for one in night.stale}
    assert report["left_alone"] == {"young": 1, "out_of_scope": 1}
    assert report["refusal"]["code"] == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert (report["applied"], report["backup"]) == (False, None)
    assert (night.db.dump(), sorted(night.db.path.parent.glob("*.sqlite*"))) == before


def test_apply_refuses_until_the_inconsistent_run_is_out_of_scope(night: Night) -> None:
    before = night.db.dump()
    outcome = ask(night.db, apply=True)
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert night.unregistered.key in str(outcome.error)
    assert night.db.dump() == before
    assert list(night.db.path.parent.glob("*.sqlite*")) == []


def test_apply_backs_up_sweeps_and_verifies_and_a_second_apply_finds_nothing(night: Night) -> None:
    before = night.db.dump()
    outcome = done(ask(night.db, without(night), apply=True))
    swept = {one.key for one in night.stale} - {night.unregistered.key}
    assert outcome.backup is not None
    with closing(sqlite3.connect(outcome.backup.path)) as copy:
        assert list(copy.iterdump()) == before
    assert outcome.verification is not None
    assert {key for key, _ in outcome.verification.sampled} == swept
    assert outcome.verification.wrong == ()
    assert outcome.verification.still_listed == {"young": 1, "excluded": 1, "out_of_scope": 1}
    assert sweep_report(outcome)["canary"]["done"] is False

    after = night.db.dump()
    again = ask(night.db, without(night), apply=True)
    assert (again.error, again.written, again.plan.candidates) == (None, None, ())
    assert night.db.dump() == after
    assert len(list(night.db.path.parent.glob("*.sqlite"))) == 1


def test_every_swept_run_has_one_terminal_history_one_finish_and_the_status_that_history_tells(night: Night) -> None:
    done(ask(night.db, without(night), apply=True))
    failed = night.stale[-1]
    for run in night.stale:
        if run is night.unregistered:
            continue
        name, code = {night.completed.key: ("Completed", 300), failed.key: ("Failed", 400)}.get(
            run.key, ("Cancelled", 500)
        )
        types = terminal(night.db, run.key)
        assert [row["type"] for row in types] == [f"Function{name}"]
        assert [row["status"] for row in rows(night.db, "function_finishes", run.key)] == [name]
        (listed,) = rows(night.db, "trace_runs", run.key)
        assert (listed["status"], listed["ended_at"] > 0) == (code, True)
        assert run.key in night.db.span_list(name), "a server that lists from spans sees it ended"


def test_a_completed_run_ends_when_its_history_says(night: Night) -> None:
    done(ask(night.db, without(night), apply=True))
    (listed,) = rows(night.db, "trace_runs", night.completed.key)
    assert listed["ended_at"] == night.completed.started_at + 1000
    (other,) = rows(night.db, "trace_runs", night.stale[6].key)
    assert other["ended_at"] == NOW, "what the server wrote while it was running is no end"


def test_a_written_history_row_is_what_a_server_could_have_written(night: Night) -> None:
    run = night.stale[0]
    done(ask(night.db, without(night), apply=True))
    (row,) = terminal(night.db, run.key)
    key = run_key(row["id"])
    assert isinstance(row["id"], bytes)
    assert key is not None
    assert ulid_ms(key) == NOW, "ordered by time"
    assert row["run_id"] == rows(night.db, "function_runs", run.key)[0]["run_id"]
    assert run_key(row["event_id"]) == event_key(run.key)
    assert row["batch_id"] == bytes(16)
    assert row["created_at"] == go_time(NOW)
    assert row["attempt"] == 0
    assert json.loads(row["cancel_request"]) == {
        "EventID": None, "Expression": None, "UserID": None, "CancellationID": None, "ForceLifecycleHook": False,
        "clawbus_swept_by": "ada", "clawbus_reason": "the night of the restart",
    }  # fmt: skip
    (finish,) = rows(night.db, "function_finishes", run.key)
    assert (finish["output"], finish["completed_step_count"], finish["created_at"]) == ("{}", 0, go_time(NOW))


def test_runs_out_of_scope_young_ones_and_other_tables_are_untouched(night: Night) -> None:
    kept = {key: night.db.all(f"SELECT * FROM {key} ORDER BY rowid") for key in ("functions", "function_runs", "apps")}
    alive = evidence(night.db, night.alive.key), evidence(night.db, night.unregistered.key)
    done(ask(night.db, without(night), apply=True))
    assert kept == {key: night.db.all(f"SELECT * FROM {key} ORDER BY rowid") for key in kept}
    assert alive == (evidence(night.db, night.alive.key), evidence(night.db, night.unregistered.key))


def test_the_journal_mode_stays_what_it_was(night: Night) -> None:
    mode = night.db.one("PRAGMA journal_mode")
    done(ask(night.db, without(night), apply=True))
    assert night.db.one("PRAGMA journal_mode") == mode


def test_a_server_without_spans_and_without_newer_columns_is_swept_too(tmp_path: Path) -> None:
    db = InngestDb(tmp_path / "main.db", old=True)
    run = db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    outcome = done(ask(db, apply=True))
    assert outcome.written is not None
    assert (outcome.written.history, outcome.written.spans, outcome.written.statuses) == (1, 0, 1)
    assert [row["type"] for row in terminal(db, run.key)] == ["FunctionCancelled"]


def test_raw_status_codes_stay_raw(tmp_path: Path) -> None:
    db = InngestDb(tmp_path / "main.db")
    first, second = db.run(TRIAGE, status=0), db.run(HEALTH, status=0, history="FunctionCompleted")
    done(ask(db, apply=True))
    assert rows(db, "trace_runs", first.key)[0]["status"] == 3
    assert rows(db, "trace_runs", second.key)[0]["status"] == 1


def test_ids_as_text_are_found_and_written_in_the_form_that_the_run_has(tmp_path: Path) -> None:
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    for table in ("trace_runs", "function_runs", "history"):
        db.do(f"UPDATE {table} SET run_id = ? WHERE function_id = ?", (run.key, run.function_id))
    done(ask(db, apply=True))
    assert db.all("SELECT typeof(run_id), run_id FROM history WHERE type = 'FunctionCancelled'") == [("text", run.key)]
    assert db.all("SELECT typeof(run_id), run_id FROM function_finishes") == [("text", run.key)]


def test_a_run_that_only_the_spans_list_is_ended_there(tmp_path: Path) -> None:
    """What a sweep of trace_runs alone leaves behind on a server since 1.16.3."""
    db = InngestDb(tmp_path / "main.db")
    ghost = db.run(
        TRIAGE, status=500, ended_at=NOW - HOUR, history="FunctionCancelled", finish="Cancelled", span="Running"
    )
    unlisted = db.run(HEALTH, status=None)
    assert db.span_list() == sorted((ghost.key, unlisted.key))
    written = done(ask(db, apply=True)).written
    assert written is not None
    assert (written.spans, written.statuses, written.history) == (2, 0, 1)
    assert db.span_list() == []


def test_an_extension_repeats_whose_span_it_is_and_can_be_written_again_for_a_run_that_came_back(
    tmp_path: Path,
) -> None:
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    done(ask(db, apply=True))
    root, added = (db.all("SELECT trace_id, parent_span_id, dynamic_span_id, account_id, app_id, function_id, env_id, run_id"
                          " FROM spans WHERE run_id = ? AND name = ? ORDER BY end_time DESC", (run.key, name))[0]
                   for name in ("executor.run", "EXTEND"))  # fmt: skip
    assert root == added
    # The queue revived it: a later span says Running, and the list too.
    db.span(run, "EXTEND", root[0], root[2], "Running", NOW + MINUTE)
    db.do("UPDATE trace_runs SET status = 200 WHERE started_at = ?", (run.started_at,))
    later = NOW + 3 * HOUR
    outcome = sweep(Request(db.path, Scope(functions=(TRIAGE,)), "ada", apply=True), later)
    assert outcome.error is None
    assert outcome.written is not None
    assert (outcome.written.spans, outcome.written.statuses, outcome.written.history) == (1, 1, 0)
    assert run.key in db.span_list("Cancelled")


@pytest.mark.parametrize("mono", ["", " m=+9.9"])
@pytest.mark.parametrize("zone", [" +0000 UTC", " +0200 CEST", "Z", ""])
def test_the_extension_s_time_sorts_last_as_text(tmp_path: Path, zone: str, mono: str) -> None:
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE, span="Running")
    db.run(HEALTH, age=MINUTE)
    stamp = go_time(run.started_at + 999).removesuffix(" +0000 UTC")
    stamp = (stamp.replace(" ", "T") if zone == "Z" else stamp) + zone + mono
    db.do("UPDATE spans SET end_time = ?, start_time = ? WHERE run_id = ?", (stamp, stamp, run.key))
    done(ask(db, apply=True))
    assert run.key in db.span_list("Cancelled")
    (added,) = db.all("SELECT end_time FROM spans WHERE status = 'Cancelled'")
    assert added[0].endswith(zone)
    assert instant(added[0]) is not None


def test_tables_without_keys_get_no_second_row_even_if_asked_twice(tmp_path: Path) -> None:
    """Two terminal rows that a server itself wrote stay; none is added."""
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE, history="FunctionCompleted", finish="Completed")
    db.run(HEALTH, age=MINUTE)
    db.history(run, "FunctionCompleted", run.started_at + 1002)
    done(ask(db, apply=True))
    assert len(terminal(db, run.key)) == 2
    assert len(rows(db, "function_finishes", run.key)) == 1


@pytest.mark.parametrize(
    "waits",
    [
        {"sleep": json.dumps({"until": "2026-03-05T10:00:00Z"})},
        {"wait_for_event": json.dumps({"event_name": "x", "timeout": "2026-03-05T10:00:00Z"})},
    ],
)
def test_a_run_that_sleeps_or_waits_on_purpose_is_left_alone_until_its_time(
    tmp_path: Path, waits: dict[str, str]
) -> None:
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    db.history(run, "StepSleeping", run.started_at + 10, step_id="s-1", **waits)
    assert sweep_report(ask(db))["left_alone"] == {"waiting": 1, "young": 1}
    db.history(run, "StepCompleted", run.started_at + 20, step_id="s-1")
    assert ask(db).plan.keys == (run.key,), "the wait is over"


def test_a_wait_that_only_the_spans_tell_holds_as_well(tmp_path: Path) -> None:
    db = InngestDb(tmp_path / "main.db")
    waits, sleeps, over = db.run(TRIAGE), db.run(TRIAGE), db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    at = waits.started_at + 10
    db.span(waits, "executor.step", "t1", "w1", "Waiting", at, **{"_inngest.step.wait.expiry": str(NOW + HOUR)})
    db.span(sleeps, "executor.step", "t2", "w2", "Sleeping", at, **{"_inngest.step.sleep.duration": 9 * HOUR})
    db.span(over, "executor.step", "t3", "w3", "Sleeping", at, **{"_inngest.step.sleep.duration": 9 * HOUR})
    db.span(over, "EXTEND", "t3", "w3", "Completed", at + 1)
    assert ask(db).plan.keys == (over.key,)


def test_a_candidate_that_the_queue_s_snapshot_names_is_told(night: Night) -> None:
    """Half of its id in one chunk, half in the next; an older snapshot does not count."""
    key = night.stale[0].key
    night.db.do("INSERT INTO queue_snapshot_chunks VALUES ('01A', 0, ?)", (night.stale[1].key.encode(),))
    night.db.do("INSERT INTO queue_snapshot_chunks VALUES ('01B', 0, ?)", (b"x" * 500 + key[:10].encode(),))
    night.db.do("INSERT INTO queue_snapshot_chunks VALUES ('01B', 1, ?)", (key[10:].encode() + b"y" * 500,))
    report = sweep_report(ask(night.db))
    assert [one["run_id"] for one in report["candidates"] if one["in_queue_snapshot"]] == [key]
    assert any("snapshot" in text for text in report["warnings"])


def test_more_runs_than_one_question_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.inngest.reading.CHUNK", 2)
    db = InngestDb(tmp_path / "main.db")
    runs = {db.run(TRIAGE).key for _ in range(5)}
    db.run(HEALTH, age=MINUTE)
    outcome = done(ask(db, replace(SCOPE, sample=2), apply=True))
    assert set(outcome.plan.keys) == runs
    assert outcome.verification is not None
    assert len(outcome.verification.sampled) == 2
    assert db.span_list("Cancelled") == sorted(runs)


def test_an_absent_batch_is_sixteen_zero_bytes_whatever_the_run_s_row_says(tmp_path: Path) -> None:
    """The server cannot read NULL there."""
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)
    db.do("UPDATE function_runs SET batch_id = NULL")
    done(ask(db, apply=True))
    assert terminal(db, run.key)[0]["batch_id"] == bytes(16)


def test_a_debug_run_is_in_no_list_and_is_left_alone(tmp_path: Path) -> None:
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE, status=500, ended_at=NOW - HOUR)
    db.run(HEALTH, age=MINUTE)
    assert ask(db).plan.keys == (run.key,)
    db.do("UPDATE spans SET debug_run_id = 'd' WHERE run_id = ?", (run.key,))
    assert run.key not in db.span_list()
    assert ask(db).plan.keys == ()


def test_an_end_within_the_second_of_the_last_span_still_sorts_last(tmp_path: Path) -> None:
    """In RFC 3339, `44.501Z` sorts before `44.5Z`."""
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE, history="FunctionCompleted")
    db.run(HEALTH, age=MINUTE)
    stamp = go_time(run.started_at + 1500).removesuffix(" +0000 UTC").replace(" ", "T") + "Z"
    assert stamp.endswith(".5Z")
    db.do("UPDATE spans SET end_time = ? WHERE run_id = ?", (stamp, run.key))
    done(ask(db, apply=True))
    assert db.span_list("Completed") == [run.key]


def test_of_a_function_s_several_rows_the_live_one_names_it(tmp_path: Path) -> None:
    """Files older than the functions' key may hold one id twice."""
    db = InngestDb(tmp_path / "main.db")
    run = db.run(TRIAGE)
    columns = (
        "id UUID, app_id UUID, name VARCHAR, slug VARCHAR, config VARCHAR, created_at TIMESTAMP, archived_at TIMESTAMP"
    )
    db.do(f"CREATE TABLE loose ({columns})")
    db.do("INSERT INTO loose SELECT * FROM functions")
    db.do("INSERT INTO loose SELECT id, app_id, 'old/name', 'old', config, created_at, '2026-01-01' FROM functions")
    db.do("DROP TABLE functions")
    db.do("ALTER TABLE loose RENAME TO functions")
    outcome = ask(db, Scope())
    assert [one.run.function.name for one in outcome.plan.candidates] == [TRIAGE]
    assert outcome.plan.keys == (run.key,)


def rows(db: InngestDb, table: str, key: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(db.path)) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")]
    return [row for row in found if run_key(row["run_id"]) == key]


def terminal(db: InngestDb, key: str) -> list[dict[str, Any]]:
    return [
        row
        for row in rows(db, "history", key)
        if row["type"] in ("FunctionCompleted", "FunctionFailed", "FunctionCancelled")
    ]


def evidence(db: InngestDb, key: str) -> list[list[dict[str, Any]]]:
    return [rows(db, table, key) for table in ("trace_runs", "function_runs", "function_finishes", "history", "spans")]
