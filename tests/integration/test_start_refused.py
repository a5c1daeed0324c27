"""What a daemon refuses to start with, by a typed error with its fix, and what it starts without but says so."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.webhooks import free_port

Make = Callable[..., RealDaemon]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[runtme]\nkind = 'process'", ("runtme", "runtime")),
        ("[sweep]\ninterval = 5", ("sweep.interval", "interval_s")),
        ("[runtime]\nmax_containers = 0", ("runtime.max_containers",)),
        ("[runtime]\nkind = 'lxc'", ("runtime.kind",)),
        ("[agents.a]\nprovider = 'command'", ("agents.a.command",)),
        ("[agents.'../a']", ("../a",)),
        ("[channels.webhook]\nlisten = '0.0.0.0:80'", ("channels.webhook.listen",)),
        ("[channels.webhook.hooks.h]\nagent = 'a'\nsession = 's'\nsecrt = 'x'", ("secrt", "secret")),
        ("not TOML at all", ("not TOML",)),
    ],
    ids=["table", "key", "number", "word", "missing", "name", "channel", "channel-key", "toml"],
)
def test_a_wrong_configuration_names_the_key(make_daemon: Make, text: str, words: tuple[str, ...]) -> None:
    daemon = make_daemon()
    daemon.configure("[runtime]\nkind = 'process'\n" + text if not text.startswith("[runt") else text)
    said = daemon.refused()
    assert said.error == "CONFIG_INVALID"
    assert all(word in said.envelope["error"]["message"] for word in words)


def test_an_environment_variable_is_checked_like_the_file(make_daemon: Make) -> None:
    daemon = make_daemon()
    said = daemon.refused(environment={"CLAWBUS_RUNTIME__MAX_CONTAINERS": "many"})
    assert said.error == "CONFIG_INVALID"
    assert "max_containers" in said.envelope["error"]["message"]


def test_an_unknown_channel_type_is_refused(make_daemon: Make) -> None:
    daemon = make_daemon("[channels.pigeon]\n")
    said = daemon.refused()
    assert said.error == "CHANNEL"
    assert "pigeon" in said.envelope["error"]["message"]


def test_a_second_daemon_is_refused_and_the_first_goes_on(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO)
    daemon.start()
    assert daemon.process is not None
    said = daemon.refused()
    assert said.error == "DATA_FOLDER_LOCKED"
    assert str(daemon.process.pid) in said.envelope["error"]["message"]
    assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}


def test_a_removed_lock_is_taken_again_and_a_second_daemon_is_still_refused(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO)
    daemon.start()
    (daemon.data / "clawbus.lock").unlink()
    assert daemon.refused().error == "DATA_FOLDER_LOCKED", "at once, not only after the daemon's next check"
    eventually("locked again", lambda: daemon.events("data_folder_lock_retaken"))
    assert daemon.refused().error == "DATA_FOLDER_LOCKED"
    assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}


def test_a_socket_path_that_is_too_long_is_refused(make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.configure(f"[control]\nsocket = {json.dumps(str(daemon.root / ('x' * 120)))}\n")
    assert daemon.refused().error == "SOCKET_PATH"
    assert daemon.cli("send", "x", "--agent", "a", "--session", "s").error == "SOCKET_PATH"


def test_a_socket_that_another_daemon_answers_on_is_left_alone(make_daemon: Make) -> None:
    first, second = make_daemon(ECHO), make_daemon()
    first.start()
    second.configure(f'[runtime]\nkind = "process"\n[control]\nsocket = {json.dumps(str(first.socket))}\n')
    assert second.refused().error == "SOCKET_IN_USE"
    assert first.ask("hello", agent="echo", session="s") == {"text": "hello"}


def test_a_port_that_is_taken_is_refused(make_daemon: Make) -> None:
    table = f'[channels.webhook]\nlisten = "127.0.0.1:{free_port()}"\n'
    first, second = make_daemon(table), make_daemon(table)
    first.start()
    said = second.refused()
    assert said.error == "CHANNEL"
    assert "127.0.0.1" in said.envelope["error"]["message"]


def test_a_data_folder_of_a_newer_version_is_refused_untouched(make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.data.mkdir(mode=0o700)
    (daemon.data / "clawbus.version").write_text("999\n", encoding="ascii")
    assert daemon.refused().error == "SCHEMA_TOO_NEW"
    assert sorted(path.name for path in daemon.data.iterdir()) == ["clawbus.lock", "clawbus.version"]


def test_a_session_file_of_a_newer_version_stops_that_session_alone(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.ask("say up", agent="prog", session="new")
    daemon.stop()
    daemon.end_agents()
    _stamp(daemon.folder("prog", "new") / "in" / "inbound.db", 999)
    daemon.start()
    said = daemon.cli("send", "x", "--agent", "prog", "--session", "new")
    assert said.error == "SCHEMA_TOO_NEW"
    assert daemon.ask("say on", agent="prog", session="other") == {"text": "on"}
    _stamp(daemon.folder("prog", "new") / "in" / "inbound.db", 1)
    assert daemon.ask("say on", agent="prog", session="new") == {"text": "on"}


def _stamp(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


@pytest.mark.parametrize("where", ["under-a-file", "world-writable", "read-only"])
def test_a_data_folder_that_cannot_be_used_is_refused(make_daemon: Make, where: str) -> None:
    daemon = make_daemon()
    if where == "under-a-file":
        (daemon.root / "file").touch()
        data = daemon.root / "file" / "d"
    elif where == "world-writable":
        data = daemon.root / "open"
        data.mkdir()
        data.chmod(0o777)
    else:
        data = Path("/proc/self/fdinfo") if os.geteuid() == 0 else daemon.root / "closed"
        data.mkdir(mode=0o500, exist_ok=True)
    daemon.configure(f"[runtime]\nkind = 'process'\n[control]\nsocket = {json.dumps(str(daemon.root / 's'))}\n")
    text = daemon.config.read_text(encoding="utf-8").replace(str(daemon.data), str(data))
    daemon.config.write_text(text, encoding="utf-8")
    assert daemon.refused().error == "DATA_FOLDER"


def test_without_docker_it_starts_degraded_and_keeps_what_it_accepts(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), runtime="docker")
    daemon.environment["DOCKER_HOST"] = f"unix://{daemon.root}/no-docker.sock"
    daemon.start()
    message_id = daemon.post("say kept", agent="prog", session="s")
    status = daemon.status()
    assert status["live"]["runtime"] == {"name": "docker", "state": "unavailable"}
    assert [one["what"] for one in status["live"]["degraded"]] == ["runtime"]
    assert "Docker does not answer" in status["live"]["degraded"][0]["why"]
    assert "degraded: runtime" in daemon.people("status")
    waited = daemon.cli("send", "say kept too", "--agent", "prog", "--session", "s", "--wait", "0.5")
    assert waited.error == "NO_ANSWER_YET"
    assert daemon.message("prog", "s", message_id)["tries"] == 0
    assert daemon.stop() == 0

    # What an operator does who changes from docker to process: a root daemon gave the outbox to the containers' user.
    os.chown(daemon.folder("prog", "s") / "out", os.getuid(), os.getgid())
    daemon.config.write_text(
        daemon.config.read_text(encoding="utf-8").replace('"docker"', '"process"'), encoding="utf-8"
    )
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="s")["text"].startswith("kept")
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    assert daemon.message("prog", "s", message_id)["tries"] == 0


def test_commands_say_what_to_do_when_no_daemon_runs(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO)
    said = daemon.cli("send", "x", "--agent", "echo", "--session", "s")
    assert said.error == "DAEMON_DOWN"
    assert "clawbus serve" in said.envelope["fix"]
    daemon.start()
    daemon.ask("hello", agent="echo", session="s")
    daemon.stop()
    status, session = daemon.cli("status").result, daemon.cli("session", "show", "echo", "s").result
    assert (status["source"], session["source"]) == ("files", "files")
    assert [one["text"] for one in daemon.cli("mailbox").result["entries"]] == ["hello"]
