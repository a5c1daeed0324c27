"""Retention in a simulated run: short ages for some seeds, and a witness of everything that is ever deleted.

The witness judges each row at its deletion, by what the other files and the receivers say then. It keeps the row, so that
what was completed and pruned counts as completed: because it was seen so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import container_runner.retention
import daemon.maintenance.retention
from daemon.config.models import Retention
from daemon.core.session_key import SessionKey
from daemon.store.transitions import SESSION
from schema.handles import Writer
from tests.simulation.receivers import Receivers
from tests.simulation.world import World

Row = dict[str, Any]
_TABLES: Final = {
    "messages_in": "id", "messages_out": "id", "processing_ack": "message_id", "dead_letters_closed": "id",
    "message_history": "message_id", "schedule_runs": "message_id",
}  # fmt: skip
_OVER: Final = ("completed", "failed", "cancelled")


def draw_retention(seed: int) -> Retention:
    """Ages in seconds: none for some runs, so that those are what they were. From a source of its own."""
    rng = Random(f"retention {seed}")
    if rng.random() < 0.5:
        return Retention(messages_s=0, incarnations_s=0, mailbox_s=0)
    return Retention(
        messages_s=rng.choice((0.5, 5.0, 20.0, 60.0)),
        incarnations_s=rng.choice((0.0, 5.0, 60.0)),
        mailbox_s=0,
        interval_s=rng.choice((3.0, 20.0, 60.0)),
        batch=rng.choice((1, 2, 5, 500)),
        dead_letters_s=rng.choice((0.0, 5.0, 60.0)),
    )


@dataclass
class Witness:
    """Rows that were deleted, by session and table. `receipts`: ids of answers whose receipt was deleted."""

    world: World
    receivers: Receivers
    rows: dict[tuple[SessionKey, str], list[Row]] = field(default_factory=dict[tuple[SessionKey, str], list[Row]])
    receipts: dict[SessionKey, set[str]] = field(default_factory=dict[SessionKey, set[str]])

    def of(self, key: SessionKey, table: str) -> list[Row]:
        """What was deleted of one table of a session."""
        return self.rows.get((key, table), [])

    def final(self, session: str, message_id: str, seq: int) -> bool:
        """Whether this very message was finished by an ack that is pruned now: nobody may claim it any more."""
        acks = [row for (key, table), rows in self.rows.items() if key.session == session and table == "processing_ack"
                for row in rows if row["message_id"] == message_id]  # fmt: skip
        return any(row["seq"] == seq for row in acks)

    def sees(self, db: Writer, sql: str, values: Sequence[object]) -> None:
        """A statement that is about to run."""
        words = sql.split()
        if words[:2] != ["DELETE", "FROM"] or words[3:4] != ["WHERE"]:
            return
        path, table = db._path, words[2]
        if table == "delivered":
            deleted = db.all(f"SELECT message_out_id AS id FROM {' '.join(words[2:])}", values)
            self.receipts.setdefault(_session_of(path), set()).update(row["id"] for row in deleted)
        if table not in _TABLES:
            return
        key = _session_of(path)
        for row in db.all(f"SELECT * FROM {' '.join(words[2:])}", values):
            self._judge(db, key, table, dict(row))

    def _judge(self, db: Writer, key: SessionKey, table: str, row: Row) -> None:
        identity = row[_TABLES[table]]
        if table in ("message_history", "schedule_runs"):
            # The rest of the history goes with its messages, which are judged.
            if table == "schedule_runs" or identity == SESSION:
                self.rows.setdefault((key, table), []).append(row)
            return
        if table == "processing_ack":
            if row["status"] == "processing":
                return  # a claim that is given back
            found = db.one("SELECT seq, status FROM inbound.messages_in WHERE id = ?", (identity,))
            if found is None or found["status"] not in _OVER:
                self.world.broken(f"{key}: the ack of {identity} goes, and the message is {found and found['status']}")
            row["seq"] = found and found["seq"]
        elif table == "messages_out":
            # One that was given up may go once its dead letter is closed.
            closed = db.one("SELECT 1 FROM inbound.dead_letters_closed WHERE id = ?", (identity,))
            # A request about a schedule goes to no receiver: the host carried it out.
            done = db.one(
                "SELECT 1 FROM inbound.delivered WHERE message_out_id = ? AND status = 'carried_out'", (identity,)
            )
            if closed is None and done is None and not self.receivers.effects.get(f"{key}/{identity}"):
                self.world.broken(f"{key}: the answer {identity} goes, and no receiver ever saw it")
            row["passed"] = db.one(
                "SELECT 1 FROM inbound.message_history WHERE message_id = ? AND (event = 'delivery_passed'"
                " OR json_extract(detail, '$.waits_behind') IS NOT NULL)",
                (identity,),
            )
        elif table == "dead_letters_closed":
            if self._dead(db, identity):
                self.world.broken(f"{key}: the closing of {identity} goes, and its dead letter stays")
        elif row["status"] not in _OVER or (row["status"] == "failed" and not self._closed(db, identity)):
            self.world.broken(f"{key}: {identity} goes, and is {row['status']}")
        self.world.counts[f"pruned_{table}"] += 1
        self.rows.setdefault((key, table), []).append(row)

    def _closed(self, db: Writer, identity: str) -> bool:
        return db.one("SELECT 1 FROM dead_letters_closed WHERE id = ?", (identity,)) is not None

    def _dead(self, db: Writer, identity: str) -> bool:
        """Whether a letter is there that would be open again without its closing."""
        message = "SELECT 1 FROM messages_in WHERE id = ? AND status = 'failed'"
        answer = "SELECT 1 FROM delivery_attempts WHERE message_out_id = ? AND state = 'dead'"
        return any(db.one(sql, (identity,)) is not None for sql in (message, answer))


def _session_of(path: Path) -> SessionKey:
    return SessionKey(path.parents[2].name, path.parents[1].name)


@contextlib.contextmanager
def witnessed(witness: Witness) -> Generator[None]:
    """Every deletion through a Writer is seen; a runner's passes come every few seconds."""
    execute, executemany = Writer.execute, Writer.executemany

    def one(self: Writer, sql: str, params: Sequence[object] = ()) -> int:
        witness.sees(self, sql, params)
        return execute(self, sql, params)

    def many(self: Writer, sql: str, rows: Sequence[Sequence[object]]) -> int:
        for values in rows:
            witness.sees(self, sql, values)
        return executemany(self, sql, rows)

    with (
        mock.patch.object(Writer, "execute", one),
        mock.patch.object(Writer, "executemany", many),
        mock.patch.object(container_runner.retention, "_EVERY_MS", 6_000),
        # The real files' times are the real clock's, which no seed repeats.
        mock.patch.object(daemon.maintenance.retention.Retention, "_may_have_old", lambda *_: True),
    ):
        yield
