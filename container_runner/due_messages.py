"""Decides which rows of inbound.db the runner may claim now, and which of them share a turn. Reads only; `store.py` claims.

The order is the host's: by seq, and nothing overtakes a message that waits for its next try.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from math import inf
from typing import Final

from container_runner.providers.protocol import TurnMessage
from schema.handles import Writer

_INBOUND: Final = "inbound"

# Columns that an older host's messages_in may lack, and the value to assume then.
_OPTIONAL: Final = (
    ("trigger", "1"), ("on_wake", "0"), ("tries", "0"), ("solo", "0"), ("holds", "0"), ("deferrals", "0"),
    ("not_after", "NULL"), ("void_ack", "NULL"),
)  # fmt: skip
_NEVER: Final = 1e9  # a Julian day later than any real date

# A message with an ack is not claimed, with two exceptions: a `later` that the host has recorded, and an ack that the host
# declared void (`void_ack`) because it is older than the message.
_DUE: Final = f"""
  FROM (SELECT id, seq, kind, timestamp, content, status, process_after, channel_type, platform_id, thread_id,
               {{trigger}} AS wakes, {{on_wake}} AS on_wake, {{tries}} AS tries, {{solo}} AS solo,
               {{deferrals}} AS deferrals, {{not_after}} AS not_after, {{void_ack}} AS void_ack
          FROM inbound.messages_in) AS m
 WHERE m.status = 'pending'
   AND coalesce(julianday(m.process_after), 0) <= julianday(:now)
   AND coalesce(julianday(m.not_after), {_NEVER}) > julianday(:now)
   AND (m.on_wake = 0 OR :first_poll)
   AND m.seq < :held_from
   AND NOT EXISTS (
     SELECT 1 FROM main.processing_ack AS a WHERE a.message_id = m.id
        AND coalesce(a.status_changed <> m.void_ack, 1)
        AND NOT (a.status = 'later' AND m.deferrals >= coalesce(
              (SELECT d.deferral FROM main.deferrals AS d WHERE d.message_id = m.id), 1)))
"""
_COLUMNS: Final = (
    "SELECT m.id, m.seq, m.kind, m.timestamp, m.content, m.wakes, m.channel_type, m.platform_id, m.thread_id,"
    " m.tries, m.solo"
)
# The first message that waits for its next try. Everything behind it waits as well.
_HELD_FROM: Final = f"""
SELECT min(seq) AS seq FROM inbound.messages_in
 WHERE status = 'pending' AND {{trigger}} <> 0 AND {{on_wake}} = 0 AND {{holds}} <> 0
   AND julianday(process_after) > julianday(:now) AND coalesce(julianday({{not_after}}), {_NEVER}) > julianday(:now)
"""
# The same for a `later` that the host has not recorded yet: until then it is unknown whether others may overtake it. Only
# an ack makes a row of deferrals count: the row of a turn that died may belong to an earlier message with the same id.
_UNSEEN_LATER: Final = """
SELECT min(m.seq) AS seq FROM main.deferrals AS d JOIN inbound.messages_in AS m ON m.id = d.message_id
  JOIN main.processing_ack AS a ON a.message_id = d.message_id
 WHERE m.status = 'pending' AND d.deferral > {deferrals}
   AND a.status = 'later' AND coalesce(a.status_changed <> {void_ack}, 1)
"""
# The next moment at which time alone may make a row due, or end another row's hold: seconds from now.
_NEXT_CHANGE: Final = """
SELECT (min(julianday(process_after)) FILTER (WHERE julianday(process_after) > julianday(:now)) - julianday(:now)) * 86400.0,
       (min(julianday({not_after})) FILTER (WHERE julianday({not_after}) > julianday(:now)) - julianday(:now)) * 86400.0
  FROM inbound.messages_in WHERE status = 'pending'
