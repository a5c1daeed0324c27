"""SQL over the outcomes of agents' requests about schedules, in one session's inbound.db.

Functions that write must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from schema.handles import Reader, Writer

# How many outcomes are kept; the row's receipt, not this table, keeps a request from being carried out twice.
KEPT: Final = 200


# How an outcome begins that let something become due soon. The rate of these is limited, so they are counted.
SOON: Final[Mapping[str, object]] = MappingProxyType({"ok": True, "soon": True})
_BEGINS: Final = json.dumps(dict(SOON))[:-1]


def soon_since(db: Reader, since: int, until: int) -> tuple[int, int | None]:
    """Return how many requests for soon were granted after `since` and up to `until`, and when the first was."""
    row = db.one(
        "SELECT count(*) AS n, min(at) AS oldest FROM schedule_requests"
        " WHERE at > ? AND at <= ? AND substr(outcome, 1, ?) = ?",
        (since, until, len(_BEGINS), _BEGINS),
    )
    return (int(row["n"]), row["oldest"]) if row is not None else (0, None)


def note_outcome(db: Writer, row_id: str, outcome: Mapping[str, object], now: int, *, counted_since: int) -> None:
    """Record what came of a request, and forget the oldest ones, but none that `soon_since` still counts."""
    db.execute(
        "INSERT OR REPLACE INTO schedule_requests(id, at, outcome) VALUES (?, ?, ?)",
        (row_id, now, json.dumps(outcome, ensure_ascii=False)),
    )
    db.execute(
        "DELETE FROM schedule_requests WHERE id IN"
        " (SELECT id FROM schedule_requests ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)"
        " AND NOT (at > ? AND substr(outcome, 1, ?) = ?)",
        (KEPT, counted_since, len(_BEGINS), _BEGINS),
    )
