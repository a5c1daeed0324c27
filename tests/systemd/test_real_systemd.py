"""clawbus as a service of a real systemd: ready when it is, restarted when it dies, its agents spared, its lines in the journal."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.logs.journal_line import read_entry
from tests.support.daemon import eventually
from tests.support.systemd_host import SystemdHost, build_site

pytestmark = pytest.mark.systemd


@pytest.fixture(scope="module")
def machine(systemd_image: str) -> Iterator[SystemdHost]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clawbus" / "wheels"
    # On the disk, for an engine that does not see this machine's /dev/shm.
    with tempfile.TemporaryDirectory(prefix="cb", ignore_cleanup_errors=True) as folder:
        site = Path(folder) / "site"
        build_site(site, cache)
        for path in (site, *site.rglob("*")):
            path.chmod(path.stat().st_mode | 0o055)
        site.parent.chmod(0o755)
        machine = SystemdHost(systemd_image, site)
        try:
            machine.install()
            yield machine
        finally:
            machine.close()


@pytest.fixture
def service(machine: SystemdHost) -> SystemdHost:
    """Started, and thereby ready: Type=notify."""
    machine.systemctl("reset-failed")
    machine.systemctl("start", "clawbus")
    return machine


def agent(machine: SystemdHost, session: str) -> dict[str, Any]:
    """The session's container as the daemon lists it."""
    return next(one for one in machine.clawbus("status")["live"]["running"] if one["session"] == session)


def ask(machine: SystemdHost, text: str, session: str) -> str:
    said = machine.clawbus("send", text, "--agent", "echo", "--session", session, "--wait", "30")
    return said["answer"]["text"]


def test_start_returns_when_it_is_ready_and_it_answers(service: SystemdHost) -> None:
    assert service.show("ActiveState") == "active"
    assert service.show("SubState") == "running"
    assert "containers" in service.show("StatusText")
    assert ask(service, "hello", "first") == "hello"


def test_killed_it_is_restarted_and_its_agents_live(service: SystemdHost) -> None:
    ask(service, "hello", "kept")
    before, pid, restarts = agent(service, "kept"), service.show("MainPID"), int(service.show("NRestarts"))
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL", "clawbus")
    eventually("restarted", lambda: int(service.show("NRestarts")) > restarts, 30)
    eventually("ready", lambda: service.show("ActiveState") == "active", 30)
    assert service.show("MainPID") != pid
    assert agent(service, "kept") == before
    assert ask(service, "again", "kept") == "again"


def test_a_stop_is_orderly_and_spares_the_agents(service: SystemdHost) -> None:
    ask(service, "hello", "spared")
    before = agent(service, "spared")
    service.systemctl("stop", "clawbus")
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    service.systemctl("start", "clawbus")
    assert agent(service, "spared") == before
    assert ask(service, "again", "spared") == "again"


def test_a_reload_takes_over_a_new_agent(service: SystemdHost) -> None:
    pid = service.show("MainPID")
    service.run("sh", "-c", "printf '[agents.added]\\nprovider = \"echo\"\\n' >> /etc/clawbus/clawbus.toml")
    service.systemctl("reload", "clawbus")
    eventually("reloaded", lambda: "added" in service.clawbus("status")["live"]["agents"])
    assert service.show("MainPID") == pid
    assert service.show("ActiveState") == "active"


def test_a_daemon_that_hangs_is_ended_by_the_watchdog(service: SystemdHost) -> None:
    ask(service, "hello", "watched")
    before = agent(service, "watched")
    service.run(
        "sh", "-c", "printf '[Service]\\nWatchdogSec=3\\n' > /etc/systemd/system/clawbus.service.d/watchdog.conf"
    )
    service.systemctl("daemon-reload")
    service.systemctl("restart", "clawbus")
    service.systemctl("kill", "--kill-whom=main", "--signal=STOP", "clawbus")
    eventually("restarted", lambda: int(service.show("NRestarts")) > 0, 60)  # a restart by hand began at 0
    eventually("ready", lambda: service.show("ActiveState") == "active", 30)
    said = service.run("journalctl", "-u", "clawbus", "--no-pager").stdout
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said, "every thread's stack, for whoever looks for the reason"
    assert agent(service, "watched") == before


def test_its_lines_in_the_journal_are_events(service: SystemdHost) -> None:
    ask(service, "hello", "logged")
    lines = [entry for entry in service.journal() if entry["_COMM"] == "clawbus"]
    events = [event for entry in lines if (event := read_entry(entry)) is not None]
    assert {"daemon_ready", "message_accepted", "container_spawned"} <= {event["event"] for event in events}
    accepted = next(entry["MESSAGE"] for entry in lines if entry["MESSAGE"].startswith("message_accepted"))
    assert accepted.startswith("message_accepted agent=echo session="), "for eyes, without a second time and level"
    assert {entry["PRIORITY"] for entry in lines if "daemon_ready" in entry["MESSAGE"]} == {"6"}


