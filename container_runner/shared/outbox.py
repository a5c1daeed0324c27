"""Writes rows of outbound.db before the turn's answer, so that they are sent at once: one transaction for each row.

A row's id follows from what it is for, so writing it again in a later try of the turn changes nothing. Every call opens the
files, runs one transaction and closes them, and blocks: call it in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from container_runner.shared.errors import InboundUnreadableError
from container_runner.shared.own_rights import give_rights_back
from container_runner.shared.reply import Reply
from container_runner.shared.sent_files import files_of_rows, place_files, remove_files, remove_partial
from schema.bell import ring
from schema.connect import open_owner, open_reader
from schema.errors import ClawbusError
from schema.handles import Writer
from schema.instants import to_text
from schema.layout import INBOUND_DB, OUTBOUND_DB
from schema.migrate import Role
from schema.questions import Decision, Outcome

_INBOUND: Final = "inbound"


class Outbox:
    """Writes early rows for one session. `now_ms` is the clock: epoch milliseconds."""

    def __init__(self, in_folder: Path, out_folder: Path, now_ms: Callable[[], int]) -> None:
        self._inbound = in_folder / INBOUND_DB
        self._outbound = out_folder / OUTBOUND_DB
        self._out_folder = out_folder
        self._now_ms = now_ms

    def add(self, row_id: str, reply: Reply) -> bool:
        """Write a row, its files first, unless there is one of this id. Return whether it is new.

        Raise InboundUnreadableError, and StorageError when a file cannot be written.
        """
        if reply.files:
            if self._has(row_id):
                return False
            place_files(self._out_folder, row_id, reply.files)
        with open_owner(self._outbound, Role.OUTBOUND) as db:
            try:
                db.attach_reader(self._inbound, _INBOUND)
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
            with db.transaction():
                if db.one("SELECT 1 FROM main.messages_out WHERE id = ?", (row_id,)) is not None:
                    return False
                insert_row(db, row_id, next_seq(db), to_text(self._now_ms()), reply)
        ring(self._outbound.parent)
        return True

    def give_rights_back(self) -> list[str]:
        """Repair what the agent did to the rights in `out/`. Return the names of what was repaired. Never raise."""
        return give_rights_back(self._out_folder)

    def place(self, row_id: str, reply: Reply) -> None:
        """Put a row's files into place, before the row is written for the first time. Raise StorageError."""
        if reply.files:
            place_files(self._out_folder, row_id, reply.files)

    def remove_files(self, *, starting: bool = False) -> None:
        """Remove the files of rows that the host has recorded, because it has copies.

        When `starting`, also those without a row. Raise InboundUnreadableError.
        """
        if starting:
            remove_partial(self._out_folder)
        names = files_of_rows(self._out_folder)
        if not names:
            return
        with open_owner(self._outbound, Role.OUTBOUND) as db:
            rows = _present(db, "main.messages_out", "id", names)
            try:
                db.attach_reader(self._inbound, _INBOUND)
                noted = {
                    one
                    for table in ("delivered", "delivery_attempts")
                    if db.columns(table, _INBOUND)
                    for one in _present(db, f"{_INBOUND}.{table}", "message_out_id", names)
                }
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
        remove_files(self._out_folder, [one for one in names if one in noted or (starting and one not in rows)])

    def _has(self, row_id: str) -> bool:
        with open_owner(self._outbound, Role.OUTBOUND) as db:
            return db.one("SELECT 1 FROM main.messages_out WHERE id = ?", (row_id,)) is not None

    def cancelled(self, message_ids: Sequence[str]) -> frozenset[str]:
        """Return which of these messages the host has cancelled. Raise InboundUnreadableError."""
        marks = ", ".join("?" * len(message_ids))
        query = f"SELECT id FROM messages_in WHERE status = 'cancelled' AND id IN ({marks})"
        try:
            with open_reader(self._inbound) as reader:
                return frozenset(row["id"] for row in reader.all(query, tuple(message_ids)))
        except ClawbusError as error:
            raise InboundUnreadableError(str(error)) from error

    def decision(self, question_id: str) -> Decision | None:
        """Return how a question ended, or None while it is open or not seen by the host. Raise InboundUnreadableError.

        A question that the host refused to ask is cancelled.
        """
        try:
            with open_reader(self._inbound) as reader:
                row = None
                if reader.columns("questions"):
                    row = reader.one("SELECT * FROM questions WHERE id = ?", (question_id,))
                if row is not None:
                    return _decision(row)
                refused = reader.one("SELECT status FROM delivered WHERE message_out_id = ?", (question_id,))
        except ClawbusError as error:
            raise InboundUnreadableError(str(error)) from error
        return Decision(Outcome.CANCELLED) if refused is not None and refused["status"] == "failed" else None

    def is_asked(self, question_id: str) -> bool:
        """Return whether the host has recorded the question, and so will record how it ended. Raise InboundUnreadableError."""
        try:
            with open_reader(self._inbound) as reader:
                if not reader.columns("questions"):
                    return False
                return reader.one("SELECT 1 FROM questions WHERE id = ?", (question_id,)) is not None
        except ClawbusError as error:
            raise InboundUnreadableError(str(error)) from error


def insert_row(db: Writer, row_id: str, seq: int, timestamp: str, reply: Reply) -> None:
    """Insert one row of messages_out. Call inside a transaction that has inbound.db attached."""
    after = None if reply.deliver_after is None else to_text(reply.deliver_after)
    db.execute(
        "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, deliver_after, kind, platform_id,"
        " channel_type, thread_id, content, final) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(row_id, seq, reply.in_reply_to, timestamp, after, reply.kind),
            *(reply.platform_id, reply.channel_type, reply.thread_id, reply.content, int(reply.final)),
        ),
    )


def next_seq(db: Writer) -> int:
    """Return the next odd seq, above the highest in either file and the host's cursor: the host sends no row below that."""
    noted = "coalesce((SELECT seq FROM inbound.delivery_cursor WHERE id = 1), 0)"
    row = db.one(
        "SELECT max(coalesce((SELECT max(seq) FROM main.messages_out), 0),"
        " coalesce((SELECT max(seq) FROM inbound.messages_in), 0),"
        f" {noted if db.columns('delivery_cursor', _INBOUND) else '0'}) AS seq"
    )
    seq = int(row["seq"]) if row is not None else 0
    return seq + 1 if seq % 2 == 0 else seq + 2


def _present(db: Writer, table: str, key: str, ids: Sequence[str]) -> set[str]:
    marks = ", ".join("?" * len(ids))
    return {row["id"] for row in db.all(f"SELECT {key} AS id FROM {table} WHERE {key} IN ({marks})", tuple(ids))}


def _decision(row: sqlite3.Row) -> Decision | None:
    if row["outcome"] is None:
        return None
    return Decision(Outcome(row["outcome"]), row["choice"], row["answer"], row["answered_by"])
