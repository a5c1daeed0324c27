"""The manual page, made from the same help texts that the commands print. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daemon.cli.catalogue import COMMANDS


def man_page(version: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return the page in roff: each command's path with its help, line by line."""
    lines = [
        f'.TH CLAWBUS 1 "" "clawbus {_escaped(version)}"', ".SH NAME",
        "clawbus \\- message bus between a host and its agent containers", ".SH COMMANDS",
    ]  # fmt: skip
    for path, text in sections:
        lines += [f'.SS "{_escaped(path)}"', ".nf", *_body(text.splitlines()), ".fi"]
    return "\n".join(lines) + "\n"


def short_page(version: str) -> str:
    """Return a page with one sentence for each command, for a wheel that is built where the commands cannot be imported."""
    lines = [f"{name}\n    {entry.summary}\n" for name, entry in COMMANDS.items()]
    end = "\n`clawbus help --man` prints the page with every command and option."
    return man_page(version, [("clawbus", "\n".join(lines) + end)])


def _body(lines: Sequence[str]) -> list[str]:
    """Return lines that roff prints as they are: after `\\&`, a leading dot is not a request."""
    return [f"\\&{_escaped(line)}" for line in lines]


def _escaped(text: str) -> str:
    """Return a text in which roff finds no escape, and prints dashes and quotes as ASCII."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
