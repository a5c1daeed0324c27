"""Files of a real server, judged and swept: `tests/support/inngest_files/README.md` tells what happened to each."""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.inngest.canary import event_report
from daemon.inngest.operations import operate
from daemon.inngest.plan import Scope, Unregistered
from daemon.inngest.reports import sweep_report
from daemon.inngest.sweep import Outcome, Request, sweep
from tests.support.inngest_db import HOUR, MINUTE
from tests.support.inngest_real import MADE, unpack

LATER = MADE + 90 * MINUTE
CHECKS = ("check/o11y-triage", "check/system-health", "check/quick", "check/queued", "check/sleeper", "check/waiter",
          "check/invoker", "check/noretry", "check/retrying", "check/batch", "check/parallel", "check/debounce")  # fmt: skip


def ask(path: Path, scope: Scope | None = None, *, now: int = LATER, **more: Any) -> Outcome:
    return sweep(Request(path, scope or Scope(functions=CHECKS), "ada", **more), now)


def lost(now: int = LATER) -> Scope:
    return Scope(functions=CHECKS, lost_before_ms=now)


def shown(path: Path, now: int = LATER, **scope: Any) -> dict[str, Any]:
    asked = {"functions": (), "older_than_ms": 30 * MINUTE, "max_runs": 200, "sample": 25, "exclude": (), **scope}
    answer = operate("runs", {"path": str(path), "scope": asked, "status": None, "limit": 500}, print, lambda: now)
    assert answer["error"] is None
    result: dict[str, Any] = answer["result"]
    return result


def test_silence_is_no_more_than_silence_whatever_ended_at_says(tmp_path: Path) -> None:
    """The server writes ended_at on every row that it lists as running."""
    outcome = ask(unpack("A2-before-sweep", tmp_path))
    found = Counter((one.verdict.reasons, str(one.verdict.confidence)) for one in outcome.plan.candidates)
    assert found == {(("silent",), "medium"): 10, (("list_and_detail_disagree", "lists_disagree"), "certain"): 1}


def test_with_the_queue_lost_every_ghost_is_a_candidate_the_waiting_and_the_queued_too(tmp_path: Path) -> None:
    path = unpack("A2-before-sweep", tmp_path)
    before = ask(path)
    assert sweep_report(before)["left_alone"] == {"waiting": 3}
    assert before.scheduled == 2
    assert any("--queue-lost" in text for text in sweep_report(before)["warnings"])
    outcome = ask(path, lost(), apply=True)
    assert outcome.error is None
    assert outcome.verification is not None
    assert (len(outcome.plan.candidates), outcome.verification.wrong) == (16, ())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM trace_runs WHERE status < 300").fetchone() == (0,)
    assert shown(path, queue_lost=True)["stale"] == 0


def test_an_end_is_when_it_was_seen_and_not_when_the_run_began(tmp_path: Path) -> None:
    path = unpack("A2-before-sweep", tmp_path)
    outcome = ask(path, apply=True)
    with closing(sqlite3.connect(path)) as db:
        ends = [end for (end,) in db.execute("SELECT ended_at FROM trace_runs WHERE status = 500 ORDER BY ended_at")]
    assert len(ends) == len(outcome.plan.candidates) == 11
    assert ends[0] == MADE + 72_736, "the one that the server itself cancelled, when its history says"
    assert set(ends[1:]) == {LATER}


@pytest.mark.parametrize(("after", "held"), [(40, True), (61, False)])
def test_a_run_that_asked_to_be_tried_again_later_is_waiting_until_then(tmp_path: Path, after: int, held: bool) -> None:
    """Its application answered with Retry-After: one hour."""
    path = unpack("A2-before-sweep", tmp_path)
    outcome = ask(path, Scope(functions=("check/retrying",)), now=MADE + after * MINUTE)
    assert sweep_report(outcome)["left_alone"].get("waiting", 0) == int(held)
    assert len(outcome.plan.candidates) == int(not held)


def test_a_queue_that_is_in_redis_stops_an_apply_before_it_ends_live_runs(tmp_path: Path) -> None:
    path = unpack("C1-redis-queue-before-sweep", tmp_path)
    before = path.read_bytes()
    outcome = ask(path, apply=True, redis_uri="redis://127.0.0.1:1")
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_QUEUE_ALIVE"
    assert path.read_bytes() == before
    assert ask(path).error is None, "a preview looks"
    assert any("--redis-uri" in text for text in sweep_report(ask(path))["warnings"])


