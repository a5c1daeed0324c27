"""All SQL of the runner: what is due, claims, and the commit of a turn. Knows no provider and no loop.

outbound.db is ours; inbound.db is only ever attached read-only. Every method opens, works and closes, and is one
transaction. Every method blocks (a lock may be waited for): while a turn runs, call it in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from container_runner.errors import ClaimLostError, InboundUnreadableError
from container_runner.providers.protocol import Destination, Silence, TurnMessage
from container_runner.replies import Reply
from schema.bell import ring
from schema.connect import Writer, open_owner
from schema.errors import ClawbusError
from schema.ids import new_id
from schema.instants import to_text
from schema.layout import INBOUND_DB, OUTBOUND_DB
from schema.migrate import Role
from schema.rows import AckStatus, Address, TurnNote

_INBOUND: Final = "inbound"
MAX_NOTE: Final = 2000

# What an older host's messages_in may lack, and what its absence means.
_OPTIONAL: Final = (("trigger", "1"), ("on_wake", "0"))

_DUE: Final = """
  FROM (SELECT id, seq, kind, timestamp, content, status, process_after, channel_type, platform_id, thread_id,
               {trigger} AS wakes, {on_wake} AS on_wake FROM inbound.messages_in) AS m
 WHERE m.status = 'pending'
   AND coalesce(julianday(m.process_after), 0) <= julianday(:now)
   AND (m.on_wake = 0 OR :first_poll)
   AND NOT EXISTS (SELECT 1 FROM main.processing_ack AS a WHERE a.message_id = m.id)
"""
_COLUMNS: Final = (
    "SELECT m.id, m.seq, m.kind, m.timestamp, m.content, m.wakes, m.channel_type, m.platform_id, m.thread_id"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Claimed rows in seq order, and what belongs to a turn, read in the same transaction."""

    messages: tuple[TurnMessage, ...]
    routing: Address | None
    destinations: tuple[Destination, ...]
    state: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OutboundRow:
    """A reply with its identity: made once, so that a repeated commit is the same commit."""

    id: str
    timestamp: str
    reply: Reply


