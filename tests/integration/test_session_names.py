"""Sessions are called what chats are called: from the command line and a webhook's path to folders, backups and repairs."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.agents import ECHO
from tests.support.daemon import CLAWBUS, RealDaemon, eventually
from tests.support.webhooks import free_port, post

NAMES = ("-1001234567890", "owner/repo#12", "K\u00fcche \u5bb6", "a/stop")
SECRET = "a-secret-of-sixteen"
PORT = free_port()
HOOKS = f"""
[channels.webhook]
listen = "127.0.0.1:{PORT}"
[channels.webhook.hooks.any]
agent = "echo"
session = "*"
secret = "{SECRET}"
"""


@pytest.fixture(scope="module")
def bus() -> Iterator[RealDaemon]:
    daemon = RealDaemon(ECHO + HOOKS)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_session_is_named_as_given_everywhere(bus: RealDaemon, name: str) -> None:
    said = bus.cli("send", "hello", "--agent", "echo", "--session", name, "--wait", "60")
    assert (said.result["session"], said.result["answer"]["text"]) == (name, "hello")
    message = said.result["message_id"]
    assert bus.cli("send", "again", "--agent", "echo", f"--session={name}", "--wait", "60").ok
    # Printed commands can be copied: a shell takes them as they stand.
    for action in said.envelope["next_actions"]:
        line = action["command"].removeprefix("clawbus ")
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" {line} --json', CLAWBUS],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert json.loads(done.stdout)["ok"], (action, done.stdout, done.stderr)
    for words in (("echo", name), (f"echo/{name}",)):
        options = ("--",) if name.startswith("-") and len(words) == 2 else ()
        shown = subprocess.run(
            [CLAWBUS, "--config", str(bus.config), "--json", "session", "show", *options, *words],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert json.loads(shown.stdout)["result"]["session"] == name
    assert name in {one["session"] for one in bus.cli("session", "list").result["sessions"]}
    assert bus.cli("run", "show", message).result["session"] == name
    assert bus.cli("logs", "--session", f"echo/{name}").result["events"]
    assert bus.cli("run", "list", "--session", f"echo/{name}").result["runs"]
    assert bus.cli("session", "kill", f"echo/{name}", "--reason", "a test").ok
    folder = bus.show("echo", name)["folder"]
    assert Path(folder).parent == bus.data / "sessions" / "echo"
    assert Path(folder).is_dir()


@pytest.mark.parametrize("name", NAMES)
def test_a_webhook_names_one_in_its_path(bus: RealDaemon, name: str) -> None:
    path = quote(f"/hooks/any/{name}", safe="/")
    answer = post(f"http://127.0.0.1:{PORT}{path}", SECRET, {"n": 1}, message_id=f"hook-{NAMES.index(name)}")
    assert answer.status_code == 202, answer.text
    eventually("taken", lambda: bus.message("echo", name, f"hook-{NAMES.index(name)}")["status"] == "completed")


def test_an_agent_starts_for_every_name_in_a_daemon_of_the_c_locale() -> None:
    """Neither the daemon's locale nor the one that the agent is given decides how the runner reads its own variables."""
    program = """
[agents.greeter]
provider = "command"
command = ["/bin/sh", "-c", "cat >/dev/null; echo \\"$GREETING, $LANG\\""]
env = {GREETING = "Gr\u00fc\u00dfe", LANG = "de_DE.ISO-8859-1"}
"""
    daemon = RealDaemon(ECHO + program)
    daemon.environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    try:
        daemon.start()
        assert daemon.ask("hello", agent="echo", session=NAMES[2]) == {"text": "hello"}
        assert daemon.ask("hello", agent="greeter", session=NAMES[2]) == {"text": "Gr\u00fc\u00dfe, de_DE.ISO-8859-1"}
    finally:
        daemon.close()


def test_they_are_in_a_backup_and_come_back_without_the_registry(bus: RealDaemon, tmp_path: Path) -> None:
    before = {one["session"] for one in bus.cli("session", "list").result["sessions"]}
    assert before >= set(NAMES)
    assert bus.cli("backup", str(tmp_path / "copy")).result["sessions"] == len(before)
    assert bus.stop() == 0
    for file in bus.data.glob("central.db*"):
        file.unlink()
    bus.start()
    assert {one["session"] for one in bus.cli("session", "list").result["sessions"]} == before
    said = bus.cli("send", "still there", "--agent", "echo", "--session", NAMES[0], "--wait", "60")
    assert said.result["answer"]["text"] == "still there"


def test_what_is_no_name_is_refused(bus: RealDaemon) -> None:
    for name in ("..", "a/../b", "a\nb", "\u202ea", "a" * 300):
        assert bus.cli("send", "x", "--agent", "echo", f"--session={name}").error == "INVALID_NAME"
