"""Log lines on a terminal have short ids; in a pipe and in the wide form whole ones, for programs. Agents' words are text."""

import io

import pytest
from rich.console import Console

from daemon.cli.event_lines import print_events
from daemon.cli.present import WIDE

ID, CONTAINER = "01M8FHSNAY52PJVXWFNW2C10N7", "c" * 64


@pytest.mark.parametrize(("terminal", "width", "whole"), [(True, 80, False), (False, 80, True), (True, WIDE, True)])
def test_ids_are_short_on_a_terminal(terminal: bool, width: int, whole: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    print_events(
        console, [{"event": "spawned", "incarnation": ID, "container_id": CONTAINER, "text": "chosen-id", "n": 1}]
    )
    said = out.getvalue()
    assert (ID in said, CONTAINER in said) == (whole, whole)
    for part in (ID[-8:], CONTAINER[:12], "chosen-id", "n=1"):
        assert part in said


@pytest.mark.parametrize("width", [40, 80])
def test_what_an_agent_says_is_shown_as_in_a_chat_on_a_line_that_the_terminal_wraps(width: int) -> None:
    out = io.StringIO()
    words = "reading the \x1b[31mreport " * 5
    events = [
        {"event": name, "timestamp": "2026-11-21T02:20:32.123Z", "level": "info", "agent": "a", "session": "s",
         "messages": [ID], "text": words}
        for name in ("agent_said", "agent_progress", "agent_stderr")
    ]  # fmt: skip
    print_events(Console(file=out, width=width, force_terminal=True, color_system=None), events)
    lines = out.getvalue().splitlines()
    assert [line.split()[3:6] for line in lines] == [
        ["*", "reading", "the"],
        ["...", "reading", "the"],
        ["|", "reading", "the"],
    ]
    assert all(line.split()[2] == "a/s" for line in lines)
    assert "\x1b" not in out.getvalue(), "a container's words are text, never an order to the terminal"
