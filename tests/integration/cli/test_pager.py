"""Long text on a terminal goes to a pager, and a pager that is missing or is left early fails nothing."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

LINES = 40  # of the terminal


def on_terminal(*arguments: str, lines: int = LINES, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of this height. Return its exit code and what it printed."""
    person, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 100, 0, 0))
    known = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PAGER", "CLAWBUS_PAGER", "LESS", "LINES", "COLUMNS")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", *arguments],
        stdin=terminal, stdout=terminal, stderr=terminal, env={**known, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    while True:
        try:
            part = os.read(person, 65536)
        except OSError:  # the last writer has closed the terminal
            break
        if not part:
            break
        seen += part
    os.close(person)
    return process.wait(60), seen.decode(errors="replace")


@pytest.fixture
def pager(tmp_path: Path) -> Path:
    """A pager that keeps what it is given, and says so."""
    path = tmp_path / "a pager"
    path.write_text(f'#!/bin/sh\n{{ echo "$LESS $*"; cat; }} > "{tmp_path}/shown"\necho paged\n')
    path.chmod(0o755)
    return path


def shown(pager: Path) -> str | None:
    path = pager.with_name("shown")
    return path.read_text() if path.exists() else None


def test_long_text_goes_to_the_pager_with_its_own_options(pager: Path) -> None:
    code, seen = on_terminal("help", CLAWBUS_PAGER=f"'{pager}' --plain", PAGER="false")
    assert (code, seen.split()) == (0, ["paged"])
    options, _, text = (shown(pager) or "").partition("\n")
    assert options == "FRX --plain"
    assert "Usage: clawbus" in text
    assert text.rstrip().endswith(on_terminal("help", "--no-pager")[1].replace("\r\n", "\n").rstrip()[-200:])


def test_the_user_s_own_less_options_stay(pager: Path) -> None:
    assert on_terminal("help", PAGER=f"'{pager}'", LESS="-S")[0] == 0
    assert (shown(pager) or "").startswith("-S")


@pytest.mark.parametrize(
    "arguments",
    [("--no-pager", "help"), ("help", "--no-pager"), ("version",), ("help", "--json"), ("help", "UNKNOWN_AGENT")],
)
def test_text_that_fits_and_text_that_is_to_be_printed_does_not(pager: Path, arguments: tuple[str, ...]) -> None:
    code, seen = on_terminal(*arguments, PAGER=f"'{pager}'")
    assert (code, shown(pager)) == (0, None)
    assert seen.strip() != ""


@pytest.mark.parametrize(
    "named", ["", "cat", "/nowhere/less -R", "'open quote", "env /nowhere/less"]
)  # fmt: skip
def test_without_a_pager_it_is_printed_directly(named: str) -> None:
    code, seen = on_terminal("help", CLAWBUS_PAGER=named)
    assert code == 0
    assert "Usage: clawbus" in seen
    assert "Traceback" not in seen


@pytest.mark.parametrize("named", ["head -n 1", "true", "false", "sh -c 'kill -9 $$'"])
def test_a_pager_that_is_left_early_fails_nothing(named: str) -> None:
    code, seen = on_terminal("help", "--man", CLAWBUS_PAGER=named)
    assert code == 0
    assert "Traceback" not in seen
    assert "error" not in seen
    assert len(seen.splitlines()) <= 2


def test_a_pipe_and_a_dumb_terminal_get_no_pager(pager: Path) -> None:
    named = {**os.environ, "TERM": "xterm", "PAGER": f"'{pager}'"}
    piped = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "help"], env=named, capture_output=True, text=True, check=True
    )
    assert "Usage: clawbus" in piped.stdout
    assert on_terminal("help", PAGER=f"'{pager}'", TERM="dumb")[0] == 0
    assert shown(pager) is None
