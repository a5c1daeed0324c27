"""Computes when a failed step is retried: a run that waits for that is silent but healthy.

The server's table is in its pkg/backoff: 15 s up to 2 h, and up to 30 s of jitter. An application may ask for another time
with a Retry-After, which the server records among the response's headers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from sqlite3 import Row
from typing import Any, Final, cast

from daemon.inngest.values import instant

_SECOND: Final = 1000
_MINUTE: Final = 60 * _SECOND
_BACKOFF_MS: Final = (
    15 * _SECOND, 30 * _SECOND, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 20 * _MINUTE, 40 * _MINUTE, 60 * _MINUTE,
    120 * _MINUTE,
)  # fmt: skip
_JITTER_MS: Final = 30 * _SECOND


def retries_due(history: Sequence[Row]) -> Iterable[int]:
    """Return the time (epoch ms) of each retry that the history announces: a group of rows that ends with a failure or its retry."""
    groups: dict[object, list[tuple[int, Row]]] = defaultdict(list)
    for row in history:
        at = instant(row["created_at"])
        if at is not None:
            groups[row["group_id"]].append((at, row))
    for rows in groups.values():
        rows.sort(key=lambda one: one[0])
        due = _due(rows)
        if due is not None:
            yield due


def backoff_ms(attempt: int) -> int:
    """Return the longest time that the server waits before the `attempt`th retry of a step, in milliseconds."""
    return _BACKOFF_MS[min(max(attempt, 0), len(_BACKOFF_MS) - 1)] + _JITTER_MS


def _due(rows: Sequence[tuple[int, Row]]) -> int | None:
    at, last = rows[-1]
    errors = [one for one in rows if one[1]["type"] == "StepErrored"]
    if not errors or last["type"] not in ("StepErrored", "StepScheduled"):
        return None
    attempt = last["attempt"] if isinstance(last["attempt"], int) else 0
    failed_at, failed = errors[-1]
    if last["type"] == "StepScheduled" and attempt < 1:
        return None  # the next step, not another try
    asked = _retry_after(failed["failure"], failed_at)
    return asked if asked is not None else at + backoff_ms(attempt + (last["type"] == "StepErrored"))


def _retry_after(result: object, failed_at: int) -> int | None:
    """Return the instant that the application asked for: RFC 3339, seconds, or an HTTP date."""
    headers = _object(_object(result).get("response_headers"))
    found = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    values = cast("list[object]", found) if isinstance(found, list) else [found]
    text = str(next((one for one in values if one), "")).strip()
    if text.isdecimal():
        return failed_at + min(int(text), 10**9) * _SECOND
    known = instant(text)
    if known is not None or not text:
        return known
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * _SECOND)


def _object(value: object) -> Mapping[str, Any]:
    for _ in range(2):  # some servers store JSON as a string in JSON
        if not isinstance(value, str | bytes):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
