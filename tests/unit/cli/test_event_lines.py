"""Log lines on a terminal have short ids; in a pipe and in the wide form whole ones, for programs."""

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
