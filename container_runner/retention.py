"""Prunes outbound.db, which the runner owns: deletes delivered answers and finished acks that the host has provably recorded.

It never deletes an answer without the host's receipt, a row or an ack whose message may still be unfinished for the host, or
the row with the highest seq. inbound.db is only ever attached read-only. A step is one short transaction; every method blocks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from container_runner.due_messages import columns_or_defaults
from container_runner.shared.errors import InboundUnreadableError
from schema.connect import open_owner
from schema.durable_files import remove_any
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.handles import Writer
from schema.ids import is_message_id
from schema.instants import from_text, to_text
from schema.layout import INBOUND_DB, OUTBOUND_DB, OUTBOX_FILES
from schema.migrate import Role
from schema.rows import AckStatus, DeliveryState, MessageStatus

_INBOUND: Final = "inbound"
_NEEDED: Final = ("delivered", "delivery_attempts", "dead_letters_closed", "delivery_cursor")
_EVERY_MS: Final = 3_600_000
_MIN_FREE_BYTES: Final = 4 * 1024**2
_MAX_LIVE_BYTES: Final = 16 * 1024**2

# Rows above the host's cursor are not selected: the host has not read them. The highest row stays, for the next seq.
_ANSWERS: Final = """
SELECT o.seq AS position, o.id, o.timestamp AS at, o.in_reply_to, o.final, d.status AS receipt, d.delivered_at, t.state AS tracked, c.at AS closed_at
  FROM main.messages_out AS o
  LEFT JOIN inbound.delivered AS d ON d.message_out_id = o.id
  LEFT JOIN inbound.delivery_attempts AS t ON t.message_out_id = o.id
  LEFT JOIN inbound.dead_letters_closed AS c ON c.id = o.id
 WHERE o.seq > ? AND o.seq <= (SELECT seq FROM inbound.delivery_cursor WHERE id = 1)
   AND o.seq < (SELECT max(seq) FROM main.messages_out)
 ORDER BY o.seq LIMIT ?
"""
# Whether a message that was in a turn is not over: its next turn may ask and say the same again, under the same ids.
_IN_WORK: Final = """
SELECT 1 FROM inbound.messages_in AS m
 WHERE m.status IN ('pending', 'paused') AND ({tries} > 0 OR {solo} <> 0 OR {deferrals} > 0 OR EXISTS (
         SELECT 1 FROM main.processing_ack AS a WHERE a.message_id = m.id AND a.status IN ('processing', 'later')))
 LIMIT 1
"""
_IS_OPEN: Final = "SELECT 1 FROM inbound.messages_in WHERE id = ? AND status IN ('pending', 'paused')"
_ACKS: Final = """
SELECT a.rowid AS position, a.message_id AS id, a.status_changed AS at, a.status, m.status AS message
  FROM main.processing_ack AS a
  LEFT JOIN inbound.messages_in AS m ON m.id = a.message_id
 WHERE a.rowid > ? ORDER BY a.rowid LIMIT ?
"""
_UNACKED_USAGE: Final = """
SELECT u.rowid FROM main.turn_usage AS u LEFT JOIN inbound.messages_in AS m ON m.id = u.message_id
 WHERE u.at < ? AND u.message_id NOT IN (SELECT message_id FROM main.processing_ack)
   AND coalesce(m.status, 'cancelled') = 'cancelled' LIMIT ?
"""
_FINISHED_ACK: Final = frozenset({AckStatus.COMPLETED, AckStatus.FAILED, AckStatus.LATER})
_FINISHED_MESSAGE: Final = frozenset({MessageStatus.COMPLETED, MessageStatus.FAILED, MessageStatus.CANCELLED})


@frozen
class Pruned:
    """A step's result. `more`: another step is due. At the end of a pass: its total of rows deleted and of bytes freed."""

    answers: int = 0
    acks: int = 0
    given_back: int = 0
    more: bool = False


