"""What a running turn reports and says, as `send --wait`, `chat` and `watch` show it: while it runs, and beside the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.agents import obedient
from tests.support.daemon import RealDaemon

Make = Callable[..., RealDaemon]
# Reports two notes, and answers once somebody has made the file.
REPORTS: Final = """
import json, os, sys, time
turn = json.load(sys.stdin)
for note in ("reading", "\\x1b[31mthinking"):
    print(json.dumps({"type": "progress", "note": note}), flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print(json.dumps({"type": "message", "text": "done"}))
"""


def started(make_daemon: Make, go: Path) -> RealDaemon:
    command = json.dumps([sys.executable, "-I", "-S", "-c", REPORTS, str(go)])
    daemon = make_daemon(f"[agents.slow]\ncommand = {command}\n")
    daemon.start()
    return daemon


def test_send_shows_them_while_the_agent_works(make_daemon: Make, tmp_path: Path) -> None:
    go = tmp_path / "go"
    daemon = started(make_daemon, go)
    sending = daemon.begin_stream("send", "work", "--session", "slow/s", "--wait", "60", "--pretty")
    assert sending.stderr is not None
    shown = [sending.stderr.readline(), sending.stderr.readline()]
    assert shown[0] == "... reading\n"
    assert "thinking" in shown[1]
    assert "\x1b" not in shown[1], "a note is text, never an order to the terminal"
    go.touch()
    out, rest = sending.communicate(timeout=60)
    assert (out.strip(), rest) == ("done", ""), "standard output is the answer, and each note comes once"


def test_chat_in_a_pipe_shows_them_on_standard_error(make_daemon: Make, tmp_path: Path) -> None:
    go = tmp_path / "go"
    daemon = started(make_daemon, go)
    command = [daemon.command, "--config", str(daemon.config), "chat", "--session", "slow/s", "--pretty"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as chatting:
        assert chatting.stdin is not None
        assert chatting.stderr is not None
        chatting.stdin.write("work\n")
        chatting.stdin.close()
        shown = [chatting.stderr.readline(), chatting.stderr.readline()]
        go.touch()
        assert chatting.stdout is not None
        assert (shown[0], chatting.stdout.read().strip(), chatting.stderr.read()) == ("... reading\n", "< done", "")
        assert "thinking" in shown[1]
        assert "\x1b" not in shown[1]
        assert chatting.wait(timeout=60) == 0


def test_chat_in_a_pipe_waits_for_no_answer_that_will_never_come(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    daemon.cli("send", "say hi", "--session", "prog/s", "--wait", "60")
    daemon.cli("session", "quarantine", "prog/s", "--reason", "it is looked at")
    said = daemon.cli("chat", "--session", "prog/s", "--wait", "3600", text="one\ntwo\n", timeout_s=60)
    assert (said.code, said.error) == (1, "NO_ANSWER")
    assert "2 of 2 messages" in said.envelope["error"]["message"]
    assert "it is looked at" in said.envelope["error"]["message"]


def test_chat_shows_them_on_a_terminal(make_daemon: Make, tmp_path: Path) -> None:
    go = tmp_path / "go"
    daemon = started(make_daemon, go)
    person, terminal = os.openpty()
    environ = {**os.environ, "TERM": "dumb", "COLUMNS": "80"}
    command = [daemon.command, "--config", str(daemon.config), "chat", "--session", "slow/s"]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environ) as chatting:
        os.close(terminal)
        os.write(person, b"work\n")
        seen = b""
        while b"... reading" not in seen:
            seen += os.read(person, 4096)
        go.touch()
        while b"< done" not in seen:
            seen += os.read(person, 4096)
        os.write(person, b"\x04")
        assert chatting.wait(timeout=60) == 0
    os.close(person)
    assert seen.count(b"reading") == 1


def test_watch_shows_what_agents_say_as_it_comes(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "mark"
    with daemon.begin_stream("watch", "--session", "prog/s", "--json") as watching:
        lines_until(watching, "watching")
        daemon.post(f"tell one two {mark}", agent="prog", session="s", id="m1")
        # What is said and the notes come by different ways, in no order between them.
        seen = [json.loads(line) for line in lines_until(watching, '"one"', '"two"', "half way")]
        (note,) = [one for one in seen if one["event"] == "agent_progress"]
        assert (note["messages"], note["text"]) == (["m1"], "half way")
        said = [one for one in seen if one["event"] == "agent_said"]
        assert [(one["text"], one["in_reply_to"]) for one in said] == [("one", "m1"), ("two", "m1")]
        assert said[1]["edits"] == said[0]["message_out"]
        watching.terminate()
        watching.communicate(timeout=60)
    assert "half way" not in (daemon.data / "logs" / "clawbus.log").read_text(), "no log keeps what agents say"
    mark.with_name("mark.go").touch()
    assert daemon.answer("m1", agent="prog", session="s") == {"text": "done"}


def test_chat_in_a_pipe_shows_what_is_said_before_the_answer(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    mark = daemon.root / "mark"
    command = [daemon.command, "--config", str(daemon.config), "chat", "--session", "prog/s", "--pretty"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as chatting:
        assert chatting.stdin is not None
        assert chatting.stdout is not None
        chatting.stdin.write(f"tell one two {mark}\n")
        chatting.stdin.close()
        assert [chatting.stdout.readline() for _ in range(2)] == ["* one\n", "* two\n"]
        mark.with_name("mark.go").touch()
        assert chatting.stdout.read().strip() == "< done"
        assert chatting.wait(timeout=60) == 0


def lines_until(process: subprocess.Popen[str], *texts: str) -> list[str]:
    """Read lines until each of the texts has come; a process that does not print them in time is ended."""
    assert process.stdout is not None
    lines: list[str] = []
    end = threading.Timer(60, process.kill)
    end.start()
    while not all(any(text in line for line in lines) for text in texts):
        line = process.stdout.readline()
        assert line, f"the stream ended after {lines}"
        lines.append(line)
    end.cancel()
    return lines
