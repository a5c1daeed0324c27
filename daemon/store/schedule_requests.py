"""SQL over the outcomes of agents' requests about schedules, in one session's inbound.db.

Functions that write must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from schema.handles import Writer

# How many outcomes are kept; the row's receipt, not this table, keeps a request from being carried out twice.
KEPT: Final = 200


def note_outcome(db: Writer, row_id: str, outcome: Mapping[str, object], now: int) -> None:
    """Record what came of a request, and forget the oldest ones."""
    db.execute(
        "INSERT OR REPLACE INTO schedule_requests(id, at, outcome) VALUES (?, ?, ?)",
        (row_id, now, json.dumps(outcome, ensure_ascii=False)),
    )
    db.execute(
        "DELETE FROM schedule_requests WHERE id IN"
        " (SELECT id FROM schedule_requests ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (KEPT,),
    )
