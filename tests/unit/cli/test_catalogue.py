"""The list of commands, which imports no command, says what the commands themselves say."""

from pathlib import Path
from typing import Any

import daemon.cli
from daemon.cli.catalogue import COMMANDS
from daemon.cli.main import command_tree


def test_every_line_is_the_command_s_own_first_sentence() -> None:
    tree: Any = command_tree()
    assert {name: one.summary for name, one in COMMANDS.items()} == {
        name: command.get_short_help_str(limit=1000) for name, command in tree.commands.items()
    }


def test_every_module_that_registers_a_command_has_a_line() -> None:
    folder = Path(daemon.cli.__path__[0])
    registering = {path.stem for path in folder.glob("*.py") if "def register(app" in path.read_text(encoding="utf-8")}
    assert registering == {entry.module for entry in COMMANDS.values()}