def test_the_command_line_reads_the_journal(service: SystemdHost) -> None:
    ask(service, "hello", "told")
    service.run("usermod", "--append", "--groups", "systemd-journal", "clawbus")  # as the refusal without it says
    found = service.clawbus("logs", "--journal", "--session", "echo/told", "--lines", "3")
    assert (found["source"], len(found["events"])) == ("journal", 3)
    assert {(event["agent"], event["session"]) for event in found["events"]} == {("echo", "told")}
    assert service.clawbus("logs", "--journal", "--unit", "nobody")["events"] == []


DEPLOY = """\
[deploy]
root = "/opt/clawbus"
warm_s = 1.0
bake_s = 2.0
bake_check_s = 0.2
"""


def test_a_deploy_forward_and_back_spares_the_agents_and_loses_nothing(service: SystemdHost) -> None:
    ask(service, "hello", "carried")
    service.run("sh", "-c", f"cat >> /etc/clawbus/clawbus.toml <<'END'\n{DEPLOY}END")
    service.make_two_releases()
    releases = [one["id"] for one in service.clawbus("release", "list")["releases"]]
    second, first = releases
    for slot in ("blue", "green"):
        assert service.run("clawbus", "release", "link", slot, first).returncode == 0
    service.systemctl("stop", "clawbus")
    for slot in ("blue", "green"):
        service.systemctl("start", f"clawbus@{slot}")
    pids = [service.systemctl("show", f"clawbus@{slot}", "-p", "MainPID", "--value") for slot in ("blue", "green")]
    try:
        for release, slot, epoch in ((second, "green", 2), (first, "blue", 3)):
            turn = service.clawbus(
                "send", "before", "--agent", "echo", "--session", "carried", "--id", f"before-{slot}"
            )
            done = service.run("clawbus", "deploy", "start", release, "--json", timeout_s=120)
            assert done.returncode == 0, done.stdout + done.stderr
            state = json.loads(done.stdout)["result"]
            assert (state["serving"], state["epoch"]) == (slot, epoch)
            again = service.clawbus(
                "send", "before", "--agent", "echo", "--session", "carried", "--id", turn["message_id"], "--wait", "30"
            )
            assert (again["duplicate"], again["answer"]["text"]) == (True, "before")
            assert ask(service, "after", "carried") == "after"
            assert service.clawbus("deploy", "verify-runtime")["verdict"] == "pass"
        now = [service.systemctl("show", f"clawbus@{slot}", "-p", "MainPID", "--value") for slot in ("blue", "green")]
        assert now == pids, "a hand-over is no restart"
        service.systemctl("kill", "--kill-whom=main", "--signal=KILL", "clawbus@blue")
        eventually("blue again", lambda: "live" in service.clawbus("status"), 30)
        assert service.clawbus("status")["live"]["source"]["slot"] == "blue", "only a deploy moves the work"
    finally:
        service.run("systemctl", "stop", "clawbus@blue", "clawbus@green")
        service.run("sh", "-c", "rm -rf /etc/systemd/system/clawbus@.service /var/lib/clawbus/deploy")
        service.run("sed", "-i", "/^.deploy.$/,$d", "/etc/clawbus/clawbus.toml")
        service.systemctl("daemon-reload")
        service.systemctl("start", "clawbus")


def uninstall_steps() -> Iterator[str]:
    """The shell blocks of docs/install.md, Uninstall, without Docker's. The image has no sudo."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    section = page.partition("\n## Uninstall\n")[2]
    for block in re.findall(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL):
        if "docker" not in block:
            yield block.replace("sudo -u clawbus ", "setpriv --reuid clawbus --regid clawbus --init-groups -- ")


def test_uninstalled_as_documented_nothing_is_left(service: SystemdHost) -> None:
    """The last of this file: the machine has no clawbus after it."""
    ask(service, "hello", "last")
    assert agent(service, "last")
    steps = list(uninstall_steps())
    assert len(steps) == 2
    for step in steps:
        done = service.run("sh", "-e", "-c", step)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
    left = service.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "container_runner" not in left
    assert "clawbus" not in left
    assert service.run("systemctl", "cat", "clawbus").returncode != 0
    assert service.run("id", "clawbus").returncode != 0
    found = service.run("find", "/etc", "/usr/local", "/var/lib", "/opt", "-xdev", "-name", "*clawbus*").stdout
    assert found == "", "-xdev: not in the mounted source"
