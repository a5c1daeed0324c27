"""Times and durations as options take them: `90s`, `15m`, `2h`, `3d`, or an instant."""

from __future__ import annotations

import re
from typing import Final

import typer

from schema.instants import from_text

_SPAN: Final = re.compile(r"(\d{1,9})\s*(ms|s|m|min|h|d)\Z")
_UNITS: Final = (("ms", 1), ("s", 1000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000))


def span_ms(text: str) -> int:
    """Return a span such as `15m` in milliseconds. Raise a usage error."""
    found = _SPAN.match(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write it like 90s, 15m (or 15min), 2h or 3d.")
    return int(found.group(1)) * dict(_UNITS)[found.group(2)]


def span_text(milliseconds: int) -> str:
    """Format milliseconds so that `span_ms` reads the same value."""
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def since_ms(text: str, now_ms: int) -> int:
    """Parse an instant (`2026-11-21T02:00Z`) or an age (`2h`) to epoch milliseconds. Raise a usage error."""
    instant = from_text(text)
    if instant is not None:
        return instant
    try:
        return max(now_ms - span_ms(text), 0)  # nothing is older than 1970, and no calendar reaches back for ever
    except typer.BadParameter:
        message = f"{text!r} is not a time; write how long ago (90s, 15m, 2h, 3d) or an instant (2026-11-21T02:00Z)."
        raise typer.BadParameter(message) from None
