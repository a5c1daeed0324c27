"""The service under a real systemd: ready when it says so, restarted when it dies or hangs, and no agent notices.

Each test leaves the service running. The runtime is `process`: its agents are in the unit's own control group, where
only KillMode=process spares them.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_systemd import CONFIG, PREFIX, Machine, build, install, machine, python_of

pytestmark = pytest.mark.systemd

SETTINGS = """
data_dir = "/var/lib/clawbus"
[runtime]
kind = "process"
[sweep]
interval_s = 1.0
backoff_base_s = 0.2
[agents.echo]
provider = "echo"
"""
SHOUT = '\n[agents.shout]\nprovider = "command"\ncommand = ["/usr/bin/tr", "a-z", "A-Z"]\n'
TIMEOUT_STOP_S = 30


@pytest.fixture(scope="module")
def host(systemd_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    built = tmp_path_factory.mktemp("built")
    build(built)
    with machine(systemd_image) as found:
        theirs = python_of(found)
        if theirs != sys.version_info[:2]:
            pytest.skip(f"the image has Python {theirs}: the compiled packages of this environment do not run there")
        install(found, built, SETTINGS)
        found.run("systemctl", "start", "clawbus")
        yield found


@pytest.fixture(autouse=True)
def _story(host: Machine, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    assert host.property("ActiveState") == "active", host.story()


def ask(host: Machine, text: str, agent: str = "echo", session: str = "s") -> str:
    answer = host.clawbus("send", text, "--agent", agent, "--session", session, "--wait", "30")["answer"]
    return answer["text"]


def running(host: Machine, session: str = "s") -> dict[str, Any]:
    """The agent's container as the daemon lists it, once it does."""

    def look() -> dict[str, Any] | None:
        live = host.clawbus("status")["live"]["running"]
        return next((one for one in live if one["session"] == session and one["container_id"]), None)

    return host.eventually("listed", look)


def agent_pid(host: Machine, session: str = "s") -> int:
    """The leader of its processes, from the process runtime's record."""
    records = host.run("sh", "-c", "cat /var/lib/clawbus/run/process/*.json").strip()
    decoder, found = json.JSONDecoder(), []
    while records:
        record, end = decoder.raw_decode(records)
        found.append(record)
        records = records[end:].lstrip()
    return next(record["pid"] for record in found if record["session"] == session)


def restarted(host: Machine, before: str) -> None:
    """systemd has started another main process, and that one is ready."""
    host.eventually(
        "restarted",
        lambda: host.property("MainPID") not in ("0", before) and host.property("ActiveState") == "active",
        60,
    )


def test_active_means_ready(host: Machine) -> None:
    assert host.property("ActiveState") == "active"
    assert host.property("SubState") == "running"
    assert host.property("NRestarts") == "0"
    assert "containers" in host.property("StatusText"), "the line of live counts"
    health = host.clawbus("status")
    assert (health["source"], str(health["live"]["pid"])) == ("daemon", host.property("MainPID"))
    assert ask(host, "hello") == "hello"


def test_it_runs_as_its_user_and_its_folders_are_its_own(host: Machine) -> None:
    pid = host.property("MainPID")
    assert host.run("stat", "-c", "%U", f"/proc/{pid}").strip() == "clawbus"
    modes = host.run("stat", "-c", "%a %U %G %n", "/var/lib/clawbus", "/etc/clawbus", CONFIG).splitlines()
    assert modes == [
        "700 clawbus clawbus /var/lib/clawbus",
        "750 root clawbus /etc/clawbus",
        f"640 root clawbus {CONFIG}",
    ]
    status = dict(line.split(":", 1) for line in host.run("cat", f"/proc/{pid}/status").splitlines() if ":" in line)
    assert int(status["CapEff"].strip(), 16) == 0
    assert status["NoNewPrivs"].strip() == "1"


def test_what_it_says_is_json_in_the_journal_with_its_priority(host: Machine) -> None:
    ask(host, "for the log")
    entries = [entry for entry in host.journal() if entry.get("_PID") == host.property("MainPID")]
    events = [json.loads(entry["MESSAGE"]) for entry in entries]
    assert {"daemon_starting", "daemon_ready", "message_accepted", "message_delivered"} <= {
        one["event"] for one in events
    }
    levels = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}
    assert {(levels[event["level"]], entry["PRIORITY"]) for event, entry in zip(events, entries, strict=True)} <= {
        (priority, priority) for priority in levels.values()
    }
    assert not [event for event in events if event["level"] in ("error", "critical")]


