"""Parses and writes the values in Inngest's columns: ULIDs as blobs or text, instants in four text forms, status codes.

Pure: no clock, no database. Reading is tolerant; writing imitates a neighbouring value, because the server
compares these texts as texts. Facts: inngest/inngest, pkg/enums/run_status.go and step_status.go, pkg/db/run_status.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Final

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SWEPT_KEY: Final = "clawbus-sweep-"  # how the idempotency key of a history row that a sweep writes begins
ZERO_ULID: Final = bytes(16)  # how an absent batch is stored
# Go's Time.String(), RFC 3339, and SQLite's own; a monotonic reading (` m=+0.12`) may follow.
_INSTANT: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)(?P<gap>[ T])(?P<time>\d\d:\d\d:\d\d)(?P<fraction>\.\d{1,9})?"
    r"(?P<zone>(?: ?(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d))|Z)?(?P<name> [A-Za-z0-9+-]{1,6})?(?P<mono> m=.*)?\Z"
)
_GO_LIKE: Final = "2026-01-01 00:00:00.001 +0000 UTC"


class Status(StrEnum):
    """A run's status. The first five are terminal."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    OVERFLOWED = "overflowed"
    SKIPPED = "skipped"
    RUNNING = "running"
    SCHEDULED = "scheduled"
    UNKNOWN = "unknown"

    @property
    def terminal(self) -> bool:
        """Whether a run of this status has ended."""
        return self not in (Status.RUNNING, Status.SCHEDULED, Status.UNKNOWN)


CODES: Final[Mapping[int, Status]] = {
    50: Status.OVERFLOWED, 100: Status.SCHEDULED, 200: Status.RUNNING, 300: Status.COMPLETED, 400: Status.FAILED,
    500: Status.CANCELLED, 600: Status.SKIPPED,
}  # fmt: skip
RAW: Final[Mapping[int, Status]] = {
    0: Status.RUNNING, 1: Status.COMPLETED, 2: Status.FAILED, 3: Status.CANCELLED, 4: Status.OVERFLOWED,
    5: Status.SCHEDULED, 6: Status.UNKNOWN, 7: Status.SKIPPED,
}  # fmt: skip
TERMINAL_HISTORY: Final[Mapping[str, Status]] = {
    "FunctionCompleted": Status.COMPLETED,
    "FunctionFailed": Status.FAILED,
    "FunctionCancelled": Status.CANCELLED,
}
_SPAN: Final[Mapping[str, Status]] = {
    "completed": Status.COMPLETED, "failed": Status.FAILED, "errored": Status.FAILED, "cancelled": Status.CANCELLED,
    "timedout": Status.CANCELLED, "skipped": Status.SKIPPED, "scheduled": Status.SCHEDULED, "queued": Status.SCHEDULED,
}  # fmt: skip


def status_of_code(code: object) -> Status:
    """Return the status of a `trace_runs.status`: codes 50 to 600, or the raw enum 0 to 7 of newer servers."""
    if not isinstance(code, int):
        return Status.UNKNOWN
    return CODES.get(code) or RAW.get(code, Status.UNKNOWN)


def code_like(status: Status, old: int) -> int:
    """Return the code of a status in the numbering of the row's old code."""
    table = CODES if old in CODES else RAW
    return next(code for code, one in table.items() if one is status)


def status_of_span(text: object) -> Status:
    """Return the status of a run span: a step status by name, or a run's code. An unknown status counts as running."""
    if text is None or text == "":
        return Status.RUNNING
    word = str(text)
    if word.isdecimal():
        return CODES.get(int(word), Status.RUNNING)
    return _SPAN.get(word.lower(), Status.RUNNING)


def status_of_finish(text: object) -> Status:
    """Return the status of a `function_finishes.status`; early servers wrote the history's type there."""
    word = str(text or "").removeprefix("Function").lower()
    return next((one for one in Status if one.value == word), Status.UNKNOWN)


def run_key(value: object) -> str | None:
    """Return the 26-character text of a ULID given as 16 bytes, text, or text stored as bytes, or None."""
    if isinstance(value, bytes):
        if len(value) == 16:
            number = int.from_bytes(value, "big")
            return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))
        try:
            value = value.decode("ascii")
        except UnicodeDecodeError:
            return None
    if not isinstance(value, str):
        return None
    text = value.strip().upper()
    return text if _ULID.match(text) else None


def run_forms(key: str) -> tuple[bytes, str, bytes]:
    """Return every form that a ULID may have in a column: 16 bytes, text, text as bytes."""
    return ulid_bytes(key), key, key.encode()


def ulid_bytes(key: str) -> bytes:
    """Return the 16 bytes of a ULID's text."""
    number = 0
    for character in key:
        number = number << 5 | _CROCKFORD.index(character)
    return (number & (2**128 - 1)).to_bytes(16, "big")


def ulid_ms(key: str) -> int:
    """Return the time of a ULID in epoch milliseconds."""
    return int.from_bytes(ulid_bytes(key)[:6], "big")


def instant(value: object) -> int | None:
    """Return the epoch milliseconds of a number or of a text instant; None for neither, and for zero, which means "not yet"."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _milliseconds(value)
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text.isdecimal():
        return _milliseconds(int(text))
    found = _INSTANT.match(text)
    moment = _moment(found) if found is not None else None
    return (moment - _EPOCH) // timedelta(milliseconds=1) if moment is not None else None


def instant_text(epoch_ms: int, like: str | None) -> str:
    """Format an instant like another one (UTC in Go's form without one), so that texts sort as times."""
    found = _INSTANT.match(like.strip()) if like is not None else None
    if found is None or _moment(found) is None:
        return instant_text(epoch_ms, _GO_LIKE)
    moment = (_EPOCH + timedelta(milliseconds=epoch_ms)).astimezone(_zone(found))
    fraction = f".{moment.microsecond // 1000:03d}".rstrip("0").rstrip(".")
    zone, name = found["zone"] or "", found["name"] or ""
    return f"{moment:%Y-%m-%d}{found['gap']}{moment:%H:%M:%S}{fraction}{zone}{name}"


def _milliseconds(number: float) -> int | None:
    """Return epoch milliseconds. The number's size tells seconds, milliseconds, microseconds and nanoseconds apart."""
    if not 0 < number < 1e20:
        return None
    for limit, factor in ((1e11, 0.001), (1e14, 1), (1e17, 1_000)):
        if number < limit:
            return int(number / factor)
    return int(number // 1_000_000)


def _moment(found: re.Match[str]) -> datetime | None:
    # Python knows microseconds; Go writes up to nine digits.
    fraction = (found["fraction"] or "")[:7]
    try:
        moment = datetime.fromisoformat(f"{found['day']} {found['time']}{fraction.ljust(7, '0') if fraction else ''}")
    except ValueError:
        return None
    return moment.replace(tzinfo=_zone(found))


def _zone(found: re.Match[str]) -> timezone:
    """Return the zone of a text instant. Without one it is UTC: SQLite's datetime('now') writes none."""
    if found["sign"] is None:
        return UTC
    offset = timedelta(hours=int(found["hours"]), minutes=int(found["minutes"]))
    return timezone(-offset if found["sign"] == "-" else offset) if offset < timedelta(hours=24) else UTC
