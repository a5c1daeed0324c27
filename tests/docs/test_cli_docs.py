"""docs/cli.md names every command and every option of the live command line, and no others."""

import re
from pathlib import Path
from typing import Any, Final

from daemon.cli.main import command_tree
from tests.docs.error_codes import error_classes

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
GLOBAL: Final = frozenset(
    {"--json", "--no-json", "--pretty", "--output", "-o", "--config", "--data", "--debug", "--help", "-h"}
)


def leaves() -> dict[str, Any]:
    root: Any = command_tree()
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        children = getattr(command, "commands", None) or {"": command}
        found |= {f"{name} {child}".strip(): leaf for child, leaf in children.items()}
    return found


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def command_sections() -> dict[str, str]:
    """By the command's path: the title without what stands in capitals or brackets."""
    found = {title: text for title, text in sections().items() if title.startswith("clawbus ")}
    return {
        " ".join(word for word in title.split()[1:] if word.islower() and not word.startswith("[")): text
        for title, text in found.items()
    }


def option_rows(text: str) -> set[str]:
    """Return every option in the first cells of a section's tables."""
    return {name for cell in first_cells(text) for name in names(cell)}


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| (`-.+?) \| ", text, re.MULTILINE)


def names(text: str) -> list[str]:
    return re.findall(r"`(--?[a-z-]+)", text)


def documented_options(text: str) -> set[str]:
    """Return the options of a section's tables, and those of its list after `Options:`, up to `Errors:`.

    A shared option in the list stands for its short form too, which the table of shared options has.
    """
    shared = {names(cell)[0]: set(names(cell)) for cell in first_cells(sections()["Shared options and errors"])}
    listed = re.findall(r"Options: (.+?)(?=Errors: |\n\n|\Z)", text, re.DOTALL)
    return option_rows(text).union(*(shared.get(name, {name}) for part in listed for name in names(part)))


def options_of(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_command_has_a_section_and_no_section_lacks_its_command() -> None:
    assert set(command_sections()) == set(leaves())


def test_every_section_lists_exactly_the_command_s_options() -> None:
    documented = {path: documented_options(text) for path, text in command_sections().items()}
    live = {path: options_of(command) - GLOBAL for path, command in leaves().items()}
    assert documented == live


def test_the_global_options_are_listed_and_every_command_takes_them() -> None:
    assert option_rows(sections()["Every command"]) == GLOBAL
    for path, command in leaves().items():
        assert options_of(command) >= GLOBAL - {"--help", "-h"}, path


def test_the_codes_it_names_exist() -> None:
    """A code is an error class's, or one that the command line gives itself."""
    named = {code for line in re.findall(r"Errors: .*(?:\n.+)*", PAGE) for code in re.findall(r"`([A-Z_]{5,})`", line)}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "daemon" / "cli").glob("*.py"))
    known = {one.code for one in error_classes()} | set(re.findall(r'Problem\(\s*"([A-Z_]+)"', sources))
    assert named
    assert named <= known


def test_examples_in_help_keep_their_lines() -> None:
    """`\\b` before a paragraph is a backspace to click, and must not be printed."""
    for path, command in leaves().items():
        text = command.help or ""
        assert "\\b" not in text, path
        assert "Example:" not in text or "\b\nExample:" in text, path
