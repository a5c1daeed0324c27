"""The list of log events in docs/log-events.md, made from daemon/cli/log_events.toml.

`python -m tests.docs.log_events` rewrites it.
"""

import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "log-events.md"
EVENTS: Final[dict[str, dict[str, str]]] = tomllib.loads(
    (ROOT / "daemon/cli/log_events.toml").read_text(encoding="utf-8")
)
BEGIN: Final = "<!-- log-events -->\n"
END: Final = "<!-- /log-events -->"


def names() -> list[str]:
    """Return the names of all events that are explained."""
    return [name for rows in EVENTS.values() for key in rows for name in key.split(", ")]


def table() -> str:
    """Return the names in Markdown, a paragraph for each area."""
    areas = {area: [f"`{name}`" for key in rows for name in key.split(", ")] for area, rows in EVENTS.items()}
    return "\n\n".join(f"**{area}**: {', '.join(events)}." for area, events in areas.items()) + "\n"


def with_table(page: str) -> str:
    """Return the page with the list put between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