class Retention:
    """Steps through the file: first the answers, then the acks; then pauses for an hour. `keep_ms` (above 0): age to keep."""

    def __init__(
        self, in_folder: Path, out_folder: Path, *, keep_ms: int, batch: int, now_ms: Callable[[], int]
    ) -> None:
        self._inbound = in_folder / INBOUND_DB
        self._out_folder = out_folder
        self._keep_ms = keep_ms
        self._batch = batch
        self._now_ms = now_ms
        self._rest_until = 0
        self._answers_done = False
        self._position = 0
        self._answers_taken = 0
        self._acks_taken = 0

    @property
    def due(self) -> bool:
        """Whether a step is due now."""
        return self._now_ms() >= self._rest_until

    def rest(self) -> None:
        """End this pass and schedule the next one in an hour."""
        self._rest_until = self._now_ms() + _EVERY_MS
        self._answers_done, self._position = False, 0
        self._answers_taken, self._acks_taken = 0, 0

    def postpone(self, seconds: float) -> None:
        """Continue from here in `seconds`: the files cannot be used now."""
        self._rest_until = self._now_ms() + int(seconds * 1000)

    def step(self) -> Pruned:
        """Check the next `batch` rows and delete those that may go, in one transaction.

        Raise InboundUnreadableError, and what opening outbound.db raises.
        """
        with open_owner(self._out_folder / OUTBOUND_DB, Role.OUTBOUND) as db:
            try:
                db.attach_reader(self._inbound, _INBOUND)
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
            if any(not db.columns(table, _INBOUND) for table in _NEEDED):
                self.rest()  # an older host without these receipts: nothing is proved
                return Pruned()
            return self._acks(db) if self._answers_done else self._answers(db)

    def _answers(self, db: Writer) -> Pruned:
        rows, cutoff = db.all(_ANSWERS, (self._position, self._batch)), self._now_ms() - self._keep_ms
        old = [row for row in rows if may_go(row, cutoff)]
        taken = [row["id"] for row in old if not self._may_be_repeated(db, row)]
        if taken:
            # Delete the files before the row that names them, so that a crash in between leaves no unknown file.
            self._remove_files(taken)
            with db.transaction():
                db.executemany("DELETE FROM messages_out WHERE id = ?", [(identity,) for identity in taken])
        self._answers_done = not self._moved_on(rows, cutoff)
        if self._answers_done:
            self._position = 0
        self._answers_taken += len(taken)
        return Pruned(more=True)

    def _may_be_repeated(self, db: Writer, row: sqlite3.Row) -> bool:
        """Return whether a later turn may store this row again, because a message that it belongs to is not over."""
        if db.one(_IS_OPEN, (row["in_reply_to"],)) is not None:
            return True
        # What was said in the middle of a turn of several messages may belong to another of them.
        return not row["final"] and db.one(_IN_WORK.format(**columns_or_defaults(db))) is not None

    def _acks(self, db: Writer) -> Pruned:
        rows, cutoff = db.all(_ACKS, (self._position, self._batch)), self._now_ms() - self._keep_ms
        taken = [row["id"] for row in rows if is_final(row, cutoff)]
        if taken:
            with db.transaction():
                for table in ("processing_ack", "deferrals", "turn_notes", "turn_usage"):
                    # Most files have nothing in the others; a batch of deletions that find nothing costs as much as the acks'.
                    if db.one(f"SELECT 1 FROM {table} LIMIT 1") is not None:
                        db.executemany(f"DELETE FROM {table} WHERE message_id = ?", [(identity,) for identity in taken])
        self._acks_taken += len(taken)
        self._usage_without_ack(db, cutoff)
        if self._moved_on(rows, cutoff):
            return Pruned(more=True)
        pruned = Pruned(self._answers_taken, self._acks_taken)
        if pruned.answers or pruned.acks:
            given_back = db.compact(min_free_bytes=_MIN_FREE_BYTES, max_live_bytes=_MAX_LIVE_BYTES)
            pruned = replace(pruned, given_back=given_back)
        self.rest()
        return pruned

    def _usage_without_ack(self, db: Writer, cutoff: int) -> None:
        """Delete what the turns of cancelled messages used: these claims were released, so no ack takes it along."""
        if db.one(_UNACKED_USAGE, (to_text(cutoff), 1)) is not None:
            with db.transaction():
                db.execute(
                    f"DELETE FROM main.turn_usage WHERE rowid IN ({_UNACKED_USAGE})", (to_text(cutoff), self._batch)
                )

    def _moved_on(self, rows: Sequence[sqlite3.Row], cutoff: int) -> bool:
        """Continue after these rows. Return False when none follow, or when none of these is old: later ones are younger."""
        if len(rows) < self._batch or all((from_text(row["at"]) or 0) >= cutoff for row in rows):
            return False
        self._position = rows[-1]["position"]
        return True

    def _remove_files(self, ids: Sequence[str]) -> None:
        root = self._out_folder / OUTBOX_FILES
        if not os.path.lexists(root):
            return  # as in most sessions: no answer had a file
        for identity in ids:
            if is_message_id(identity):
                # The agent may have created anything here, even folders nested too deep to walk. A leftover does no harm.
                with suppress(OSError, RecursionError):
                    remove_any(root / identity)


def may_go(row: sqlite3.Row, cutoff: int) -> bool:
    """Return whether an answer is old and finished for the host: delivered, carried out, or a closed dead letter."""
    if row["receipt"] in ("delivered", "not_wanted", "carried_out"):
        at = from_text(row["delivered_at"])
        return row["tracked"] is None and at is not None and at < cutoff
    return row["tracked"] == DeliveryState.DEAD and row["closed_at"] is not None and row["closed_at"] < cutoff


def is_final(row: sqlite3.Row, cutoff: int) -> bool:
    """Return whether an ack is old and its message is finished in the host's file, so that the id cannot be claimed again.

    Keep an ack whose message is missing there: then only the ack prevents the id from being worked on twice.
    """
    at = from_text(row["at"])
    old = at is not None and at < cutoff
    return old and row["status"] in _FINISHED_ACK and row["message"] in _FINISHED_MESSAGE
