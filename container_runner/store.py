"""Claims due messages and commits turns, in SQL. `due_messages.py` decides what is due. Knows no provider and no loop.

The runner owns outbound.db and keeps it open between operations. It attaches inbound.db read-only, for one operation at
a time. Every method runs one transaction and may wait for a lock: while a turn runs, call it in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Final

from container_runner.due_messages import DueMessages
from container_runner.providers.protocol import DeclaredTimeout, Destination, TurnMessage
from container_runner.shared.errors import ClaimLostError, InboundUnreadableError
from container_runner.shared.outbox import Outbox, insert_row, next_seq
from container_runner.shared.own_schedules import check_program, own_schedules
from container_runner.shared.reply import Reply
from container_runner.turn_rows import INBOUND, destinations, keep_note, keep_state, keep_usage, routing, write_tool
from schema.bell import ring
from schema.connect import open_owner
from schema.errors import ClawbusError
from schema.file_pool import FilePool
from schema.frozen import frozen
from schema.handles import Writer
from schema.ids import new_id
from schema.instants import to_text
from schema.layout import INBOUND_DB, OUTBOUND_DB
from schema.migrate import OUTBOUND_TABLES, Role, statements
from schema.rows import AckStatus, Address, Kind, TurnNote, TurnUsage

_NO_TABLE: Final = "no such table"  # what SQLite says; it has no code of its own for that


@frozen
class Batch:
    """Claimed messages in seq order, and what else their turn needs, all read in one transaction.

    `alone`: no other trigger may join the turn. `took_all`: nothing else was due.
    """

    messages: tuple[TurnMessage, ...]
    routing: Address | None
    destinations: tuple[Destination, ...]
    state: Mapping[str, str]
    schedules: Sequence[Mapping[str, object]] = ()
    check: str | None = None
    alone: bool = False
    took_all: bool = False


@frozen
class OutboundRow:
    """A reply with its id and timestamp. They are assigned once, so that repeating a commit writes the same row."""

    id: str
    timestamp: str
    reply: Reply


class Store:
    """One incarnation's access to its session's two files. `now_ms` is the clock: epoch milliseconds."""

    def __init__(self, in_folder: Path, out_folder: Path, incarnation: str, now_ms: Callable[[], int]) -> None:
        self.in_folder = in_folder
        self._inbound = in_folder / INBOUND_DB
        self._outbound = out_folder / OUTBOUND_DB
        self._kept = FilePool(1)
        self._incarnation = incarnation
        self.now_ms = now_ms
        self.outbox = Outbox(in_folder, out_folder, now_ms)
        self.quiet_s = 0.0  # after a claim: seconds during which only a change of the files can make a message due
        self._doubtful: tuple[str, ...] = ()  # claims whose commit failed but may still have reached the file

    def start(self) -> int:
        """Delete the claims and the tool in flight that a predecessor left. Call this before anything else.

        Return the number of claims deleted. Raise ClaimLostError if one belongs to this incarnation: its container was
        started a second time. The host must charge that try, so the claim has to stay.
        """
        with self._own() as db, db.transaction():
            own = db.one(
                "SELECT message_id FROM processing_ack WHERE status = 'processing' AND incarnation = ?",
                (self._incarnation,),
            )
            if own is not None:
                raise ClaimLostError(
                    f"message {own['message_id']} was being worked on when this container ended; it was started again.",
                    hint="Nothing to do: the daemon ends this container and starts another one.",
                )
            dropped = db.execute("DELETE FROM processing_ack WHERE status = 'processing'")
            write_tool(db, None, self.now_ms())
            return dropped

    def repair(self, error: ClawbusError) -> list[str]:
        """Repair what the agent did to outbound.db and the rights in `out/`, after `error`. Return the names of what was repaired.

        A table that it dropped comes back without its rows. Never raise.
        """
        repaired = self.outbox.give_rights_back()
        if _NO_TABLE in str(error):
            with suppress(ClawbusError), self._own() as db, db.transaction():
                missing = [name for name in OUTBOUND_TABLES if not db.columns(name)]
                for statement in statements(Role.OUTBOUND) if missing else ():
                    db.execute(statement)
                repaired += missing
        return repaired

    def claim(
        self,
        limit: int,
        *,
        first_poll: bool,
        silence: DeclaredTimeout | None = None,
        solo: Collection[str] = frozenset(),
        joins: bool = False,
    ) -> Batch | None:
        """Claim due messages, oldest first, at most `limit` rows. Return None when no trigger is due.

        A message that is being retried, or is named in `solo`, gets a turn without any other trigger. With `joins`, the claim
        is for a turn that already runs, so claim nothing if such a message is next. Write `silence`, if given, to
        container_state in the same transaction. Raise InboundUnreadableError.
        """
        self.quiet_s = 0.0
        with self._both() as db:
            self._drop_doubtful(db)
            # Check without a write lock first: most polls find nothing, and must not write.
            with db.looking():
                if db.one("SELECT 1 FROM inbound.messages_in WHERE status = 'pending' LIMIT 1") is None:
                    self.quiet_s = inf
                    return None
                due = DueMessages(db, to_text(self.now_ms()), first_poll, solo)
                if not due.has_trigger(limit):
                    self.quiet_s = due.quiet_s()
                    return None
            with db.transaction():
                if self._is_draining(db):
                    return None
                messages = due.batch(limit, joins=joins)
                if messages:
                    self._doubtful = tuple(message.id for message in messages)
                    self._insert_claims(db, messages)
                    if silence is not None:
                        write_tool(db, silence, self.now_ms())
                batch = self._with_surroundings(db, messages, due) if messages else None
        self._doubtful = ()
        return batch

    def _drop_doubtful(self, db: Writer) -> None:
        """Release the messages that a failed commit may have claimed: no turn works on them."""
        if self._doubtful:
            with db.transaction():
                self._release(db, self._doubtful)
            self._doubtful = ()

    def finish(
        self,
        rows: Sequence[OutboundRow],
        acked: Sequence[str],
        status: AckStatus,
        *,
        released: Sequence[str] = (),
        state: Mapping[str, str | None] | None = None,
        note: TurnNote | None = None,
        usage: tuple[str, TurnUsage] | None = None,
        triggers: Sequence[str] = (),
    ) -> bool:
        """Commit a turn in one transaction: outbound rows, acks, state, note, usage. Clear the tool in flight.

        `usage` names the message of the turn to record it under. If the host has cancelled all of `triggers`, nobody waits
        for the answer: only release the claims and record the usage, and return False.

        Safe to repeat after an error that leaves the outcome unknown. Raise InboundUnreadableError or ClaimLostError.
        """
        with self._both() as db, db.transaction():
            if self._is_finished(db, acked, status):
                return True
            self._check_claims(db, acked)
            if self._are_cancelled(db, triggers):
                self._release(db, [*acked, *released])
                keep_usage(db, usage, self._incarnation, to_text(self.now_ms()))
                write_tool(db, None, self.now_ms())
                return False
            self._insert_rows(db, rows)
            now = to_text(self.now_ms())
            db.executemany(
                "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed, incarnation)"
                " VALUES (?, ?, ?, ?)",
                [(message_id, status.value, now, self._incarnation) for message_id in acked],
            )
            keep_note(db, acked, note, self._incarnation, now)
            keep_usage(db, usage, self._incarnation, now)
            db.executemany("DELETE FROM deferrals WHERE message_id = ?", [(message_id,) for message_id in acked])
            self._release(db, released)
            keep_state(db, state or {}, now)
            write_tool(db, None, self.now_ms())
        ring(self._outbound.parent)
        return True

    def defer(
        self, acked: Sequence[str], *, retry_at: int | None, reason: str | None, released: Sequence[str] = ()
    ) -> bool:
        """Commit a `later` for all of a turn's messages. Return False when the host is too old to support `later`.

        `retry_at` is epoch milliseconds, None for the host's own back-off. Safe to repeat after an error that leaves the
        outcome unknown. Raise InboundUnreadableError or ClaimLostError.
        """
        with self._both() as db, db.transaction():
            if "deferrals" not in db.columns("messages_in", INBOUND):
                return False
            if not self._is_finished(db, acked, AckStatus.LATER):
                self._check_claims(db, acked)
                self._insert_deferrals(db, acked, retry_at, reason)
                self._release(db, released)
                write_tool(db, None, self.now_ms())
        ring(self._outbound.parent)
        return True

    def give_back(self, message_ids: Sequence[str], usage: tuple[str, TurnUsage] | None = None) -> None:
        """Release these claims and clear the tool in flight. Their messages can be claimed again. Safe to repeat.

        `usage` is what the turn used until then, under the id of one of its messages.
        """
        with self._own() as db, db.transaction():
            self._release(db, message_ids)
            keep_usage(db, usage, self._incarnation, to_text(self.now_ms()))
            write_tool(db, None, self.now_ms())

    def release_all(self) -> int:
        """Release every claim of this incarnation and clear the tool in flight, for a runner that must exit.

        Return the number of claims released.
        """
        with self._own() as db, db.transaction():
            write_tool(db, None, self.now_ms())
            return db.execute(
                "DELETE FROM processing_ack WHERE status = 'processing' AND incarnation = ?", (self._incarnation,)
            )

    def set_tool(self, tool: DeclaredTimeout | None, started_at: int) -> None:
        """Record the tool in flight since `started_at` (epoch milliseconds), or None for no tool."""
        with self._own() as db, db.transaction():
            write_tool(db, tool, self.now_ms(), started_at)

    def outbound_rows(self, replies: Sequence[Reply]) -> list[OutboundRow]:
        """Give the replies their ids and a timestamp. The commit gives them their seq."""
        now = self.now_ms()
        return [OutboundRow(new_id(now), to_text(now), reply) for reply in replies]

    def _own(self) -> AbstractContextManager[Writer]:
        return self._kept.using(self._outbound, lambda: open_owner(self._outbound, Role.OUTBOUND))

    @contextmanager
    def _both(self) -> Generator[Writer]:
        with self._own() as db:
            try:
                db.attach_reader(self._inbound, INBOUND)
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
            yield db
            db.detach(INBOUND)

    def _is_draining(self, db: Writer) -> bool:
        """Return whether the host is replacing this incarnation.

        Read inside the claim's transaction, which holds inbound.db's read lock: after the host has committed the draining
        row, no further claim succeeds.
        """
        if not db.columns("draining", INBOUND):
            return False
        return db.one("SELECT 1 FROM inbound.draining WHERE incarnation = ?", (self._incarnation,)) is not None

    def _insert_claims(self, db: Writer, messages: Sequence[TurnMessage]) -> None:
        now = to_text(self.now_ms())
        db.executemany(
            # OR REPLACE: an old ack is a `later` that the host has recorded, or an ack that it has declared void.
            "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed, incarnation)"
            " VALUES (?, 'processing', ?, ?)",
            [(message.id, now, self._incarnation) for message in messages],
        )
        # The host has recorded the old deferral. A later message with the same id must start without one.
        db.executemany("DELETE FROM deferrals WHERE message_id = ?", [(message.id,) for message in messages])

    def _with_surroundings(self, db: Writer, messages: tuple[TurnMessage, ...], due: DueMessages) -> Batch:
        return Batch(
            alone=due.alone,
            took_all=due.took_all,
            messages=messages,
            routing=routing(db),
            destinations=destinations(db),
            state={str(row["key"]): str(row["value"]) for row in db.all("SELECT key, value FROM session_state")},
            schedules=tuple(own_schedules(db)),
            check=check_program(db, [message.id for message in messages if message.kind == Kind.TASK]),
        )

    def _is_finished(self, db: Writer, acked: Sequence[str], status: AckStatus) -> bool:
        """Return whether this commit already reached the file: nothing else gives these acks their status."""
        found = [self._ack(db, message_id) for message_id in acked]
        wanted = (status.value, self._incarnation)
        return bool(found) and all(row is not None and (row["status"], row["incarnation"]) == wanted for row in found)

    def _are_cancelled(self, db: Writer, triggers: Sequence[str]) -> bool:
        """Return whether the host has cancelled every trigger. The transaction keeps it from doing so before our commit."""
        query = "SELECT 1 FROM inbound.messages_in WHERE id = ? AND status = 'cancelled'"
        return bool(triggers) and all(db.one(query, (message_id,)) is not None for message_id in triggers)

    def _check_claims(self, db: Writer, acked: Sequence[str]) -> None:
        """Raise ClaimLostError if a claim is no longer ours. Accept a missing claim: the agent may have emptied out/."""
        for message_id in acked:
            row = self._ack(db, message_id)
            if row is not None and (row["status"], row["incarnation"]) != ("processing", self._incarnation):
                raise ClaimLostError(f"message {message_id} is {row['status']} by incarnation {row['incarnation']}.")

    def _ack(self, db: Writer, message_id: str) -> sqlite3.Row | None:
        return db.one("SELECT status, incarnation FROM processing_ack WHERE message_id = ?", (message_id,))

    def _insert_rows(self, db: Writer, rows: Sequence[OutboundRow]) -> None:
        seq = next_seq(db)
        for row in rows:
            insert_row(db, row.id, seq, row.timestamp, row.reply)
            seq += 2

    def _insert_deferrals(self, db: Writer, acked: Sequence[str], retry_at: int | None, reason: str | None) -> None:
        now, after = to_text(self.now_ms()), None if retry_at is None else to_text(retry_at)
        for message_id in acked:
            row = db.one("SELECT deferrals FROM inbound.messages_in WHERE id = ?", (message_id,))
            number = (row["deferrals"] if row is not None else 0) + 1
            db.execute(
                "INSERT OR REPLACE INTO deferrals(message_id, deferral, retry_at, reason) VALUES (?, ?, ?, ?)",
                (message_id, number, after, reason),
            )
            db.execute(
                "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed, incarnation)"
                " VALUES (?, 'later', ?, ?)",
                (message_id, now, self._incarnation),
            )

    def _release(self, db: Writer, released: Sequence[str]) -> None:
        db.executemany(
            "DELETE FROM processing_ack WHERE message_id = ? AND status = 'processing' AND incarnation = ?",
            [(message_id, self._incarnation) for message_id in released],
        )
