"""doctor, runs, run ID, top, watch and logs as commands: envelopes, exit codes, what people read, wrong usage."""

import json
import socket
from collections.abc import Generator
from pathlib import Path

import pytest
import typer

from daemon.app import main as app
from daemon.cli import journal, sweep
from daemon.cli.durations import since_ms, span_ms
from daemon.cli.global_options import Globals
from daemon.cli.invocation import Invocation
from daemon.config.models import Config
from daemon.core.session_key import SessionKey
from daemon.core.stale_plan import Scope
from daemon.maintenance.stale_drive import Report
from daemon.store.mailbox import Mailbox
from daemon.store.registry import Registry
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations
from tests.support.session_world import SessionWorld


@pytest.fixture
def folder(home: Path) -> SessionWorld:
    """A data folder with one session and one message, and no daemon."""
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    registry.activate(SessionKey("echo", "s"), 1)
    session = SessionWorld(home / "data" / "sessions" / "echo" / "s")
    session.accept("m1", content='{"text": "hello \\u001b[31m there"}')
    return session


@pytest.fixture
def hung(home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A daemon that takes calls and answers none, as one that was stopped does."""
    monkeypatch.setattr("daemon.cli.daemon_status.PATIENCE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "data" / "control.sock"))
        listening.listen(16)
        yield


@pytest.mark.usefixtures("hung")
def test_a_daemon_that_hangs_hides_nothing(cli: CommandLine, folder: SessionWorld) -> None:
    Mailbox(folder.root.parents[2] / "mailbox.db").prepare()
    result = cli("session", "list").result
    assert (result["source"], [one["session"] for one in result["sessions"]]) == ("files", ["s"])
    assert "does not answer" in cli("session", "list", "--pretty").out
    for command in (("session", "show", "echo", "s"), ("dead", "list"), ("mailbox",)):
        assert cli(*command).result["source"] == "files", command


def test_a_mailbox_file_that_is_lost_is_not_said_to_hold_nothing(cli: CommandLine, folder: SessionWorld) -> None:
    envelope = cli("mailbox", "cli").envelope
    assert "missing or empty" in envelope["error"]["message"]
    assert "the sessions still have each answer" in envelope["fix"]


@pytest.mark.usefixtures("hung")
def test_runs_tells_a_daemon_that_hangs_from_one_that_is_down(cli: CommandLine, folder: SessionWorld) -> None:
    assert cli("run", "list").result["daemon"] == "silent"
    assert "the daemon is silent" in cli("run", "list", "--pretty").out


def test_the_doctor_s_exit_code_fix_and_commands(cli: CommandLine, folder: SessionWorld) -> None:
    answer = cli("doctor")
    assert answer.code == 1
    envelope = answer.envelope
    assert envelope["error"]["code"] == "UNHEALTHY"
    assert envelope["fix"] == "Run: clawbus serve"
    assert (envelope["result"]["daemon"], envelope["result"]["healthy"]) == ("down", False)
    assert [one["code"] for one in envelope["result"]["diagnoses"]] == ["DAEMON_DOWN", "WORK_WAITING"]
    (finding,) = envelope["result"]["findings"]
    assert (finding["code"], [one["code"] for one in finding["consequences"]]) == ("DAEMON_DOWN", ["WORK_WAITING"])
    assert envelope["next_actions"] == [{"command": "clawbus serve", "description": "DAEMON_DOWN"}]


def test_the_doctor_for_people(cli: CommandLine, folder: SessionWorld) -> None:
    said = cli("doctor", "--pretty")
    assert said.code == 1
    assert "1. DAEMON_DOWN" in said.out
    assert "2. " not in said.out, "a consequence is no finding of its own"
    assert "Goes away with it: WORK_WAITING (echo/s)." in " ".join(said.out.split())
    assert said.out.count("clawbus serve") == 1
    assert "next: " not in said.err, "the repairs stand in the findings"
    assert "the daemon is down, read from the files" in " ".join(said.out.split()), "wrapped at words"


def test_a_command_of_somebody_else_is_a_fix_and_no_next_action(
    cli: CommandLine, folder: SessionWorld, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    degraded = [{"what": "storage", "why": "database or disk is full", "since": 1}]
    monkeypatch.setattr(operations, "live", lambda: {"degraded": degraded, "last_sweep": None, "clock": None})
    envelope = cli("doctor", "--session", "echo/s").envelope
    assert envelope["result"]["daemon"] == "up"
    assert envelope["fix"].startswith("Run: df -h ")
    assert all(step["command"].startswith("clawbus ") for step in envelope["next_actions"])


def test_a_folder_that_is_not_there_is_refused(cli: CommandLine, home: Path) -> None:
    (home / "data").rmdir()
    for command in (("doctor",), ("run", "list"), ("run", "show", "m1")):
        assert cli(*command).envelope["error"]["code"] == "DATA_FOLDER"


def test_a_folder_that_is_somebody_s_is_no_healthy_data_folder(cli: CommandLine, home: Path) -> None:
    (home / "data" / "thesis.txt").touch()
    for command in (("doctor",), ("run", "list"), ("run", "show", "m1")):
        envelope = cli(*command).envelope
        assert envelope["error"]["code"] == "DATA_FOLDER"
        assert "--data" in envelope["fix"]


def test_the_doctor_of_a_session_that_is_not_there(cli: CommandLine, folder: SessionWorld) -> None:
    assert cli("doctor", "-s", "echo/typo").envelope["error"]["code"] == "UNKNOWN_SESSION"


def test_every_command_that_is_named_is_for_the_place_that_was_asked(
    cli: CommandLine, folder: SessionWorld, home: Path
) -> None:
    place = f"--data {home / 'data'}"
    envelope = cli("doctor", "--data", str(home / "data")).envelope
    assert envelope["fix"] == f"Run: clawbus {place} serve"
    assert [one["command"] for one in envelope["result"]["diagnoses"]] == [f"clawbus {place} serve"] * 2
    assert [step["command"] for step in envelope["next_actions"]] == [f"clawbus {place} serve"]
    assert f"repair: clawbus {place} serve" in cli("doctor", "--data", str(home / "data"), "--pretty").out
    explained = cli("run", "show", "m1", "--data", str(home / "data")).result["diagnoses"]
    assert [one["command"] for one in explained] == [f"clawbus {place} serve"] * 2
    (home / "data" / "central.db").write_bytes(b"no database" * 100)
    broken = cli("doctor", "--data", str(home / "data")).envelope["fix"]
    assert broken.startswith("Run: mv /")
    assert "central.db.broken-2" in broken
    assert broken.endswith(f" && clawbus {place} serve")
    invocation = Invocation("doctor", Globals(data=Path("/d")))
    assert invocation.here("mv /lib/clawbus/x y && clawbus serve") == "mv /lib/clawbus/x y && clawbus --data /d serve"
    assert invocation.here("df -h /lib/clawbus") == "df -h /lib/clawbus"


def test_runs_in_both_forms(cli: CommandLine, folder: SessionWorld) -> None:
    result = cli("run", "list").result
    assert (result["source"], result["daemon"]) == ("files", "down")
    assert [(run["run_id"], run["status"], run["stale"]) for run in result["runs"]] == [("m1", "waiting", False)]
    assert cli("run", "list", "--status", "failed").result["runs"] == []
    text = cli("run", "list", "--pretty").out
    assert "waiting" in text
    assert "hello  there" in text
    assert "\x1b" not in text
    assert cli("run", "list", "--status", "lost").code == 2
    wrong = cli("run", "list", "--since", "yesterday")
    assert wrong.code == 2
    assert "an instant" in wrong.out + wrong.err
    assert cli("run", "list", "--session", "echo/t").envelope["error"]["code"] == "UNKNOWN_SESSION"


def test_one_run_in_both_forms(cli: CommandLine, folder: SessionWorld) -> None:
    result = cli("run", "show", "m1").result
    assert (result["status"], result["verdict"]["decided_by"]) == ("waiting", "list")
    assert [event["event"] for event in result["events"]] == ["accepted"]
    assert {one["code"] for one in result["diagnoses"]} == {"DAEMON_DOWN", "WORK_WAITING"}
    text = cli("run", "show", "m1", "--pretty").out
    assert "DAEMON_DOWN: No daemon runs on this data folder." in text
    assert "accepted" in text
    assert cli("run", "show", "m9").envelope["error"]["code"] == "UNKNOWN_MESSAGE"


def test_a_session_without_an_id_starts_nothing(
    cli: CommandLine, folder: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    def start(config: Config, *_: object) -> int:
        started.append(config.data_dir)
        return 0

    monkeypatch.setattr(app, "run", start)
    for words in ((), ("",), (" ",), ("show",), ("show", ""), ("show", "--session", "echo/s")):
        assert not cli("run", *words).envelope["ok"], words
    assert "clawbus serve" in cli("run").envelope["error"]["message"]
    assert started == []
    assert cli("serve").code == 0
    assert len(started) == 1


def test_top_is_one_look_in_a_pipe(cli: CommandLine, folder: SessionWorld) -> None:
    frame = cli("top", "--limit", "1").result
    assert (frame["source"], frame["total"]) == ("files", 1)
    assert frame["sessions"][0]["state"] == "waiting"
    assert frame["status"]["versions"]["schema"] >= 1
    text = cli("top", "--once", "--pretty").out
    assert "down (read from the files)" in text
    assert "echo/s" in text


def test_status_tells_what_the_folders_tell(cli: CommandLine, folder: SessionWorld, home: Path) -> None:
    folder.accept("m2")
    folder.change("UPDATE messages_in SET status = 'failed' WHERE id = 'm2'")
    (home / "data" / "central.db").write_bytes(b"no database" * 500)
    result = cli("status").result
    assert result["sessions"] == {"total": 1}
    assert result["queues"]["pending"] == 1
    assert "clawbus dead show m2" in result["attention"][0]["explanation"]
    assert result["registry_error"]
    assert "registry" in cli("status", "--pretty").out


def test_logs_by_message(cli: CommandLine, home: Path) -> None:
    path = home / "data" / "logs" / "clawbus.log"
    path.parent.mkdir()
    events = [{"event": "a", "message": "m1"}, {"event": "b", "in_reply_to": "m1"}, {"event": "c", "messages": ["m1"]}]
    other = [{"event": "d", "message": "m2"}, {"event": "e"}, {"event": "f", "text": "m1"}]
    path.write_text("".join(json.dumps({"level": "info", **event}) + "\n" for event in [*events, *other]))
    found = cli("logs", "--message", "m1").result["events"]
    assert [event["event"] for event in found] == ["a", "b", "c"]


def test_a_journal_that_is_not_there_is_a_refusal(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PROGRAM", "/no/such/journalctl")
    said = cli("logs", "--journal")
    assert said.envelope["error"]["code"] == "JOURNAL"
    assert "Leave --journal out" in said.envelope["fix"]


def test_a_journal_with_many_complaints_is_read_to_its_end(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "journalctl"
    entry = '{"MESSAGE": "{\\"event\\": \\"swept\\", \\"level\\": \\"info\\"}"}'
    program.write_text(f"#!/bin/sh\ntimeout 20 head -c 300000 /dev/zero >&2 || exit 3\ncat <<'EOF'\n{entry}\nEOF\n")
    program.chmod(0o755)
    monkeypatch.setattr(journal, "PROGRAM", str(program))
    assert list(journal.follow_entries("clawbus"))


def test_a_journal_that_refuses_says_why(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "journalctl"
    program.write_text("#!/bin/sh\necho 'No journal files were opened due to insufficient permissions.' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(journal, "PROGRAM", str(program))
    said = cli("logs", "--journal").envelope
    assert said["error"]["code"] == "JOURNAL"
    assert "insufficient permissions" in said["error"]["message"]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("90s", 90_000), ("15m", 900_000), ("30min", 1_800_000), ("2h", 7_200_000), ("3d", 259_200_000), ("5ms", 5)],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert span_ms(text) == milliseconds
    assert since_ms(text, 10**12) == 10**12 - milliseconds


def test_every_option_that_takes_a_duration_takes_the_same_ones(cli: CommandLine, folder: SessionWorld) -> None:
    for words, code in (("30min", 0), ("30 m", 0), ("30 weeks", 2)):
        for option in (("runs", "--since"), ("sweep", "stale", "--older-than")):
            assert cli(*option, words).code == code, (option, words)


def test_nothing_is_older_than_the_first_instant() -> None:
    assert since_ms("999999999d", 10**12) == 0


@pytest.mark.parametrize("text", ["", "h", "-5s", "5 weeks", "1e3s", "99999999999s"])
def test_what_is_no_duration_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        span_ms(text)


def test_an_instant_is_a_time_too() -> None:
    assert since_ms("2026-11-21T00:00:00Z", 0) == 1_795_219_200_000


def test_a_preview_without_a_registry_is_refused_and_makes_none(
    cli: CommandLine, folder: SessionWorld, home: Path
) -> None:
    assert cli("sweep", "stale").result["source"] == "files"
    (home / "data" / "central.db").unlink()
    envelope = cli("sweep", "stale").envelope
    assert envelope["error"]["code"] == "REGISTRY_GONE"
    assert "rebuilds central.db" in envelope["fix"]
    assert not (home / "data" / "central.db").exists()


def test_what_a_preview_offers_is_what_it_showed() -> None:
    runs = [{"agent": "echo", "session": "s", "run": "m1@I1"}]
    (usual,) = sweep._next(Scope(session=("echo", "s")), Report(applied=False, source="files", runs=runs))
    assert usual.command == "clawbus sweep stale --session echo/s --apply"
    (other,) = sweep._next(Scope(older_than_ms=600_000, max_runs=3), Report(applied=False, source="files", runs=runs))
    assert other.command == "clawbus sweep stale --session echo/s --older-than 600s --max 3 --apply"
