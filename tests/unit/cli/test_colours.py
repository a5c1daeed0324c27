"""States have colours on a terminal and nowhere else, and only words of ours have one."""

import io

import pytest
from rich.console import Console

from daemon.cli.colours import state_style
from daemon.cli.present import pairs, table
from tests.support.command_line import CommandLine

RED, GREEN = "\x1b[31m", "\x1b[32m"


def printed(width: int, *, terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    rows = [("echo/a", "quarantined", "failed"), ("echo/a-session-with-a-longer-name", "working", "x")]
    console.print(table("Sessions", ("session", "state", "why"), rows))
    pairs(console, {"session": "failed", "state": "quarantined"})
    return out.getvalue()


@pytest.mark.parametrize("width", [120, 24])
def test_a_state_has_its_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(width)
    assert text.count(f"{RED}quarantined") == 2
    assert f"{GREEN}working" in text
    assert f"{RED}failed" not in text, "prose and names that read like a state stay as they are"


@pytest.mark.parametrize("width", [120, 24])
def test_no_color_and_a_pipe_print_none(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    assert "\x1b" not in printed(width, terminal=False)
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(width)
    assert RED not in text
    assert GREEN not in text


def test_no_command_prints_colour_in_a_pipe(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for command in (("status",), ("session", "list"), ("run", "list"), ("top", "--once")):
        assert "\x1b" not in cli(*command, "--pretty").out


def test_a_stale_run_is_yellow_and_an_unknown_word_is_plain() -> None:
    assert state_style("status", "running (stale: listed as waiting; confidence high)") == "yellow"
    assert state_style("status", "stale nonsense") == ""
    assert state_style("text", "failed") == ""
