"""Schedules in a real daemon: each occurrence comes once through SIGKILLs, and every verb works with the daemon up and down."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from tests.support.agents import ECHO, command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.wreck import findings, found, repair

Make = Callable[..., RealDaemon]
CONFIG = """
[agents.echo]
provider = "echo"
[schedules.beat]
agent = "echo"
text = "beat"
every_s = 1
catch_up = "all"
"""


def sent(daemon: RealDaemon) -> list[str]:
    return [
        row["message_id"]
        for row in daemon.rows("echo", "schedule-beat", "SELECT message_id FROM schedule_runs ORDER BY due")
    ]


def test_each_occurrence_comes_once_whatever_dies(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    for number in range(1, 4):
        daemon.start()
        eventually("more occurrences", lambda: len(daemon.entries("beat")) >= 2 * number, 60)  # noqa: B023
        daemon.kill()
    daemon.start()
    daemon.cli("schedule", "pause", "beat")
    due = [row["due"] for row in daemon.rows("echo", "schedule-beat", "SELECT due FROM schedule_runs ORDER BY due")]
    assert due == list(range(due[0], due[-1] + 1, 1000)), "none lost, while the daemon was dead too"
    ids = sent(daemon)
    open_ids = "SELECT id FROM messages_in WHERE status <> 'completed'"
    eventually("all completed", lambda: not daemon.rows("echo", "schedule-beat", open_ids), 60)
    assert len(daemon.rows("echo", "schedule-beat", "SELECT id FROM messages_in")) == len(set(ids)), "and none twice"
    answered = [one["in_reply_to"] for one in daemon.entries("beat")]
    assert len(answered) == len(set(answered))
    assert set(answered) <= set(ids)


def test_every_verb_works_with_the_daemon_up_and_down(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG.replace("every_s = 1\n", "every_s = 86400\n"))
    daemon.start()
    for up in (True, False):
        if not up:
            daemon.stop()
        key = f"job-{up}".lower()
        said = daemon.cli("schedule", "add", key, "work", "--agent", "echo", "--cron", "0 9 29 2 *")
        assert said.result["was"] == "added", said
        assert (
            daemon.cli("schedule", "add", key, "work", "-a", "echo", "--cron", "0 9 29 2 *").result["was"]
            == "unchanged"
        )
        message = daemon.cli("schedule", "run", key).result["message_id"]
        if up:
            eventually("answered", lambda: [one for one in daemon.entries(key) if one["in_reply_to"] == message])  # noqa: B023
        assert daemon.cli("schedule", "pause", key).result["was"] == "active"
        listed = {one["key"]: one for one in daemon.cli("schedule", "list").result["schedules"]}
        assert (listed[key]["state"], listed["beat"]["origin"]) == ("paused", "config")
        assert daemon.cli("schedule", "resume", key).result["was"] == "paused"
        assert [one["message_id"] for one in daemon.cli("schedule", "show", key).result["runs"]] == [message]
        assert daemon.cli("schedule", "cancel", key).ok
        assert daemon.cli("schedule", "show", key).error == "UNKNOWN_SCHEDULE"
        assert daemon.cli("schedule", "cancel", "beat").error == "SCHEDULE_INVALID"
        deleted = daemon.cli("session", "delete", "echo/schedule-beat", "--force", "--reason", "a test")
        assert deleted.error == "SCHEDULE_INVALID", "the configuration's schedule would stop until the next start"
        assert daemon.cli("schedule", "add", "x", "work", "-a", "nobody", "--every", "1h").error == "UNKNOWN_AGENT"
    daemon.start()
    eventually("the message that was sent while it was down", lambda: daemon.entries("job-false"))
    assert daemon.cli("session", "delete", "echo/schedule-job-false").ok


def test_what_is_sent_for_later_waits_is_not_late_and_can_be_cancelled(make_daemon: Make) -> None:
    daemon = make_daemon('[agents.echo]\nprovider = "echo"\n')
    daemon.start()
    sent = daemon.cli("send", "hello", "-s", "echo/later", "--at", "tomorrow 9:00", "--mailbox", "later").result
    status = daemon.cli("status").result
    assert status["sessions"] == {"total": 1, "scheduled": 1}
    assert (status["queues"]["scheduled"], status["queues"]["oldest_pending_age_ms"]) == (1, None)
    assert daemon.cli("session", "list").result["sessions"][0]["state"] == "scheduled"
    listed = daemon.cli("message", "list").result["messages"][0]
    assert listed["process_after"] == sent["due_at"]
    assert not [one for one in daemon.cli("doctor").result["findings"] if one.get("session") == "later"]
    assert daemon.cli("message", "show", sent["message_id"]).ok
    assert daemon.cli("message", "cancel", sent["message_id"], "--reason", "a test").ok
    now = daemon.cli("send", "soon", "-s", "echo/later", "--at", "in 1s", "--wait", "60").result
    assert now["answer"]["text"] == "soon"
    for rule in ("1h", "0 9 29 2 *"):
        added = daemon.cli("send", "hello", "-s", "echo/later", "--every", rule, "--mailbox", "me").result
        assert (added["was"], added["session"]) == ("added", "later")
        again = daemon.cli("send", "hello", "-s", "echo/later", "--every", rule, "--mailbox", "me")
        assert (again.result["was"], again.result["key"]) == ("unchanged", added["key"])
        shown = daemon.cli("schedule", "show", added["key"]).result
        assert (shown["to"], shown["text"], shown["state"]) == ("local/me", "hello", "active")


def test_a_schedule_that_keeps_failing_is_a_finding_whose_repair_ends_it(make_daemon: Make) -> None:
    flaky = command_agent("prog", ("/bin/sh", "-c", "read -r turn; test -e needed && echo done"))
    daemon = make_daemon(ECHO + flaky + "pause_schedules_after = 2\n")
    daemon.start()
    assert daemon.cli("schedule", "add", "beat", "work", "-a", "prog", "--every", "1s").ok
    eventually("it is paused", lambda: daemon.cli("schedule", "show", "beat").result["state"] == "paused", 60)
    one = found(daemon, "SCHEDULE_FAILING")
    assert (one["session"], daemon.cli("schedule", "show", "beat").result["paused_after"]) == ("schedule-beat", 2)
    eventually("told", lambda: len(daemon.entries("beat")) > 1)
    texts = [entry["content"] for entry in daemon.entries("beat")]
    assert ["error" in text for text in texts] == [True, False], "one error, and the notice"
    assert "paused" in texts[1]["text"]
    (daemon.data / "agents" / "prog" / "needed").touch()
    repair(daemon, one["command"])
    eventually("it works again", lambda: len(daemon.entries("beat")) > 2, 60)
    assert "SCHEDULE_FAILING" not in findings(daemon)


def test_a_schedule_whose_zone_is_gone_waits_and_holds_up_nothing_else(make_daemon: Make) -> None:
    """As after an upgrade to a system whose tzdata has no US/Eastern any more, or a restore on another machine."""
    daemon = make_daemon(ECHO)
    daemon.start()
    for key, zone in (("old", "Europe/Vienna"), ("older", "Europe/Vienna"), ("other", "UTC")):
        added = daemon.cli("schedule", "add", key, key, "-s", "echo/s", "--cron", "* * * * *", "--timezone", zone)
        assert added.result["was"] == "added"
    daemon.stop()
    due = "next_at = (strftime('%s', 'now') - 30) * 1000"
    with sqlite3.connect(daemon.folder("echo", "s") / "in" / "inbound.db") as db:
        db.execute(f"UPDATE schedules SET {due}, times = replace(times, 'Europe/Vienna', 'Mars/Olympus')")
    db.close()
    daemon.start()
    eventually("the other one fires", lambda: [one["content"]["text"] for one in daemon.entries("other")] == ["other"])
    assert daemon.ask("hello", agent="echo", session="s")["text"] == "hello"
    assert daemon.events("sweep_failed") == []
    for key, verb in (("old", "pause"), ("older", "cancel")):
        one = found(daemon, "SCHEDULE_ZONE")
        assert f"zone Mars/Olympus of schedule {key}" in one["evidence"][0]
        shown = daemon.cli("schedule", "show", key, "--session", "echo/s").result
        assert (shown["state"], shown["upcoming"]) == ("active", [])
        repair(daemon, next(choice["command"] for choice in one["choices"] if verb in choice["command"]))
    assert "SCHEDULE_ZONE" not in findings(daemon)
    assert daemon.cli("schedule", "resume", "old", "--session", "echo/s").error == "SCHEDULE_INVALID"
    again = daemon.cli("schedule", "add", "old", "old", "-s", "echo/s", "--cron", "* * * * *", "--timezone", "UTC")
    assert again.result["was"] == "changed"


def test_a_check_program_decides_whether_the_agent_is_woken(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG.replace("every_s = 1\n", "every_s = 86400\ncheck = 'cat news'\n"))
    daemon.start()
    folder = daemon.data / "agents" / "echo"

    def newest() -> dict[str, Any]:
        return daemon.cli("schedule", "show", "beat").result["runs"][0]

    def end_of(number: int) -> str:
        message = daemon.cli("schedule", "run", "beat").result["message_id"]
        eventually("its end", lambda: newest()["status"] != "pending", 60)
        assert newest()["message_id"] == message
        eventually("its answer", lambda: len(daemon.entries("beat")) >= number, 60)
        assert len(daemon.entries("beat")) == number
        return str(newest()["status"])

    daemon.cli("send", "by the way", "-s", "echo/schedule-beat", "--context", "--mailbox", "beat")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "news").touch()
    assert end_of(0) == "completed"
    assert "CHECK_QUIET" in str(daemon.cli("run", "show", newest()["message_id"]).result)
    context = [one["status"] for one in daemon.cli("message", "list").result["messages"] if not one["trigger"]]
    assert context == ["pending"], "nobody has read it"
    (folder / "news").write_text("rain\n")
    assert end_of(1) == "completed"
    assert daemon.entries("beat")[-1]["content"]["text"] == "beat\n\nrain"
    (folder / "news").unlink()
    assert end_of(2) == "failed"
    assert daemon.cli("dead", "list").result["letters"][0]["code"] == "AGENT_FAILED"
    assert "CHECK_FAILED" in str(daemon.cli("run", "show", newest()["message_id"]).result)


def test_a_message_s_own_content_names_no_check(make_daemon: Make) -> None:
    daemon = make_daemon('[agents.echo]\nprovider = "echo"\n')
    daemon.start()
    content = '{"text": "hello", "check": "touch pwned", "type": "schedule"}'
    sent = ("send", content, "--json-content", "-s", "echo/s", "--id", "schedule:beat@1", "--wait", "60")
    assert daemon.cli(*sent).result["answer"]["text"] == "hello"
    assert not (daemon.data / "agents" / "echo" / "pwned").exists()