class Store:
    """One incarnation's hands on its session's two files. `now_ms` is the clock: epoch milliseconds."""

    def __init__(self, in_folder: Path, out_folder: Path, incarnation: str, now_ms: Callable[[], int]) -> None:
        self._inbound = in_folder / INBOUND_DB
        self._outbound = out_folder / OUTBOUND_DB
        self._incarnation = incarnation
        self._now_ms = now_ms

    def start(self) -> int:
        """Before anything else: drop every 'processing' row and the tool in flight; both are a predecessor's.

        Returns the number of rows dropped. Raises ClaimLostError when one is of this very incarnation: its container was
        started a second time. The host charges the message to that incarnation once; dropped here, it never would.
        """
        with open_owner(self._outbound, Role.OUTBOUND) as db, db.transaction():
            own = db.one(
                "SELECT message_id FROM processing_ack WHERE status = 'processing' AND incarnation = ?",
                (self._incarnation,),
            )
            if own is not None:
                raise ClaimLostError(
                    f"message {own['message_id']} was in hand when this container ended, and it was started again.",
                    hint="Nothing to do: the daemon ends this container and starts another one.",
                )
            dropped = db.execute("DELETE FROM processing_ack WHERE status = 'processing'")
            self._set_tool(db, None)
            return dropped

    def claim(self, limit: int, *, first_poll: bool, silence: Silence | None = None) -> Batch | None:
        """Claim what is due, oldest first, at most `limit` rows; None when there is no trigger among what is due.

        With `silence`, container_state says so in the same transaction. Raises InboundUnreadableError.
        """
        with self._both() as db:
            due = _Due(db, to_text(self._now_ms()), first_poll)
            # A look without a lock: most polls find nothing, and must not write for it.
            if due.first_trigger() is None:
                return None
            with db.transaction():
                if self._is_draining(db):
                    return None
                messages = due.batch(limit)
                if messages:
                    self._insert_claims(db, messages)
                    if silence is not None:
                        self._set_tool(db, silence)
                return self._with_surroundings(db, messages) if messages else None

    def finish(
        self,
        rows: Sequence[OutboundRow],
        acked: Sequence[str],
        status: AckStatus,
        *,
        released: Sequence[str] = (),
        state: Mapping[str, str | None] | None = None,
        note: TurnNote | None = None,
    ) -> None:
        """Commit a turn: its outbound rows, its acks, its state, its note for the operator, and no tool in flight any more;
        all or nothing.

        Repeating it after an error of unknown effect is safe. Raises InboundUnreadableError, ClaimLostError.
        """
        with self._both() as db, db.transaction():
            if self._is_finished(db, acked, status):
                return
            self._check_claims(db, acked)
            self._insert_rows(db, rows)
            now = to_text(self._now_ms())
            db.executemany(
                "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed, incarnation)"
                " VALUES (?, ?, ?, ?)",
                [(message_id, status.value, now, self._incarnation) for message_id in acked],
            )
            self._keep_note(db, acked, note, now)
            self._release(db, released)
            self._keep_state(db, state or {}, now)
            self._set_tool(db, None)
        ring(self._outbound.parent)

    def release_all(self) -> int:
        """Give every claim of this incarnation back and clear the tool: the end of a runner that must go."""
        with open_owner(self._outbound, Role.OUTBOUND) as db, db.transaction():
            self._set_tool(db, None)
            return db.execute(
                "DELETE FROM processing_ack WHERE status = 'processing' AND incarnation = ?", (self._incarnation,)
            )

    def set_tool(self, tool: Silence | None, started_at: int) -> None:
        """Say what is in flight since `started_at` (epoch milliseconds)."""
        with open_owner(self._outbound, Role.OUTBOUND) as db, db.transaction():
            self._set_tool(db, tool, started_at)

    def outbound_rows(self, replies: Sequence[Reply]) -> list[OutboundRow]:
        """Replies with ids and a time. They get their seq at the commit."""
        now = self._now_ms()
        return [OutboundRow(new_id(now), to_text(now), reply) for reply in replies]

    @contextmanager
    def _both(self) -> Generator[Writer]:
        with open_owner(self._outbound, Role.OUTBOUND) as db:
            try:
                db.attach_reader(self._inbound, _INBOUND)
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
            yield db

    def _is_draining(self, db: Writer) -> bool:
        """Whether the host replaces this incarnation. Read inside the claim's transaction, which holds inbound.db's read
        lock: once the host has committed that row, no claim follows."""
        if not db.columns("draining", _INBOUND):
            return False
        return db.one("SELECT 1 FROM inbound.draining WHERE incarnation = ?", (self._incarnation,)) is not None

    def _insert_claims(self, db: Writer, messages: Sequence[TurnMessage]) -> None:
        now = to_text(self._now_ms())
        db.executemany(
            "INSERT INTO processing_ack(message_id, status, status_changed, incarnation)"
            " VALUES (?, 'processing', ?, ?)",
            [(message.id, now, self._incarnation) for message in messages],
        )

    def _with_surroundings(self, db: Writer, messages: tuple[TurnMessage, ...]) -> Batch:
        return Batch(
            messages=messages,
            routing=_routing(db),
            destinations=_destinations(db),
            state={str(row["key"]): str(row["value"]) for row in db.all("SELECT key, value FROM session_state")},
        )

    def _is_finished(self, db: Writer, acked: Sequence[str], status: AckStatus) -> bool:
        """Whether this very commit went through before: its claims can only have become this by it."""
        found = [self._ack(db, message_id) for message_id in acked]
        wanted = (status.value, self._incarnation)
        return bool(found) and all(row is not None and (row["status"], row["incarnation"]) == wanted for row in found)

    def _check_claims(self, db: Writer, acked: Sequence[str]) -> None:
        """A claim that is gone may be finished all the same (the agent emptied its folder); another's may not."""
        for message_id in acked:
            row = self._ack(db, message_id)
            if row is not None and (row["status"], row["incarnation"]) != ("processing", self._incarnation):
                raise ClaimLostError(f"message {message_id} is {row['status']} by incarnation {row['incarnation']}.")

    def _ack(self, db: Writer, message_id: str) -> sqlite3.Row | None:
        return db.one("SELECT status, incarnation FROM processing_ack WHERE message_id = ?", (message_id,))

    def _insert_rows(self, db: Writer, rows: Sequence[OutboundRow]) -> None:
        seq = _next_odd(_max_seq(db))
        for row in rows:
            reply = row.reply
            after = None if reply.deliver_after is None else to_text(reply.deliver_after)
            db.execute(
                "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, deliver_after, kind, platform_id,"
                " channel_type, thread_id, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(row.id, seq, reply.in_reply_to, row.timestamp, after, reply.kind),
                    *(reply.platform_id, reply.channel_type, reply.thread_id, reply.content),
                ),
            )
            seq += 2

    def _release(self, db: Writer, released: Sequence[str]) -> None:
        db.executemany(
            "DELETE FROM processing_ack WHERE message_id = ? AND status = 'processing' AND incarnation = ?",
            [(message_id, self._incarnation) for message_id in released],
        )

    def _keep_note(self, db: Writer, acked: Sequence[str], note: TurnNote | None, now: str) -> None:
        """The note of the last turn, or none: what a former try left is no longer so."""
        db.executemany("DELETE FROM turn_notes WHERE message_id = ?", [(message_id,) for message_id in acked])
        if note is not None:
            db.executemany(
                "INSERT INTO turn_notes(message_id, incarnation, at, code, message) VALUES (?, ?, ?, ?, ?)",
                [(message_id, self._incarnation, now, note.code, _storable(note.message)) for message_id in acked],
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

    def _set_tool(self, db: Writer, tool: Silence | None, started_at: int | None = None) -> None:
        now = self._now_ms()
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
    """Bounded, and UTF-8: an exception's text may quote bytes that are not."""
    return text[:MAX_NOTE].encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


class _Due:
    """The rows of inbound.db that are due and carry no ack of any kind."""

    def __init__(self, db: Writer, now: str, first_poll: bool) -> None:
        present = db.columns("messages_in", _INBOUND)
        names = {name: f"coalesce({name}, {default})" if name in present else default for name, default in _OPTIONAL}
        self._db = db
        self._from = _DUE.format(**names)
        self._named = {"now": now, "first_poll": int(first_poll)}

    def first_trigger(self) -> int | None:
        """The seq of the oldest row that wakes, or None."""
        rows = self._rows("AND m.wakes <> 0 ORDER BY m.seq LIMIT 1")
        return rows[0].seq if rows else None

    def batch(self, limit: int) -> tuple[TurnMessage, ...]:
        """The oldest `limit` rows; if none of them wakes, the oldest that does with the context nearest before it.

        So context never hides a trigger, however much of it there is; what is left of it rides with later turns.
        """
        oldest = self._rows("ORDER BY m.seq LIMIT :limit", limit=limit)
        if any(message.trigger for message in oldest):
            return tuple(oldest)
        triggers = self._rows("AND m.wakes <> 0 ORDER BY m.seq LIMIT 1")
        if not triggers:
            return ()
        nearest = self._rows(
            "AND m.seq < :before ORDER BY m.seq DESC LIMIT :limit", before=triggers[0].seq, limit=limit - 1
        )
        return (*reversed(nearest), *triggers)

    def _rows(self, tail: str, **more: int) -> list[TurnMessage]:
        rows = self._db.all(f"{_COLUMNS} {self._from} {tail}", {**self._named, **more})
        return [_message(row) for row in rows]


def _message(row: sqlite3.Row) -> TurnMessage:
    return TurnMessage(
        id=row["id"],
        seq=row["seq"],
        kind=row["kind"],
        timestamp=row["timestamp"],
        content=row["content"],
        trigger=bool(row["wakes"]),
        channel_type=row["channel_type"],
        platform_id=row["platform_id"],
        thread_id=row["thread_id"],
    )


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
    """Another agent is a place too: channel `agent`, and its group's id as the platform id."""
    channel, place = row["channel_type"], row["platform_id"]
    if row["type"] == "agent" and channel is None:
        channel, place = "agent", row["agent_group_id"]
    return Destination(row["name"], row["type"], row["display_name"], channel, place)


def _max_seq(db: Writer) -> int:
    """Above everything that either side holds, and above what the host has taken note of: below that, no row is sent."""
    noted = "coalesce((SELECT seq FROM inbound.delivery_cursor WHERE id = 1), 0)"
    row = db.one(
        "SELECT max(coalesce((SELECT max(seq) FROM main.messages_out), 0),"
        " coalesce((SELECT max(seq) FROM inbound.messages_in), 0),"
        f" {noted if db.columns('delivery_cursor', _INBOUND) else '0'}) AS seq"
    )
    return int(row["seq"]) if row is not None else 0


def _next_odd(seq: int) -> int:
    return seq + 1 if seq % 2 == 0 else seq + 2
