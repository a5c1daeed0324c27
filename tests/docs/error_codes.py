"""The table of error codes in docs/error-codes.md, made from the classes. `python -m tests.docs.error_codes` rewrites it."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import container_runner
import daemon
import schema
from schema.errors import ClawbusError

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "error-codes.md"
BEGIN: Final = "<!-- error-codes -->\n"
END: Final = "<!-- /error-codes -->"


def error_classes() -> list[type[ClawbusError]]:
    """Every error class that ships, the root too; every module is imported, so that none is missed."""
    for package in (schema, daemon, container_runner):
        for module in modules(package):
            importlib.import_module(module)
    found = {ClawbusError}
    fresh = [ClawbusError]
    while fresh:
        known = {one for one in fresh.pop().__subclasses__() if one.__module__.partition(".")[0] != "tests"} - found
        found |= known
        fresh.extend(known)
    return sorted(found, key=lambda one: (one.code, one.__module__, one.__qualname__))


def modules(package: ModuleType) -> Iterator[str]:
    """Dotted names of a package's modules but `__main__`, whose import would run it."""
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not info.name.endswith(".__main__"):
            yield info.name


def table() -> str:
    """Markdown. Classes that share a code share a row; the one nearest to the root explains it.

    What to do is left out: every error prints its own hint, which knows the case.
    """
    rows: dict[str, str] = {}
    for one in sorted(error_classes(), key=lambda item: len(item.__mro__)):
        paragraph = (inspect.getdoc(one) or "").partition("\n\n")[0]
        rows.setdefault(one.code, first_sentence(" ".join(paragraph.split())))
    lines = ["| code | what happened |", "| --- | --- |"]
    lines += [f"| `{code}` | {cell(what)} |" for code, what in sorted(rows.items())]
    return "\n".join(lines) + "\n"


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop that a capital follows, without that stop."""
    return re.split(r"\.(?: (?=[A-Z`])|$)", text, maxsplit=1)[0]


def cell(text: str) -> str:
    """Text in a table's cell, without a docstring's mark-up."""
    return text.replace("``", "`").replace("|", "\\|")


def with_table(page: str) -> str:
    """The page with the table put between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
