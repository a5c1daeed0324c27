"""One session's two files with a test as everybody: the bus that accepts, the runner that claims and answers.

Rows go in through the product's own functions where the host writes, and as a runner writes them where it does. Time is
`now`, an integer that the test moves. Nothing here sleeps, sends or spawns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from daemon.store import messages
from daemon.store.session_files import SessionFiles
from schema.connect import open_owner, open_reader
from schema.handles import Writer
from schema.instants import to_text
from schema.migrate import Role
from schema.plain_file import ReadLimits
from schema.rows import Address, MessageIn, MessageStatus

NOW: Final = 1_795_219_200_000  # 2026-11-21T00:00:00Z
HOME: Final = Address("local", "me")


class SessionWorld:
    """A session folder at `root`, and the clock of all who use it: `now` (epoch ms)."""

    def __init__(self, root: Path, now: int = NOW) -> None:
        self.files = SessionFiles(root, ReadLimits())
        self.files.create()
        self.root = root
        self.now = now

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000

    def slept_s(self) -> float:
        return 0.0

    # the host

    def accept(
        self,
        message_id: str,
        *,
        content: str = '{"text":"hello"}',
        process_after: int | None = None,
        recurrence: str | None = None,
        trigger: bool = True,
        address: Address | None = HOME,
        route: bool = True,
    ) -> MessageIn:
        """Store a message as the ingress does."""
        with self.files.inbound() as db, db.transaction():
            message = MessageIn(
                id=message_id,
                seq=messages.next_even_seq(db),
                kind="chat",
                timestamp=to_text(self.now),
                status=MessageStatus.PENDING,
                content=content,
                process_after=process_after,
                recurrence=recurrence,
                series_id=message_id,
                trigger=trigger,
                channel_type=address.channel_type if address else None,
                platform_id=address.platform_id if address else None,
                thread_id=address.thread_id if address else None,
            )
            messages.insert(db, message, self.now)
            if address is not None and route:
                messages.set_routing(db, address)
        return message

    def allow(self, channel_type: str, platform_id: str) -> None:
        """A destination the session may write to."""
        self.change(
            "INSERT INTO destinations(name, type, channel_type, platform_id) VALUES (?, 'channel', ?, ?)",
            (f"{channel_type}:{platform_id}", channel_type, platform_id),
        )

    def change(self, sql: str, params: Sequence[object] = ()) -> None:
        """Any other change of the host's file."""
        with self.files.inbound() as db, db.transaction():
            db.execute(sql, params)

    def read(self, sql: str, params: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Rows of the host's file."""
        with open_reader(self.files.folder.inbound_db) as db:
            return [dict(row) for row in db.all(sql, params)]

    def message(self, message_id: str) -> dict[str, Any]:
        """One message's row."""
        (row,) = self.read("SELECT * FROM messages_in WHERE id = ?", (message_id,))
        return row

    def events(self, message_id: str) -> list[str]:
        """The names in a message's history, in order."""
        rows = self.read("SELECT event FROM message_history WHERE message_id = ? ORDER BY id", (message_id,))
        return [row["event"] for row in rows]

    # the container

    def runner(self) -> Writer:
        """The container's own handle on its file."""
        return open_owner(self.files.folder.outbound_db, Role.OUTBOUND)

    def claim(self, *message_ids: str, by: str | None, at: int | None = None) -> None:
        """`processing` acks of an incarnation."""
        self.ack("processing", *message_ids, by=by, at=at)

    def ack(self, status: str, *message_ids: str, by: str | None, at: int | None = None) -> None:
        """Acks as a runner writes them."""
        with self.runner() as db, db.transaction():
            for message_id in message_ids:
                db.execute(
                    "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed, incarnation)"
                    " VALUES (?, ?, ?, ?)",
                    (message_id, status, to_text(self.now if at is None else at), by),
                )

    def unclaim(self, *message_ids: str) -> None:
        """The runner gives claims back."""
        with self.runner() as db, db.transaction():
            for message_id in message_ids:
                db.execute("DELETE FROM processing_ack WHERE message_id = ?", (message_id,))

    def say(
        self,
        row_id: str,
        *,
        to: Address | None = None,
        in_reply_to: str | None = None,
        deliver_after: int | None = None,
        kind: str = "chat",
        content: object = "hi",
        seq: int | None = None,
    ) -> int:
        """An outbound row; returns its seq: the next odd one unless told."""
        top = self.read("SELECT max(seq) AS top FROM messages_in")[0]["top"] or 0
        with self.runner() as db, db.transaction():
            row = db.one("SELECT max(seq) AS top FROM messages_out")
            highest = max(top, (row["top"] if row is not None else 0) or 0)
            number = seq if seq is not None else highest + 1 + highest % 2
            db.execute(
                "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, deliver_after, kind, channel_type,"
                " platform_id, thread_id, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row_id, number, in_reply_to, to_text(self.now),
                    None if deliver_after is None else to_text(deliver_after), kind,
                    to.channel_type if to else None, to.platform_id if to else None, to.thread_id if to else None,
                    content if isinstance(content, str) and content[:1] in '{["' else json.dumps({"text": content}),
                ),
            )  # fmt: skip
        return number
