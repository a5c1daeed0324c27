"""Formats output as text: tables, local times with ages, and agents' text made safe for the terminal.

Every cell, field and line goes through `one_line`; only `say_block` prints text that has lines of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TextIO, cast

from rich.console import Console
from rich.text import Text

from daemon.cli.colours import state_style
from daemon.cli.listing import Listing, named_lines
from daemon.cli.output import Output
from daemon.core.printable import block, one_line
from daemon.core.short_ids import shortened

WIDE: Final = 10_000  # cells; a row has a few hundred
_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))
_IDS: Final = ("incarnation", "container_id", "message_out_id")  # in the details of events


def make_console(*, wide: bool = False) -> Console:
    """Return a console on standard output, without markup and highlighting: text is never a command.

    `wide`: every row of a table is one line, however wide.
    """
    output = cast("TextIO", Output())
    width = WIDE if wide else None
    return Console(file=output, markup=False, highlight=False, emoji=False, soft_wrap=False, width=width)


def say(console: Console, *lines: object) -> None:
    """Print sentences, on a terminal wrapped at words; further lines are indented as the first one is.

    In a pipe a sentence is one line, for `grep`.
    """
    if not console.is_terminal:
        return say_whole(console, *lines)
    for line in lines:
        text = one_line(line)
        words = text.lstrip(" ").removeprefix("- ")
        say_wrapped(console, text.removesuffix(words), words)
    return None


def say_whole(console: Console, *lines: object) -> None:
    """Print lines that are copied or read by programs: one for each argument, however wide it is."""
    for line in lines:
        console.print(Text(one_line(line)), soft_wrap=True)


def say_block(console: Console, text: object, first: str = "", rest: str = "    ") -> None:
    """Print a body of text, each line marked so that none looks like one of ours."""
    for line in block(text, first, rest):
        console.print(Text(line), soft_wrap=True)


def age(milliseconds: int | None) -> str:
    """Return a duration in milliseconds as `3 min` or `2 d`; `-` for None."""
    if milliseconds is None:
        return "-"
    for size, unit in _UNITS:
        if milliseconds >= size:
            return f"{milliseconds // size} {unit}"
    return f"{max(0, milliseconds)} ms"


def short_ids(console: Console, identities: Sequence[str]) -> list[str]:
    """Return the ids of a table in their short forms, which every command takes; whole ones where the form is wide."""
    whole = [str(one) for one in identities]
    return whole if console.width >= WIDE else shortened(whole)


def duration(seconds: float | None) -> str:
    """Return a retention time as text: `30 d`, or `forever` for None."""
    return "forever" if seconds is None else age(int(seconds * 1000))


def pruned(found: Sequence[Mapping[str, Any]], now_ms: int) -> str:
    """Format what retention took: `120 messages, 118 receipts; last 2026-11-21 02:20:32 (3 min ago)`."""
    last = max((one["at"] for one in found), default=None)
    rows = ", ".join(f"{one['rows']} {one['what']}" for one in found)
    return f"{rows}; last {when(last, now_ms)}"


def when(epoch_ms: int | None, now_ms: int) -> str:
    """Return the local time and how long ago (or ahead) it is: `2026-11-21 02:20:32 (3 min ago)`."""
    if epoch_ms is None:
        return "-"
    try:
        moment = datetime.fromtimestamp(epoch_ms / 1000).astimezone()
    except (OverflowError, OSError, ValueError):
        return one_line(epoch_ms)
    distance = now_ms - epoch_ms
    relation = f"{age(distance)} ago" if distance >= 0 else f"in {age(-distance)}"
    return f"{moment:%Y-%m-%d %H:%M:%S} ({relation})"


def moment(epoch_ms: int | None, since_ms: int | None) -> str:
    """Return the local time to the millisecond, and how long after a first one it is: `02:20:32.123 (+153 ms)`."""
    if epoch_ms is None:
        return "-"
    try:
        local = datetime.fromtimestamp(epoch_ms / 1000).astimezone()
    except (OverflowError, OSError, ValueError):
        return one_line(epoch_ms)
    later = f" (+{age(epoch_ms - since_ms)})" if since_ms is not None else ""
    return f"{local:%Y-%m-%d %H:%M:%S}.{epoch_ms % 1000:03d}{later}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Listing:
    """Return a table of one-line cells that fits the console's width without breaking a word."""
    return Listing(title, columns, rows)


def pairs(console: Console, values: Mapping[str, object]) -> None:
    """Print names and values, one a line; a value that is wider than the console goes on below itself."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        shown = "-" if value is None else value
        for line in named_lines(one_line(f"{name:<{width}}  "), one_line(shown), console.width, fold=False):
            line.stylize(state_style(name, str(shown)), width + 2)
            console.print(line, soft_wrap=True)


def say_wrapped(console: Console, first: str, text: object) -> None:
    """Print `first` and a sentence, wrapped at words; further lines are indented as far as the sentence."""
    for line in named_lines(first, one_line(text), console.width, fold=False):
        console.print(line, soft_wrap=True)


def usage_text(usage: Mapping[str, Any] | None) -> str | None:
    """Return what an agent says that it used, on one line; None when it did not say."""
    if not usage:
        return None
    parts = [
        f"{count} {name}"
        for key, name in (("input_tokens", "tokens in"), ("output_tokens", "out"), ("cached_tokens", "cached"))
        if (count := usage.get(key)) is not None
    ]
    if usage.get("cost") is not None:
        parts.append(f"{usage['cost']:.4f} {usage.get('currency')}")
    return ", ".join(parts)


def briefs(console: Console, details: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Return each event's detail on one line, with ids in their short forms; with whole ones where the form is wide."""
    found = list(dict.fromkeys(str(one[name]) for one in details if one for name in _IDS if one.get(name)))
    cut = 64 if console.width >= WIDE else 12  # an engine's own id, as its tools cut it
    short = {
        whole: shown[:cut] if len(whole) == 64 else shown
        for whole, shown in zip(found, short_ids(console, found), strict=True)
    }
    return [
        brief({name: short.get(str(value), value) if name in _IDS else value for name, value in (one or {}).items()})
        for one in details
    ]


def brief(detail: Mapping[str, Any] | None) -> str:
    """Return an event's detail on one line."""
    if not detail:
        return ""
    return ", ".join(
        f"{name}={value if isinstance(value, str | int | float) else json.dumps(value, default=str)}"
        for name, value in detail.items()
        if value is not None
    )


Printer = Callable[[Console], None]
