"""The table of commands in docs/cli.md, made from their help. `python -m tests.docs.cli_table` rewrites it."""

import re
from pathlib import Path
from typing import Any, Final

from daemon.cli.catalogue import COMMANDS
from daemon.cli.main import command_tree

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BEGIN: Final = "<!-- commands -->\n"
END: Final = "<!-- /commands -->"
GLOBAL: Final = frozenset(
    {"--json", "--no-json", "--pretty", "--output", "-o", "--config", "--data", "--debug", "--help", "-h"}
)
SHARED: Final = frozenset({"--agent", "--session", "--since", "--limit", "--reason"})  # the page explains them once


def leaves() -> dict[str, Any]:
    """Return every command by its path, such as `session kill`."""
    root: Any = command_tree()
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        children = getattr(command, "commands", None) or {"": command}
        found |= {f"{name} {child}".strip(): leaf for child, leaf in children.items()}
    return found


def table() -> str:
    """Return one table in Markdown for each section of `clawbus --help`: commands with arguments, sentence and options."""
    lines: list[str] = []
    section = ""
    for path, command in leaves().items():
        if (own := COMMANDS[path.partition(" ")[0]].section) != section:
            section = own
            lines += ["", f"### {section}", "", "| command | what it does, its options |", "| --- | --- |"]
        lines.append(f"| `{usage(path, command)}` | {what(command)} |")
    return "\n".join([*lines[1:], ""])


def usage(path: str, command: Any) -> str:
    """Return the command's path and the names of its arguments, in brackets where they may be left out."""
    names = [
        (parameter.metavar or parameter.name.upper(), parameter.required)
        for parameter in command.params
        if parameter.param_type_name == "argument"
    ]
    return " ".join([path, *(name if required or name[0] == "[" else f"[{name}]" for name, required in names)])


def what(command: Any) -> str:
    """Return the first sentence of the help, and the long names of its options, without the shared ones."""
    paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) (?=[A-Z`])", paragraph, maxsplit=1)[0]
    own = [
        f"`{parameter.opts[0]}`"
        for parameter in command.params
        if parameter.param_type_name == "option" and parameter.opts[0] not in GLOBAL | SHARED
    ]
    return " ".join([sentence, *own]).replace("|", "\\|")


def with_table(page: str) -> str:
    """Return the page with the table put between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
