"""`clawbus inngest` as an operator types it: no configuration, no daemon, an envelope or tables, and the next command."""

import time
from pathlib import Path

import pytest

from daemon.cli.main import main
from tests.support.command_line import CommandLine
from tests.support.inngest_db import HEALTH, TRIAGE, Night, the_night
from tests.support.inngest_server import SIGNING_KEY, event_endpoint

SCOPE = ("--functions", f"{TRIAGE},{HEALTH}")


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return the_night(tmp_path / "main.db", wal=True, now=time.time_ns() // 1_000_000)


def test_the_night_as_it_is_typed(cli: CommandLine, night: Night) -> None:
    """Seen, explained, previewed, refused, narrowed, swept, and nothing left."""
    db = ("--db", str(night.db.path))
    seen = cli("inngest", "runs", *db, "--status", "stale")
    assert seen.result["stale"] == 11
    assert seen.result["total"] == 11
    assert seen.envelope["next_actions"][0]["command"].startswith("clawbus inngest run ")
    one = cli("inngest", "run", night.completed.key, *db).result
    assert (one["status"], one["source"], one["stale"]) == ("completed", "history", True)
    assert one["sources"]["list"]["status"] == "running"
    preview = cli("inngest", "sweep-stale", *db, *SCOPE)
    assert preview.result["refusal"]["code"] == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    refused = cli("inngest", "sweep-stale", *db, *SCOPE, "--apply")
    assert refused.code == 1
    assert refused.envelope["error"]["code"] == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert len(refused.envelope["result"]["candidates"]) == 10
    narrowed = cli("inngest", "sweep-stale", *db, *SCOPE, "--exclude", night.unregistered.key)
    command = narrowed.envelope["next_actions"][0]["command"].split()[1:]
    swept = cli(*command, "--reason", "restart window")
    assert swept.result["applied"] is True
    assert swept.result["verification"]["ok"] is True
    assert "committed" in swept.err
    assert cli(*command).result["candidates"] == []
    assert "inngest canary" in swept.envelope["next_actions"][1]["command"]
    undone = cli(*swept.envelope["next_actions"][2]["command"].split()[1:])
    assert undone.result["rows"] == swept.result["backup"]["rows"]
    again = cli(*undone.envelope["next_actions"][0]["command"].split()[1:], "--pretty")
    assert "rows of" in again.out
    (request,) = night.db.all("SELECT DISTINCT json_extract(cancel_request, '$.clawbus_reason') FROM history"
                              " WHERE type = 'FunctionCancelled' AND cancel_request IS NOT NULL")  # fmt: skip
    assert request == ("restart window",)


def test_people_get_tables(cli: CommandLine, night: Night) -> None:
    db = ("--db", str(night.db.path), "--pretty")
    runs = cli("inngest", "runs", *db)
    assert night.completed.key in runs.out
    assert "11 stale" in runs.out
    run = cli("inngest", "run", night.stale[-1].key, *db)
    assert "RUN_STALE_SDK_UNREACHABLE" in run.out
    preview = cli("inngest", "sweep-stale", *db, *SCOPE)
    assert "10 stale runs" in preview.out
    assert "--apply would refuse" in preview.out
    swept = cli("inngest", "sweep-stale", *db, *SCOPE, "--exclude", night.unregistered.key, "--apply")
    assert "9 runs have ended" in swept.out
    assert "canary: not done" in swept.out
    assert swept.code == 0


def test_text_from_the_database_cannot_drive_the_terminal(cli: CommandLine, night: Night) -> None:
    night.db.do("UPDATE functions SET name = ?", ("\x1b[2Jgone\x07",))
    for words in (("runs",), ("sweep-stale",), ("run", night.stale[0].key)):
        shown = cli("inngest", *words, "--db", str(night.db.path), "--pretty")
        assert "\x1b[2J" not in shown.out + shown.err
        assert "\x07" not in shown.out + shown.err


def test_a_canary_that_completes_and_one_that_does_not(cli: CommandLine, night: Night) -> None:
    done = {"status": 300, "history": "FunctionCompleted", "finish": "Completed", "span": "Completed"}
    words = ("inngest", "canary", "--db", str(night.db.path), "--event", "system/health.requested", "--url")
    with event_endpoint(night.db, **done) as (url, _):
        assert [one["status"] for one in cli(*words, url).result["runs"]] == ["completed"]
    failed = {"status": 400, "history": "FunctionFailed", "finish": "Failed", "span": "Failed"}
    with event_endpoint(night.db, **failed) as (url, _):
        answer = cli(*words, url)
    assert answer.envelope["error"]["code"] == "INNGEST_CANARY_FAILED"


def test_a_canary_with_a_signing_key_needs_no_database(cli: CommandLine, night: Night) -> None:
    done = {"status": 300, "history": "FunctionCompleted", "finish": "Completed", "span": "Completed"}
    with event_endpoint(night.db, **done) as (url, _):
        words = ("--db", "/nowhere/main.db", "--event", "x", "--url", url, "--signing-key", SIGNING_KEY)
        answer = cli("inngest", "canary", *words)
    assert answer.code == 0
    assert answer.result["asked"] == "server"
    assert SIGNING_KEY not in answer.out + answer.err


def test_the_queue_and_the_unregistered_runs_are_the_operator_s_to_decide(cli: CommandLine, night: Night) -> None:
    words = ("inngest", "sweep-stale", "--db", str(night.db.path), *SCOPE)
    refused = cli(*words, "--apply").envelope
    assert refused["error"]["code"] == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert refused["result"]["unregistered"] == [night.unregistered.key]
    assert cli(*words, "--skip-unregistered", "--end-unregistered").code == 2
    skipped = cli(*words, "--skip-unregistered", "--queue-lost")
    assert skipped.result["left_alone"]["unregistered"] == 1
    (step,) = [one["command"] for one in skipped.envelope["next_actions"]]
    assert "--queue-lost" in step
    assert "--skip-unregistered" in step
    alive = cli(*words, "--end-unregistered", "--apply", "--redis-uri", "redis://:hidden@127.0.0.1:1")
    assert alive.envelope["error"]["code"] == "SWEEP_QUEUE_ALIVE"
    assert "hidden" not in alive.out + alive.err
    swept = cli(*words, "--end-unregistered", "--apply", "--queue-lost")
    assert swept.result["verification"]["ok"]
    assert swept.result["written"]["statuses"] == 10
    assert cli("inngest", "runs", "--db", str(night.db.path), "--status", "stale", "--queue-lost").result["total"] == 1


def test_a_canary_without_its_database_is_told(cli: CommandLine, night: Night) -> None:
    with event_endpoint(night.db) as (url, _):
        answer = cli("inngest", "canary", "--db", "/nowhere/main.db", "--event", "x", "--url", url)
    assert answer.envelope["error"]["code"] == "INNGEST_DB_MISSING"


@pytest.mark.parametrize(
    "words",
    [
        ("sweep-stale", "--older-than", "soon"),
        ("sweep-stale", "--max", "0"),
        ("runs", "--status", "odd"),
        ("run",),
        ("canary", "--url", "http://x/e/k"),
    ],
)
def test_wrong_usage_is_usage(cli: CommandLine, night: Night, words: tuple[str, ...]) -> None:
    answer = cli("inngest", *words, "--db", str(night.db.path), "--json")
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")


def test_it_needs_no_configuration(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAWBUS_CONFIG", str(tmp_path / "missing.toml"))
    assert main(["inngest", "runs", "--db", str(night.db.path)]) == 0
    assert main(["inngest", "runs", "--db", str(night.db.path), "--exec", "false", "--json"]) == 1
    assert "INNGEST_EXEC_FAILED" in capfd.readouterr().out