def test_killed_it_is_started_again_and_no_agent_notices(host: Machine) -> None:
    assert ask(host, "before") == "before"
    slot, pid, main = running(host), agent_pid(host), host.property("MainPID")
    host.run("systemctl", "kill", "--signal", "KILL", "--kill-whom", "main", "clawbus")
    restarted(host, main)
    assert host.alive(pid)
    assert running(host) == slot, "adopted: the same incarnation"
    assert ask(host, "after") == "after"
    assert (running(host)["incarnation"], agent_pid(host)) == (slot["incarnation"], pid)
    assert [event["incarnation"] for event in host.events("container_adopted")][-1:] == [slot["incarnation"]]


def test_killed_with_all_its_agents_it_answers_with_new_ones(host: Machine) -> None:
    assert ask(host, "before", session="all") == "before"
    slot, main = running(host, "all"), host.property("MainPID")
    host.run("systemctl", "kill", "--signal", "KILL", "clawbus")
    restarted(host, main)
    assert ask(host, "after", session="all") == "after"
    assert running(host, "all")["incarnation"] != slot["incarnation"]


def test_frozen_it_is_caught_by_the_watchdog(host: Machine) -> None:
    assert ask(host, "before") == "before"
    slot, pid, main, since = running(host), agent_pid(host), host.property("MainPID"), host.cursor()
    host.run("systemctl", "kill", "--signal", "STOP", "--kill-whom", "main", "clawbus")
    frozen_at = time.monotonic()
    restarted(host, main)
    assert time.monotonic() - frozen_at < 15, "WatchdogSec is 3 here"
    assert "Watchdog timeout" in host.run("journalctl", "--unit", "clawbus", "--output", "cat", "--after-cursor", since)
    assert host.alive(pid)
    assert ask(host, "after") == "after"
    assert running(host)["incarnation"] == slot["incarnation"]


def test_reload_takes_an_agent_over_without_a_restart(host: Machine) -> None:
    main, since = host.property("MainPID"), host.cursor()
    host.write(CONFIG, SETTINGS + SHOUT)
    host.run("systemctl", "reload", "clawbus")
    (event,) = host.eventually("reloaded", lambda: host.events("config_reloaded", since))
    assert event["agents"] == ["echo", "shout"]
    assert "LOUD" in ask(host, "loud", agent="shout", session="r")
    assert host.property("MainPID") == main
    assert host.property("ActiveState") == "active"

    since = host.cursor()
    host.write(CONFIG, SETTINGS + SHOUT + "[agents\n")
    host.run("systemctl", "reload", "clawbus")
    host.eventually("refused", lambda: host.events("reload_refused", since))
    host.write(CONFIG, SETTINGS)
    assert host.property("MainPID") == main
    assert "LOUD" in ask(host, "loud", agent="shout", session="r"), "the old configuration stands"


def test_stop_is_in_order_and_in_time_and_leaves_agents(host: Machine) -> None:
    ask(host, "before")
    slot, pid, since = running(host), agent_pid(host), host.cursor()
    begun = time.monotonic()
    host.run("systemctl", "stop", "clawbus")
    took = time.monotonic() - begun
    try:
        assert took < TIMEOUT_STOP_S / 2
        assert (host.property("ActiveState"), host.property("Result")) == ("inactive", "success")
        assert host.property("ExecMainStatus") == "0"
        assert [event["event"] for event in host.events("daemon_stopped", since)] == ["daemon_stopped"]
        assert host.alive(pid)
        refused = host.clawbus("send", "x", "--agent", "echo", "--session", "s", check=False)
        assert refused["error"]["code"] == "DAEMON_DOWN"
    finally:
        host.run("systemctl", "start", "clawbus")
    assert running(host)["incarnation"] == slot["incarnation"]
    assert ask(host, "after") == "after"


def test_the_installed_command_is_the_one_that_ships(host: Machine, tmp_path: Path) -> None:
    result = host.clawbus("version")
    assert host.run(f"{PREFIX}/bin/python", "-c", "import daemon; print(daemon.__file__)").startswith(PREFIX)
    assert result["python"].startswith(".".join(map(str, sys.version_info[:2])))
