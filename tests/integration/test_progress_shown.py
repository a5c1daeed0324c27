"""Progress notes of a running turn, as `send --wait` and `chat` show them: while it runs, and beside the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

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
