"""The operator's repairs on a real daemon, alive and down: what each changes, tells and refuses."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import Make
from tests.support.ageing import age_session, change
from tests.support.agents import ECHO, command_agent, obedient
from tests.support.daemon import RealDaemon, eventually

pytestmark = pytest.mark.faults


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(ECHO + obedient())
    made.start()
    return made


def hang(daemon: RealDaemon, session: str = "s") -> tuple[str, Path]:
    """A message in the middle of its turn; its id and its mark."""
    mark = daemon.root / f"mark-{session}"
    message_id = daemon.post(f"hang {mark}", agent="prog", session=session)
    eventually("in mid-turn", mark.exists)
    claimed = "SELECT 1 FROM attempts WHERE outcome IS NULL"
    eventually("noted", lambda: daemon.rows("prog", session, claimed))
    return message_id, mark


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ghost(daemon: RealDaemon, session: str = "s") -> str:
    """The daemon and a container that works are killed, an hour ago."""
    message_id, mark = hang(daemon, session)
    leader = daemon.leader("prog", session)
    daemon.kill()
    pids = [leader, *(int(pid) for pid in mark.read_text(encoding="utf-8").split())]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
    eventually("gone", lambda: not any(alive(pid) for pid in pids))
    age_session(daemon.folder("prog", session))
    return message_id


def history(daemon: RealDaemon, session: str, message_id: str) -> list[str]:
    sql = f"SELECT event FROM message_history WHERE message_id = '{message_id}' ORDER BY id"
    return [row["event"] for row in daemon.rows("prog", session, sql)]


def test_a_ghost_run_is_ended_with_the_daemon_down_and_its_sender_told_when_it_is_up(daemon: RealDaemon) -> None:
    message_id = ghost(daemon)
    preview = daemon.cli("sweep", "stale").result
    assert [(one["truth"], one["becomes"]) for one in preview["runs"]] == [("orphaned", "cancelled")]
    assert preview["source"] == "files"
    assert daemon.cli("sweep", "stale", "--apply").error == "STALE_SCOPE_INVALID"
    assert daemon.cli("sweep", "stale", "--match", "*", "--apply").error == "STALE_SCOPE_TOO_BROAD"
    assert daemon.cli("sweep", "stale", "--agent", "nobody", "--apply").error == "STALE_SCOPE_EMPTY"
    assert daemon.cli("sweep", "stale", "--session", "prog/s", "--older-than", "1m").error == "STALE_TOO_YOUNG"
    swept = daemon.cli("sweep", "stale", "--session", "prog/s", "--apply", "--reason", "reboot").result
    assert [step["step"] for step in swept["steps"]] == [
        "preview", "gates", "backup", "sweep", "verify", "running", "canary",
    ]  # fmt: skip
    assert swept["still_running"] == []
    assert history(daemon, "s", message_id)[-2:] == ["swept", "cancelled"]
    assert daemon.cli("sweep", "stale", "--session", "prog/s", "--apply").result["swept"] == []
    daemon.start()
    told = daemon.answer(message_id, agent="prog", session="s")
    assert told["error"]["code"] == "CANCELLED"
    assert daemon.message("prog", "s", message_id)["status"] == "cancelled"


def test_a_restore_undoes_a_sweep_and_the_message_is_worked_on(daemon: RealDaemon) -> None:
    message_id = ghost(daemon)
    swept = daemon.cli("sweep", "stale", "--session", "prog/s", "--apply").result["swept"]
    backup = swept[0]["backup"]["path"]
    assert daemon.cli("sweep", "stale", "--restore", "/tmp/nothing").error == "RESTORE_REFUSED"
    done = daemon.cli("sweep", "stale", "--restore", backup, "--reason", "too early").result
    assert done["restored"] == 1
    assert history(daemon, "s", message_id)[-1] == "sweep_undone"
    (daemon.root / "mark-s.go").touch()
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}


def test_the_running_daemon_sweeps_a_quarantined_session_and_a_canary_comes_through(daemon: RealDaemon) -> None:
    message_id, mark = hang(daemon)
    said = daemon.cli("session", "quarantine", "prog", "s", "--reason", "looks wrong").result
    assert (said["quarantined"], said["noted"]) == (True, True)
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    young = daemon.cli("sweep", "stale", "--session", "prog/s", "--apply").result
    assert [one["gate"] for one in young["left"]] == ["young"]
    age_session(daemon.folder("prog", "s"))
    swept = daemon.cli("sweep", "stale", "--session", "prog/s", "--apply", "--canary-wait", "20").result
    assert swept["source"] == "daemon"
    assert swept["canary"]["answered"] is True
    assert [one["run"].partition("@")[0] for one in swept["swept"][0]["swept"]] == [message_id]
    assert history(daemon, "s", message_id).count("session_quarantined") == 1
    mark.with_name("mark-s.go").touch()
    assert daemon.cli("session", "release", "prog", "s", "--reason", "seen").result["released"] is True
    assert daemon.answer(message_id, agent="prog", session="s")["error"]["code"] == "CANCELLED"
    assert daemon.ask("say on", agent="prog", session="s") == {"text": "on"}


def test_the_running_daemon_undoes_a_sweep_and_the_message_is_worked_on(daemon: RealDaemon) -> None:
    message_id, mark = hang(daemon)
    daemon.cli("session", "quarantine", "prog", "s")
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    age_session(daemon.folder("prog", "s"))
    swept = daemon.cli("sweep", "stale", "--session", "prog/s", "--apply", "--canary-wait", "0").result
    assert swept["canary"] is None
    done = daemon.cli(
        "sweep", "stale", "--restore", swept["swept"][0]["backup"]["path"], "--reason", "too early"
    ).result
    assert done["restored"] == 1
    mark.with_name("mark-s.go").touch()
    daemon.cli("session", "release", "prog", "s")
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}


def test_a_canary_that_does_not_come_through_is_told_and_the_sweep_stands(make_daemon: Make) -> None:
    program = "read -r turn; touch begun; while [ -e hold ]; do sleep 0.05; done; exit 3"
    daemon = make_daemon(command_agent("prog", ("/bin/sh", "-c", program)))
    folder = daemon.data / "agents" / "prog"
    daemon.start()
    (folder / "hold").touch()
    message_id = daemon.post("work", agent="prog", session="s")
    eventually("in mid-turn", (folder / "begun").exists)
    eventually("noted", lambda: daemon.rows("prog", "s", "SELECT 1 FROM attempts WHERE outcome IS NULL"))
    daemon.cli("session", "quarantine", "prog", "s")
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    (folder / "hold").unlink()
    age_session(daemon.folder("prog", "s"))
    said = daemon.cli("sweep", "stale", "--agent", "prog", "--apply", "--canary-wait", "20")
    assert said.error == "CANARY_FAILED"
    assert said.envelope["result"]["canary"]["answered"] is False
    assert history(daemon, "s", message_id)[-1] == "cancelled"


def test_a_live_run_is_never_a_candidate(daemon: RealDaemon) -> None:
    message_id, mark = hang(daemon)
    age_session(daemon.folder("prog", "s"))
    said = daemon.cli("sweep", "stale", "--session", "prog/s", "--apply").result
    assert said["runs"] == []
    assert said["swept"] == []
    mark.with_name("mark-s.go").touch()
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}


def test_a_cancel_stops_the_turn_and_spares_the_container(daemon: RealDaemon) -> None:
    message_id, _ = hang(daemon)
    container = daemon.running("prog", "s")
    said = daemon.cli("message", "cancel", message_id, "--reason", "enough").result
    assert (said["was"], said["running"]) == ("pending", True)
    assert "enough" in daemon.answer(message_id, agent="prog", session="s")["error"]["message"]
    eventually("stopped", lambda: history(daemon, "s", message_id)[-1] == "turn_stopped")
    assert daemon.ask("say up", agent="prog", session="s") == {"text": "up"}
    assert daemon.running("prog", "s") == container
    shown = daemon.cli("message", "show", message_id).result
    assert [one["event"] for one in shown["life"]].count("turn_stopped") == 1
    daemon.at_rest = True


def test_a_message_is_cancelled_retried_and_never_repeated(daemon: RealDaemon) -> None:
    message_id, _ = hang(daemon)
    said = daemon.cli("message", "cancel", message_id, "--kill", "--reason", "by mistake").result
    assert said["running"] is True
    assert "by mistake" in daemon.answer(message_id, agent="prog", session="s")["error"]["message"]
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    assert daemon.cli("message", "cancel", message_id).error == "MESSAGE_FINISHED"
    (daemon.root / "mark-s.go").touch()
    again = daemon.cli("message", "retry", message_id).result["retried_as"]
    assert again == f"{message_id}+r1"
    assert daemon.answer(again, agent="prog", session="s") == {"text": "done"}
    assert daemon.cli("message", "retry", again, "--session", "prog/s").error == "MESSAGE_FINISHED"
    assert daemon.cli("message", "retry", "nobody").error == "UNKNOWN_MESSAGE"


def test_a_message_that_waits_out_its_back_off_is_tried_at_once(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="s")
    message_id = daemon.post("say later", agent="prog", session="s", process_after=2**42)
    daemon.cli("message", "retry", message_id, "--reason", "now")
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "later"}
    assert "retry_requested" in history(daemon, "s", message_id)


def test_a_reset_puts_a_broken_out_aside_and_works_on_what_waits(daemon: RealDaemon) -> None:
    daemon.hostile = True
    daemon.ask("say up", agent="prog", session="s")
    daemon.cli("session", "quarantine", "prog", "s")
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    (daemon.folder("prog", "s") / "out" / "outbound.db").write_bytes(b"\xa5" * 9000)
    message_id = daemon.post("say anew", agent="prog", session="s")
    assert daemon.cli("session", "reset", "prog", "s").error == "RESET_WOULD_LOSE"
    said = daemon.cli("session", "reset", "prog", "s", "--discard", "--reason", "corrupt").result
    assert (Path(said["moved_to"]) / "outbound.db").read_bytes()[:1] == b"\xa5"
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "anew"}
    assert history(daemon, "s", "@session") == ["session_quarantined", "session_reset"]


def test_a_reset_does_not_put_aside_what_is_not_delivered(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="s")
    daemon.cli("session", "quarantine", "prog", "s")
    eventually("ended", lambda: daemon.running("prog", "s") is None)
    change(
        daemon.folder("prog", "s") / "out" / "outbound.db",
        "INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES"
        " ('late', 999, '2026-01-01T00:00:00.000Z', 'chat', '{\"text\": \"late\"}')",
    )
    assert daemon.cli("session", "reset", "prog", "s").error == "RESET_WOULD_LOSE"
    daemon.cli("session", "release", "prog", "s")
    eventually("delivered", lambda: any(one["content"] == {"text": "late"} for one in daemon.entries()))


def test_a_kill_says_who_and_why_in_the_message_s_history(daemon: RealDaemon) -> None:
    message_id, mark = hang(daemon)
    daemon.cli("session", "kill", "prog", "s", "--reason", "runs in circles")
    assert "session_killed" in history(daemon, "s", message_id)
    (row,) = daemon.rows("prog", "s", "SELECT detail FROM message_history WHERE message_id = '@session'")
    assert "runs in circles" in row["detail"]
    mark.with_name("mark-s.go").touch()
    daemon.answer(message_id, agent="prog", session="s")


def test_the_repairs_work_while_the_daemon_is_down_and_its_container_lives(
    make_daemon: Make,
) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "s"
    message = daemon.post(f"hang {mark}", agent="prog", session="s")
    eventually("in mid-turn", lambda: mark.exists() and mark.read_text())
    daemon.kill()
    cancelled = daemon.cli("message", "cancel", message, "--session", "prog/s", "--kill", "--reason", "wrong")
    assert cancelled.result["running"] is True
    again = daemon.cli("session", "kill", "prog/s")
    assert (again.ok, again.result["killed"]) == (True, False), "the cancel ended its container"
    retried = daemon.cli("message", "retry", message, "--session", "prog/s").result["retried_as"]
    assert daemon.cli("message", "cancel", retried, "--session", "prog/s").result["was"] == "pending"
    daemon.start()
    assert daemon.ask("say up", agent="prog", session="s") == {"text": "up"}
    assert daemon.message("prog", "s", message)["status"] == "cancelled"
