"""docs/cli.md lists every command of the live command line, and its notes name only options and codes that exist."""

import re
from pathlib import Path
from typing import Any, Final

from tests.docs.cli_table import GLOBAL, leaves, with_table
from tests.docs.error_codes import error_classes

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| (`-.+?) \| ", text, re.MULTILINE)


def names(text: str) -> list[str]:
    return re.findall(r"`(--?[a-z-]+)", text)


def options_of(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def test_the_list_has_every_command() -> None:
    assert with_table(PAGE) == PAGE, "run: python -m tests.docs.cli_table"
    assert len(leaves()) > 50


def test_the_global_options_are_listed_and_every_command_takes_them() -> None:
    part = PAGE[PAGE.index("## Every command") : PAGE.index("## All commands")]
    assert {name for cell in first_cells(part) for name in names(cell)} == GLOBAL
    for path, command in leaves().items():
        assert options_of(command) >= GLOBAL - {"--help", "-h"}, path


def test_the_options_it_names_exist() -> None:
    live = {name for command in leaves().values() for name in options_of(command)}
    assert set(names(PAGE)) <= live | GLOBAL | {"--"}


def test_the_codes_it_names_exist() -> None:
    """A code is an error class's, or a text of the command line's own."""
    named = set(re.findall(r"`([A-Z]{2,}_[A-Z_]+)`", PAGE)) - {"CLAWBUS_OUTPUT"}
    files = [path for folder in ("cli", "inngest") for path in (ROOT / "daemon" / folder).glob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    known = {one.code for one in error_classes()} | set(re.findall(r'"([A-Z_]+)"', sources))
    assert named
    assert named <= known


def test_examples_in_help_keep_their_lines() -> None:
    """`\\b` before a paragraph is a backspace to click, and must not be printed."""
    for path, command in leaves().items():
        text = command.help or ""
        assert "\\b" not in text, path
        assert "Example:" not in text or "\b\nExample:" in text, path
