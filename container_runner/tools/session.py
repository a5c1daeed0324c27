"""A tool's view of its session: the turn that runs, the destinations, the history; and rows that are sent at once.

The tools run beside the runner, in the same container, so both write outbound.db: SQLite's lock keeps their transactions
apart. Every method opens the files, runs one transaction and closes them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from container_runner.shared.errors import InboundUnreadableError
from container_runner.shared.outbox import Outbox
from container_runner.shared.own_schedules import own_schedules
from schema.connect import open_owner
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.handles import Writer
from schema.ids import MessageLife
from schema.layout import INBOUND_DB, OUTBOUND_DB
from schema.migrate import Role
from schema.rows import Address

_INBOUND: Final = "inbound"
_PLACE: Final = "channel_type, platform_id, thread_id"


@frozen
class Place:
    """A destination by its name. `address` None: nothing can be sent there."""

    name: str
    type: str
    display_name: str | None
    address: Address | None


@frozen
class RunningTurn:
    """What the turn works on: its first trigger, and where that came from. `claimed_at` tells one try from the next."""

    life: MessageLife
    address: Address | None
    claimed_at: str


class ToolSession:
    """One session. `now_ms` is the clock: epoch milliseconds."""

    def __init__(self, in_folder: Path, out_folder: Path, names: tuple[str, str], now_ms: Callable[[], int]) -> None:
        self.names = names
        self.outbox = Outbox(in_folder, out_folder, now_ms)
        self._inbound = in_folder / INBOUND_DB
        self._outbound = out_folder / OUTBOUND_DB

    def turn(self) -> RunningTurn | None:
        """Return the turn that runs, or None between two turns. Raise ClawbusError."""
        with self._both() as db:
            row = db.one(
                f"SELECT id, seq, timestamp, {_PLACE}, a.status_changed FROM inbound.messages_in AS m"
                " JOIN main.processing_ack AS a ON a.message_id = m.id"
                " WHERE m.trigger <> 0 AND a.status = 'processing' ORDER BY seq LIMIT 1"
            )
            if row is None:
                return None
            routing = db.one(f"SELECT {_PLACE} FROM inbound.session_routing WHERE id = 1")
            life = MessageLife(*self.names, row["id"], row["seq"], row["timestamp"])
            address = _address(row) or (_address(routing) if routing is not None else None)
            return RunningTurn(life, address, row["status_changed"])

    def places(self) -> list[Place]:
        """Return the destinations by name. Raise ClawbusError."""
        with self._both() as db:
            rows = db.all(
                # Another agent without a channel is the address `agent` / its agent group's id.
                "SELECT name, type, display_name, NULL AS thread_id,"
                " CASE WHEN type = 'agent' AND channel_type IS NULL THEN 'agent' ELSE channel_type END AS channel_type,"
                " CASE WHEN type = 'agent' AND channel_type IS NULL THEN agent_group_id ELSE platform_id END AS platform_id"
                " FROM inbound.destinations ORDER BY name LIMIT 1000"
            )
        return [Place(row["name"], row["type"], row["display_name"], _address(row)) for row in rows]

    def history(self, limit: int, before: int) -> list[sqlite3.Row]:
        """Return the newest `limit` messages and answers below the seq `before`, newest first. Raise ClawbusError."""
        with self._both() as db:
            return db.all(
                "SELECT * FROM (SELECT id, seq, kind, timestamp, content, 'in' AS direction FROM inbound.messages_in"
                " UNION ALL SELECT id, seq, kind, timestamp, content, 'out' FROM main.messages_out)"
                " WHERE seq < ? ORDER BY seq DESC LIMIT ?",
                (before, limit),
            )

    def schedule_outcome(self, row_id: str) -> dict[str, Any] | None:
        """Return the outcome of a request about a schedule, or None while the host has not read it. Raise ClawbusError."""
        with self._both() as db:
            if not db.columns("schedule_requests", _INBOUND):
                return _refusal("NOT_SUPPORTED", "this host has no schedules for agents")
            row = db.one("SELECT outcome FROM inbound.schedule_requests WHERE id = ?", (row_id,))
            if row is not None:
                return json.loads(row["outcome"])
            refused = db.one("SELECT status FROM inbound.delivered WHERE message_out_id = ?", (row_id,))
        if refused is None or refused["status"] != "failed":
            return None
        return _refusal("REFUSED", "the host refused it: the answers would have nowhere to go")

    def schedules(self) -> list[dict[str, object]]:
        """Return the agent's own schedules of this session. Raise ClawbusError."""
        with self._both() as db:
            return own_schedules(db)

    def sent(self, row_id: str) -> Address | None:
        """Return where an own row went, or None if there is no such row. Raise ClawbusError."""
        with self._both() as db:
            row = db.one(f"SELECT {_PLACE} FROM main.messages_out WHERE id = ?", (row_id,))
        return _address(row) if row is not None else None

    def place_of(self, message_id: str) -> Address | None:
        """Return a message's origin, or the place an own row was sent to; None if there is no such message. Raise ClawbusError."""
        with self._both() as db:
            row = db.one(
                f"SELECT {_PLACE} FROM main.messages_out WHERE id = ?1 UNION ALL"
                f" SELECT {_PLACE} FROM inbound.messages_in WHERE id = ?1 LIMIT 1",
                (message_id,),
            )
            routing = db.one(f"SELECT {_PLACE} FROM inbound.session_routing WHERE id = 1")
        if row is None:
            return None
        return _address(row) or (_address(routing) if routing is not None else None)

    @contextmanager
    def _both(self) -> Generator[Writer]:
        with open_owner(self._outbound, Role.OUTBOUND) as db:
            try:
                db.attach_reader(self._inbound, _INBOUND)
            except ClawbusError as error:
                raise InboundUnreadableError(str(error)) from error
            yield db


def _refusal(code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": f"{message}.", "fix": "Tell the person you work for."}}


def _address(row: sqlite3.Row) -> Address | None:
    if row["channel_type"] is None or row["platform_id"] is None:
        return None
    return Address(row["channel_type"], row["platform_id"], row["thread_id"])
