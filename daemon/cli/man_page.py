"""The manual page, made from the same help texts that the commands print. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def man_page(version: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return the page in roff: each command's path with its help, line by line."""
    lines = [
        f'.TH CLAWBUS 1 "" "clawbus {_escaped(version)}"', ".SH NAME",
        "clawbus \\- message bus between a host and its agent containers", ".SH COMMANDS",
    ]  # fmt: skip
    for path, text in sections:
        lines += [f'.SS "{_escaped(path)}"', ".nf", *_body(text.splitlines()), ".fi"]
    return "\n".join(lines)


def _body(lines: Sequence[str]) -> list[str]:
    return [f"\\&{_escaped(line)}" for line in lines]


def _escaped(text: str) -> str:
    """Return a text in which nothing is a request, an escape or a typographic dash."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