"""
_NO_SEQ: Final = 2**63 - 1
# Context with this many tries (turns that died) is left out of a turn that retries one message alone: the context may be
# what kills the turns.
_SUSPECT_TRIES: Final = 2


class DueMessages:
    """The rows of inbound.db that may be claimed now. `solo`: ids that get a turn without any other trigger.

    `alone` is true when the latest batch is such a turn, and `took_all` when it has every row that may be claimed now.
    """

    def __init__(self, db: Writer, now: str, first_poll: bool, solo: Collection[str]) -> None:
        names = columns_or_defaults(db)
        self._db = db
        self._from = _DUE.format(**names)
        self._held_from = _HELD_FROM.format(**names)
        self._unseen_later = _UNSEEN_LATER.format(**names)
        self._next_change = _NEXT_CHANGE.format(**names)
        self._named: dict[str, object] = {"now": now, "first_poll": int(first_poll)}
        self._solo = solo
        self.alone = False
        self.took_all = False

    def has_trigger(self, limit: int) -> bool:
        """Return whether a trigger is due. Runs the statements of `batch(limit)`, so that SQLite compiles them once."""
        self._find_first_held()
        oldest = self._oldest(limit)
        return any(row["wakes"] for row in oldest) or (len(oldest) == limit and bool(self._first_trigger()))

    def quiet_s(self) -> float:
        """Return the seconds for which time alone makes no row due. Files may change earlier."""
        row = self._db.one(self._next_change, self._named)
        return min((one for one in row or () if one is not None), default=inf)

    def batch(self, limit: int, *, joins: bool = False) -> tuple[TurnMessage, ...]:
        """Return the oldest `limit` rows. If none is a trigger, return the oldest trigger and the context just before it.

        So no amount of context hides a trigger. Context that is left over rides along with later turns. Return nothing
        when no trigger is due, and with `joins` when the trigger needs a turn of its own.
        """
        self._find_first_held()
        oldest = self._oldest(limit)
        if not any(row["wakes"] for row in oldest):
            triggers = self._first_trigger() if len(oldest) == limit else ()  # fewer are all that is due
            if not triggers:
                return ()
            before = triggers[0]["seq"]
            nearest = self._rows("AND m.seq < :before ORDER BY m.seq DESC LIMIT :limit", before=before, limit=limit - 1)
            oldest = [*reversed(nearest), *triggers]
        self.alone = self._needs_own_turn(next(row for row in oldest if row["wakes"]))
        if joins and self.alone:
            return ()
        turn = self._one_turn(oldest)
        self.took_all = len(turn) == len(oldest) < limit
        return tuple(_message(row) for row in turn)

    def _one_turn(self, rows: Sequence[sqlite3.Row]) -> Sequence[sqlite3.Row]:
        """Return the first part of `rows`, as many as one turn may hold.

        A trigger that is tried alone shares its turn with no other trigger.
        """
        triggers = [number for number, row in enumerate(rows) if row["wakes"]]
        if self.alone:
            end = triggers[1] if len(triggers) > 1 else len(rows)
            return [row for row in rows[:end] if row["wakes"] or row["tries"] < _SUSPECT_TRIES]
        return rows[: next((number for number in triggers if self._needs_own_turn(rows[number])), len(rows))]

    def _needs_own_turn(self, row: sqlite3.Row) -> bool:
        return bool(row["tries"] or row["solo"]) or row["id"] in self._solo

    def _find_first_held(self) -> None:
        """Set `held_from`: a message with this seq or a higher one waits behind one that waits for its next try."""
        held = self._db.one(self._held_from, self._named)
        deferred = self._db.one("SELECT 1 FROM main.deferrals LIMIT 1")  # mostly none, and quicker to find out
        unseen = self._db.one(self._unseen_later) if deferred is not None else None
        seqs = [row["seq"] for row in (held, unseen) if row is not None and row["seq"] is not None]
        self._named["held_from"] = min(seqs, default=_NO_SEQ)

    def _oldest(self, limit: int) -> list[sqlite3.Row]:
        return self._rows("ORDER BY m.seq LIMIT :limit", limit=limit)

    def _first_trigger(self) -> list[sqlite3.Row]:
        return self._rows("AND m.wakes <> 0 ORDER BY m.seq LIMIT 1")

    def _rows(self, tail: str, **more: int) -> list[sqlite3.Row]:
        return self._db.all(f"{_COLUMNS} {self._from} {tail}", {**self._named, **more})


def columns_or_defaults(db: Writer) -> dict[str, str]:
    """Return an SQL expression for each column that the attached inbound.db may lack: the column, or the value to assume."""
    present = db.columns("messages_in", _INBOUND)
    return {name: f"coalesce({name}, {default})" if name in present else default for name, default in _OPTIONAL}


def _message(row: sqlite3.Row) -> TurnMessage:
    return TurnMessage(
        id=row["id"],
        seq=row["seq"],
        kind=row["kind"],
        timestamp=row["timestamp"],
        content=row["content"],
        trigger=bool(row["wakes"]),
        tries=int(row["tries"] or 0),
        channel_type=row["channel_type"],
        platform_id=row["platform_id"],
        thread_id=row["thread_id"],
    )
