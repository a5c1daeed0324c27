"""`q` ends a screen, another key does not, and the terminal is afterwards as it was."""

import io
import os
import pty
import sys
import termios
from collections.abc import Generator

import pytest

from daemon.cli.keys import quit_key


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[int, int]]:
    """(the person's end, the program's end)."""
    person, program = pty.openpty()
    with os.fdopen(program, "r", closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield person, program
    os.close(person)
    os.close(program)


@pytest.mark.parametrize(("typed", "ended"), [(b"q", True), (b"xQ", True), (b"\x04", True), (b"x", False)])
def test_a_key(terminal: tuple[int, int], typed: bytes, ended: bool) -> None:
    person, program = terminal
    before = termios.tcgetattr(program)
    with quit_key() as pressed:
        os.write(person, typed)
        assert pressed(30.0 if ended else 0.05) is ended
    assert termios.tcgetattr(program) == before


def test_without_a_terminal_it_only_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("q"))
    with quit_key() as pressed:
        assert pressed(0.001) is False
