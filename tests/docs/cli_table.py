"""The table of commands in docs/cli.md, made from their summaries. `python -m tests.docs.cli_table` rewrites it."""

from pathlib import Path
from typing import Any, Final

from daemon.cli.catalogue import COMMANDS
from daemon.cli.main import command_tree

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BEGIN: Final = "<!-- commands -->\n"
END: Final = "<!-- /commands -->"
GLOBAL: Final = frozenset(
    {"--json", "--no-json", "--pretty", "--output", "-o", "--config", "--data", "--no-pager", "--debug", "--help", "-h"}
)


def leaves() -> dict[str, Any]:
    """Return every command by its path, such as `session kill`."""
    root: Any = command_tree()
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        children = getattr(command, "commands", None) or {"": command}
        found |= {f"{name} {child}".strip(): leaf for child, leaf in children.items()}
    return found


def table() -> str:
    """Return one table in Markdown for each section of `clawbus --help`: commands, those below them, and what they are for."""
    root: Any = command_tree()
    lines: list[str] = []
    section = ""
    for name, entry in COMMANDS.items():
        if entry.section != section:
            section = entry.section
            lines += ["", f"### {section}", "", "| command | what it is for |", "| --- | --- |"]
        below = ", ".join(getattr(root.commands[name], "commands", ()))
        lines.append(f"| `{name}` {below} | {entry.summary.rstrip('.')} |".replace("  ", " "))
    return "\n".join([*lines[1:], ""])


def with_table(page: str) -> str:
    """Return the page with the table put between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
