"""Claims due messages and commits turns, in SQL. `due_messages.py` decides what is due. Knows no provider and no loop.

The runner owns outbound.db and keeps it open between operations. It attaches inbound.db read-only, for one operation at
a time. Every method runs one transaction and may wait for a lock: while a turn runs, call it in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

from container_runner.due_messages import DueMessages
from container_runner.providers.protocol import DeclaredTimeout, Destination, TurnMessage
from container_runner.shared.errors import ClaimLostError, InboundUnreadableError
from container_runner.shared.outbox import Outbox, insert_row, next_seq
from container_runner.shared.own_schedules import check_program, own_schedules
from container_runner.shared.reply import Reply
from container_runner.tool_times import calls_text
from schema.bell import ring
from schema.connect import open_owner
from schema.errors import ClawbusError
from schema.file_pool import FilePool
from schema.handles import Writer
from schema.ids import new_id
from schema.instants import to_text
from schema.layout import INBOUND_DB, OUTBOUND_DB
from schema.migrate import Role
from schema.rows import AckStatus, Address, Kind, TurnNote, TurnUsage

_INBOUND: Final = "inbound"
MAX_NOTE: Final = 2000


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
            self._set_tool(db, None)
            return dropped

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
                        self._set_tool(db, silence)
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
                self._keep_usage(db, usage, to_text(self.now_ms()))
                self._set_tool(db, None)
                return False
            self._insert_rows(db, rows)
            now = to_text(self.now_ms())
            db.executemany(
                "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed, incarnation)"
                " VALUES (?, ?, ?, ?)",
                [(message_id, status.value, now, self._incarnation) for message_id in acked],
            )
            self._keep_note(db, acked, note, now)
            self._keep_usage(db, usage, now)
            db.executemany("DELETE FROM deferrals WHERE message_id = ?", [(message_id,) for message_id in acked])
            self._release(db, released)
            self._keep_state(db, state or {}, now)
            self._set_tool(db, None)
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
            if "deferrals" not in db.columns("messages_in", _INBOUND):
                return False
            if not self._is_finished(db, acked, AckStatus.LATER):
                self._check_claims(db, acked)
                self._insert_deferrals(db, acked, retry_at, reason)
                self._release(db, released)
                self._set_tool(db, None)
        ring(self._outbound.parent)
        return True

    def give_back(self, message_ids: Sequence[str], usage: tuple[str, TurnUsage] | None = None) -> None:
        """Release these claims and clear the tool in flight. Their messages can be claimed again. Safe to repeat.

        `usage` is what the turn used until then, under the id of one of its messages.
        """
        with self._own() as db, db.transaction():
            self._release(db, message_ids)
            self._keep_usage(db, usage, to_text(self.now_ms()))
            self._set_tool(db, None)

    def release_all(self) -> int:
        """Release every claim of this incarnation and clear the tool in flight, for a runner that must exit.

        Return the number of claims released.
        """
        with self._own() as db, db.transaction():
            self._set_tool(db, None)
            return db.execute(
                "DELETE FROM processing_ack WHERE status = 'processing' AND incarnation = ?", (self._incarnation,)
            )

    def set_tool(self, tool: DeclaredTimeout | None, started_at: int) -> None:
        """Record the tool in flight since `started_at` (epoch milliseconds), or None for no tool."""
        with self._own() as db, db.transaction():
            self._set_tool(db, tool, started_at)

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
                db.attach_reader(self._inbound, _INBOUND)
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
            yield db
            db.detach(_INBOUND)

    def _is_draining(self, db: Writer) -> bool:
        """Return whether the host is replacing this incarnation.

        Read inside the claim's transaction, which holds inbound.db's read lock: after the host has committed the draining
        row, no further claim succeeds.
        """
        if not db.columns("draining", _INBOUND):
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
            routing=_routing(db),
            destinations=_destinations(db),
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

    def _keep_note(self, db: Writer, acked: Sequence[str], note: TurnNote | None, now: str) -> None:
        """Replace the notes for the operator on these messages by this turn's note, if it has one."""
        db.executemany("DELETE FROM turn_notes WHERE message_id = ?", [(message_id,) for message_id in acked])
        if note is not None:
            db.executemany(
                "INSERT INTO turn_notes(message_id, incarnation, at, code, message) VALUES (?, ?, ?, ?, ?)",
                [(message_id, self._incarnation, now, note.code, _storable(note.message)) for message_id in acked],
            )

    def _keep_usage(self, db: Writer, usage: tuple[str, TurnUsage] | None, now: str) -> None:
        if usage is None:
            return
        message_id, used = usage
        db.execute(
            "INSERT OR REPLACE INTO turn_usage(message_id, incarnation, at, input_tokens, output_tokens, cached_tokens,"
            " cost, currency, tools) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(message_id, self._incarnation, now),
                *(used.input_tokens, used.output_tokens, used.cached_tokens, used.cost, used.currency),
                calls_text(used.tools),
            ),
        )

    def _keep_state(self, db: Writer, state: Mapping[str, str | None], now: str) -> None:
        for key, value in state.items():
            if value is None:
                db.execute("DELETE FROM session_state WHERE key = ?", (key,))
            else:
                db.execute(
                    "INSERT INTO session_state(key, value, updated_at) VALUES (?, ?, ?)"
                    " ON CONFLICT(key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
                    (key, value, now),
                )

    def _set_tool(self, db: Writer, tool: DeclaredTimeout | None, started_at: int | None = None) -> None:
        now = self.now_ms()
        declared = None if tool is None or tool.timeout_s is None else int(tool.timeout_s * 1000)
        started = None if tool is None else to_text(now if started_at is None else started_at)
        db.execute(
            "INSERT INTO container_state(id, current_tool, tool_declared_timeout_ms, tool_started_at, updated_at)"
            " VALUES (1, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET current_tool = excluded.current_tool,"
            " tool_declared_timeout_ms = excluded.tool_declared_timeout_ms,"
            " tool_started_at = excluded.tool_started_at, updated_at = excluded.updated_at",
            (None if tool is None else tool.name, declared, started, to_text(now)),
        )


def _storable(text: str) -> str:
    """Return the text, cut to MAX_NOTE characters, as SQLite can store it: an exception may quote any bytes."""
    return text[:MAX_NOTE].encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _routing(db: Writer) -> Address | None:
    if not db.columns("session_routing", _INBOUND):
        return None
    row = db.one("SELECT channel_type, platform_id, thread_id FROM inbound.session_routing WHERE id = 1")
    if row is None or row["channel_type"] is None or row["platform_id"] is None:
        return None
    return Address(row["channel_type"], row["platform_id"], row["thread_id"])


def _destinations(db: Writer) -> tuple[Destination, ...]:
    if not db.columns("destinations", _INBOUND):
        return ()
    return tuple(_destination(row) for row in db.all("SELECT * FROM inbound.destinations ORDER BY name"))


def _destination(row: sqlite3.Row) -> Destination:
    """Return a row's destination. Another agent is a place on the channel `agent`, with the id of its agent group."""
    channel, place = row["channel_type"], row["platform_id"]
    if row["type"] == "agent" and channel is None:
        channel, place = "agent", row["agent_group_id"]
    return Destination(row["name"], row["type"], row["display_name"], channel, place)