def test_a_run_that_was_revived_after_a_sweep_is_what_its_server_says(tmp_path: Path) -> None:
    report = shown(unpack("C3-revived", tmp_path))
    swept_and_revived = [one for one in report["runs"] if one["sources_differ"]]
    assert len(swept_and_revived) >= 3
    assert {one["status"] for one in swept_and_revived} == {"completed"}
    assert not any(one["stale"] for one in swept_and_revived)


def test_a_run_that_goes_on_after_a_sweep_is_not_called_ended_by_that_sweep(tmp_path: Path) -> None:
    path = unpack("A2-before-sweep", tmp_path)
    outcome = ask(path, apply=True)
    key = next(one.run for one in outcome.plan.candidates if one.run.function.label == "check/system-health").key
    then = LATER + HOUR
    with closing(sqlite3.connect(path)) as db, db:
        form = next(
            one.run.registered.run_id for one in outcome.plan.candidates if one.run.key == key and one.run.registered
        )
        db.execute("UPDATE trace_runs SET status = 200 WHERE run_id = ?", (form,))
        db.execute(
            "INSERT INTO history (id, created_at, run_started_at, function_id, function_version, run_id, event_id,"
            " idempotency_key, type, attempt) SELECT randomblob(16), '2026-11-28 01:42:00 +0000 UTC', run_started_at,"
            " function_id, 1, run_id, event_id, 'key', 'StepStarted', 0 FROM history WHERE run_id = ? LIMIT 1",
            (form,),
        )
    (found,) = [one for one in shown(path, then)["runs"] if one["run_id"] == key]
    assert (found["status"], found["source"], found["stale"]) == ("running", "list", False)
    again = shown(path, then + HOUR)
    (found,) = [one for one in again["runs"] if one["run_id"] == key]
    assert found["reasons"] == ["silent"], "silent once more, it is stale as any other"


def test_what_locks_of_others_did_to_a_file_is_judged_source_by_source(tmp_path: Path) -> None:
    outcome = ask(unpack("D1-ghosts-made-by-foreign-locks", tmp_path))
    report = sweep_report(outcome)
    assert len(report["candidates"]) == 21
    assert Counter((one["source"], one["becomes"]) for one in report["candidates"]) == {
        ("trace", "completed"): 10, ("history", "completed"): 5, ("list", "completed"): 1, ("list", "cancelled"): 5,
    }  # fmt: skip
    assert report["refusal"]["code"] == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert len(report["unregistered"]) == 10
    assert all(f"--exclude {key}" in report["refusal"]["fix"] for key in report["unregistered"]), "all, not five"
    assert "--skip-unregistered" in report["refusal"]["fix"]


def test_candidates_without_a_function_run_are_skipped_or_ended_in_the_lists_alone(tmp_path: Path) -> None:
    path = unpack("D1-ghosts-made-by-foreign-locks", tmp_path)
    scope = Scope(functions=CHECKS, unregistered=Unregistered.SKIP)
    skipped = ask(path, scope, apply=True)
    assert skipped.error is None
    assert skipped.verification is not None
    assert len(skipped.plan.candidates) == 11
    assert skipped.verification.still_listed == {"unregistered": 10}
    ended = ask(path, replace(scope, unregistered=Unregistered.END), apply=True)
    assert ended.error is None
    assert ended.written is not None
    assert (ended.written.history, ended.written.finishes) == (0, 0)
    assert len(ended.plan.candidates) == 10
    assert shown(path)["listed_as_running"] == 0


def test_a_worker_in_connect_mode_that_died_is_evidence(tmp_path: Path) -> None:
    outcome = ask(unpack("K-connect-mode", tmp_path), now=LATER)
    (candidate,) = outcome.plan.candidates
    assert candidate.verdict.reasons == ("worker_lost", "silent")
    assert str(candidate.verdict.confidence) == "high"


@pytest.mark.parametrize(
    "name", ["A2-before-sweep", "C1-redis-queue-before-sweep", "D1-ghosts-made-by-foreign-locks", "K-connect-mode"]
)
def test_looking_leaves_the_file_as_it_is(tmp_path: Path, name: str) -> None:
    path = unpack(name, tmp_path)
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())
    shown(path)
    ask(path)
    event_report(path, "01M8FMFBAS5AE9JCF5ZN7DD22W", LATER)
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before
