"""The list of error codes in docs/error-codes.md and what `clawbus help CODE` says, made from the error classes and the pages.

`python -m tests.docs.error_codes` rewrites both.
"""

import importlib
import inspect
import json
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import container_runner
import daemon
import schema
from schema.errors import ClawbusError

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "error-codes.md"
DATA: Final = PAGE.parents[1] / "daemon" / "cli" / "error_codes.json"
# Codes that no error class has, by area: what happened, and what to do.
OTHERS: Final[dict[str, dict[str, list[str]]]] = tomllib.loads(
    (PAGE.parents[1] / "daemon" / "cli" / "explained.toml").read_text(encoding="utf-8")
)
AREAS: Final = (  # the beginning of a module's name, and what its codes are about
    ("daemon.core.errors", "Messages, people, channels, the daemon"),
    ("schema.", "Files and the host"),
    ("daemon.core.repair_errors", "Repairs and backups"),
    ("container_runner.providers.acp", "Agents over ACP"),
    ("container_runner.", "Agents and their runner"),
    ("daemon.channels.", "Answers to webhooks"),
    ("daemon.egress.", "The gate"),
    ("daemon.core.deploy_errors", "Releases and deploys"),
    ("daemon.inngest.", "`clawbus inngest`"),
)
BEGIN: Final = "<!-- error-codes -->\n"
END: Final = "<!-- /error-codes -->"
_CELL: Final = r" ((?:[^|\n]|\\\|)+) \|"
_STATE: Final = r"^\| ([a-z_]+) \|" + f"{_CELL}{_CELL}$"


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


def explained() -> dict[str, tuple[str, str]]:
    """Return what happened and what to do, by code. Of classes that share a code the one nearest to the root explains it."""
    found: dict[str, tuple[str, str]] = {}
    for one in sorted(error_classes(), key=lambda item: len(item.__mro__)):
        paragraph = (inspect.getdoc(one) or "").partition("\n\n")[0]
        found.setdefault(one.code, (" ".join(paragraph.split()).replace("``", "`"), one.default_hint))
    return dict(sorted(found.items()))


def table() -> str:
    """Return the codes in Markdown, a line for each area. `clawbus help CODE` has the texts."""
    codes: dict[str, set[str]] = {}
    for one in error_classes():
        codes.setdefault(next(title for module, title in AREAS if one.__module__.startswith(module)), set()).add(
            one.code
        )
    titles = dict.fromkeys(title for _, title in AREAS)
    lists = [(title, sorted(codes[title])) for title in titles]
    lists += [(title, [code for key in rows for code in key.split(", ")]) for title, rows in OTHERS.items()]
    return "\n\n".join(f"**{title}**: {', '.join(f'`{code}`' for code in names)}." for title, names in lists) + "\n"


def data() -> str:
    """Return the JSON of `clawbus help CODE`: the classes' codes, those of explained.toml, states."""
    classes = explained()
    found: dict[str, list[str]] = {code: list(texts) for code, texts in classes.items()}
    rows = [(key, *texts) for area in OTHERS.values() for key, texts in area.items()]
    for codes, what, hint in rows:
        for code in re.findall(r"[A-Z_]+", codes):
            before = found.setdefault(code, [sentence(what), sentence(hint)])
            if code not in classes and sentence(what) != before[0]:  # one code of answers and of events
                hints = dict.fromkeys(text for text in (before[1], sentence(hint)) if text)
                found[code] = [f"{before[0]} Or: {sentence(what)}", " Or: ".join(hints)]
    for state, what, hint in states((PAGE.parent / "reference.md").read_text(encoding="utf-8")):
        found.setdefault(state.upper(), [sentence(what), sentence(hint)])
    return json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n"


def states(page: str) -> list[tuple[str, str, str]]:
    """Return the rows (state, meaning, what to do) below the headings "States of ..."; a word may have several."""
    sections = re.findall(r"^## States of .*?(?=^##? |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    rows = [row for one in sections for row in re.findall(_STATE, one, flags=re.MULTILINE)]
    return [row for row in rows if row[0] not in ("state", "status")]


def sentence(cell: str) -> str:
    """Return a cell of a table as a sentence for a terminal: a link is its text, with the page if it leads to another."""
    text = re.sub(r"\[([^]]+)\]\((\w[\w-]*\.md)[^)]*\)", r"\1 (docs/\2)", cell.strip())
    text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text).replace("\\|", "|")
    return f"{text[0].upper()}{text[1:]}".rstrip(".") + "." if text and text != "nothing" else ""


def with_table(page: str) -> str:
    """The page with the table put between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    DATA.write_text(data(), encoding="utf-8")
