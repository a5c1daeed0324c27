"""How things look to people: tables, local times with ages, and text from agents that cannot drive the terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Whole escape sequences (CSI, OSC and friends, two-byte ones) go; whatever control character is left is spelled out.
_SEQUENCE: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)"
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))


def clean(text: object) -> str:
    """Text from anywhere, safe on a terminal. Tabs and newlines stay."""
    return _CONTROL.sub(_spelled, _SEQUENCE.sub("", str(text)))


def _spelled(found: re.Match[str]) -> str:
    number = ord(found.group())
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def make_console(stream: TextIO | None = None) -> Console:
    """A console on standard output (or `stream`). Markup and highlighting are off: text is never a command."""
    return Console(file=stream or sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=False)


def say(console: Console, *lines: object) -> None:
    """Lines of text, cleaned, not wrapped."""
    for line in lines:
        console.print(Text(clean(line)), soft_wrap=True)


def age(milliseconds: int | None) -> str:
    """`3 min`, `2 d`; `-` for none."""
    if milliseconds is None:
        return "-"
    for size, unit in _UNITS:
        if milliseconds >= size:
            return f"{milliseconds // size} {unit}"
    return f"{max(0, milliseconds)} ms"


def duration(seconds: float | None) -> str:
    """How long something is kept: `30 d`; `for ever` for none."""
    return "for ever" if seconds is None else age(int(seconds * 1000))


def pruned(found: Sequence[Mapping[str, Any]], now_ms: int) -> str:
    """What retention took: `120 messages, 118 receipts; last 2026-11-21 02:20:32 (3 min ago)`."""
    last = max((one["at"] for one in found), default=None)
    rows = ", ".join(f"{one['rows']} {one['what']}" for one in found)
    return f"{rows}; last {when(last, now_ms)}"


def when(epoch_ms: int | None, now_ms: int) -> str:
    """Local time and how long ago (or ahead): `2026-11-21 02:20:32 (3 min ago)`."""
    if epoch_ms is None:
        return "-"
    try:
        moment = datetime.fromtimestamp(epoch_ms / 1000).astimezone()
    except (OverflowError, OSError, ValueError):
        return clean(epoch_ms)
    distance = now_ms - epoch_ms
    relation = f"{age(distance)} ago" if distance >= 0 else f"in {age(-distance)}"
    return f"{moment:%Y-%m-%d %H:%M:%S} ({relation})"


def moment(epoch_ms: int | None, since_ms: int | None) -> str:
    """Local time to the millisecond, and how long after a first one: `02:20:32.123 (+153 ms)`."""
    if epoch_ms is None:
        return "-"
    try:
        local = datetime.fromtimestamp(epoch_ms / 1000).astimezone()
    except (OverflowError, OSError, ValueError):
        return clean(epoch_ms)
    later = f" (+{age(epoch_ms - since_ms)})" if since_ms is not None else ""
    return f"{local:%Y-%m-%d %H:%M:%S}.{epoch_ms % 1000:03d}{later}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of cleaned cells."""
    made = Table(title=Text(clean(title)), title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(clean("-" if cell is None else cell)) for cell in row))
    return made


def pairs(console: Console, values: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        say(console, f"{name:<{width}}  {'-' if value is None else value}")


def brief(detail: Mapping[str, Any] | None) -> str:
    """An event's detail on one line."""
    if not detail:
        return ""
    return ", ".join(
        f"{name}={value if isinstance(value, str | int | float) else json.dumps(value, default=str)}"
        for name, value in detail.items()
        if value is not None
    )


Printer = Callable[[Console], None]
