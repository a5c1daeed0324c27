"""Time as the contract has it: integer epoch milliseconds inside, UTC ISO-8601 text in shared columns.

Reading is tolerant because other runners write these columns too; comparing is always by instant, never by string.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MS
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MS


def to_text(epoch_ms: int) -> str:
    """Return epoch milliseconds as `2026-11-21T02:20:32.123Z`. Raise OverflowError outside years 1 to 9999."""
    # Not strftime: its %Y does not pad a year before 1000 everywhere, and such a text could not be read back.
    moment = _EPOCH.replace(tzinfo=None) + epoch_ms * _MS
    return moment.isoformat(timespec="milliseconds") + "Z"


def file_stamp(epoch_ms: int) -> str:
    """Return `20261121T022032Z` for epoch milliseconds: a whole second, for names of files that are put aside."""
    return (_EPOCH + epoch_ms * _MS).strftime("%Y%m%dT%H%M%SZ")


def from_text(text: object) -> int | None:
    """Return the epoch milliseconds of a text instant, or None if it is not an instant.

    No zone means UTC (SQLite's datetime('now') writes none); 'T' or space; 'Z' or an offset. Never local time.
    An offset may lead out of the years 1 to 9999: then it is the nearest instant in them, so that it can be written again.
    """
    if not isinstance(text, str) or len(text) > 64:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - _EPOCH) // _MS, _FIRST), _LAST)
