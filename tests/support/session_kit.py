"""A session folder as a test's host sees it: puts rows in, looks at what a runner wrote, checks the file invariants.

Opens files as the daemon does, through schema.connect.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from schema import layout
from schema.connect import open_owner, open_reader
from schema.errors import ClawbusError
from schema.handles import Writer
from schema.instants import from_text
from schema.migrate import Role
from schema.rows import RunnerSettings

STAMP: Final = "2026-11-21T00:00:00.000Z"
HOME: Final = ("local", "me", None)


class SessionKit:
    """One session folder with in/, out/ and an agent's folder."""

    def __init__(self, root: Path) -> None:
        self.folder = layout.SessionFolder(root)
        self.agent = root / "agent"
        for folder in (self.folder.inbox, self.folder.outbox, self.agent):
            folder.mkdir(parents=True)
        self.host().close()

    def host(self) -> Writer:
        return open_owner(self.folder.inbound_db, Role.INBOUND)

    def add(
        self,
        message_id: str,
        text: str = "hello",
        *,
        content: str | None = None,
        trigger: int = 1,
        on_wake: int = 0,
        status: str = "pending",
        process_after: str | None = None,
        address: tuple[str | None, str | None, str | None] = HOME,
        kind: str = "chat",
        tries: int = 0,
    ) -> int:
        """Insert a row as the host does; returns its seq."""
        with self.host() as db, db.transaction():
            row = db.one("SELECT coalesce(max(seq), 0) AS seq FROM messages_in")
            out = self.out()
            highest = max([row["seq"] if row is not None else 0, *(found["seq"] for found in out)])
            seq = highest + 2 - highest % 2
            db.execute(
                "INSERT INTO messages_in(id, seq, kind, timestamp, status, process_after, series_id, trigger, on_wake,"
                " tries, channel_type, platform_id, thread_id, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(message_id, seq, kind, STAMP, status, process_after, message_id, trigger, on_wake),
                    *(tries, *address),
                    json.dumps({"text": text}) if content is None else content,
                ),
            )
        return int(seq)

    def change(self, sql: str, params: Sequence[object] = ()) -> None:
        """Any other change of the host's file."""
        with self.host() as db, db.transaction():
            db.execute(sql, params)

    def route(self, channel_type: str, platform_id: str, thread_id: str | None = None) -> None:
        self.change(
            "INSERT OR REPLACE INTO session_routing VALUES (1, ?, ?, ?)", (channel_type, platform_id, thread_id)
        )

    def destination(
        self, name: str, channel_type: str | None, platform_id: str | None, group: str | None = None
    ) -> None:
        kind = "channel" if group is None else "agent"
        self.change(
            "INSERT INTO destinations(name, display_name, type, channel_type, platform_id, agent_group_id)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (name, name.title(), kind, channel_type, platform_id, group),
        )

    def runner_file(self) -> Writer:
        return open_owner(self.folder.outbound_db, Role.OUTBOUND)

    def _read(self, sql: str) -> list[dict[str, Any]]:
        if not self.folder.outbound_db.exists():
            return []
        try:
            with open_reader(self.folder.outbound_db) as db:
                return [dict(row) for row in db.all(sql)]
        except ClawbusError:
            return []  # the runner is making or committing it; whoever waits looks again

    def out(self) -> list[dict[str, Any]]:
        return self._read("SELECT * FROM messages_out ORDER BY seq")

    def contents(self) -> list[dict[str, Any]]:
        return [json.loads(row["content"]) for row in self.out()]

    def notes(self) -> list[dict[str, Any]]:
        return self._read("SELECT * FROM turn_notes")

    def usage(self) -> list[dict[str, Any]]:
        return self._read("SELECT * FROM turn_usage")

    def acks(self) -> dict[str, str]:
        return {row["message_id"]: row["status"] for row in self._read("SELECT * FROM processing_ack")}

    def claimed_at(self, message_id: str) -> int:
        """The epoch millisecond of its ack's last change."""
        rows = {row["message_id"]: row for row in self._read("SELECT * FROM processing_ack")}
        return from_text(rows[message_id]["status_changed"]) or 0

    def claimants(self) -> dict[str, str | None]:
        return {row["message_id"]: row["incarnation"] for row in self._read("SELECT * FROM processing_ack")}

    def tool(self) -> dict[str, Any]:
        rows = self._read("SELECT * FROM container_state")
        return rows[0] if rows else {}

    def state(self) -> dict[str, str]:
        return {row["key"]: row["value"] for row in self._read("SELECT * FROM session_state")}

    @property
    def heartbeat(self) -> Path:
        return self.folder.outbox / layout.HEARTBEAT

    def environment(self, incarnation: str, **settings: Any) -> dict[str, str]:
        """What a runner of this folder is started with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLAWBUS_")}
        return {
            **kept,
            layout.ENV_IN: str(self.folder.inbox),
            layout.ENV_OUT: str(self.folder.outbox),
            layout.ENV_AGENT: str(self.agent),
            layout.ENV_INCARNATION: incarnation,
            layout.ENV_RUNNER: json.dumps({"log_level": "debug", **settings}),
            layout.ENV_AGENT_NAME: "a",
            layout.ENV_SESSION_NAME: "s",
        }

    def check(self) -> None:
        """What must hold of the two files whatever happened to the runner."""
        with self.host() as db, open_reader(self.folder.outbound_db) as out:
            even = [row["seq"] for row in db.all("SELECT seq FROM messages_in")]
            odd = [row["seq"] for row in out.all("SELECT seq FROM messages_out ORDER BY rowid")]
            mode = out.one("PRAGMA journal_mode")
        assert mode is not None
        assert mode[0] == "delete"
        assert all(seq % 2 == 0 for seq in even)
        assert all(seq % 2 == 1 for seq in odd)
        assert odd == sorted(set(odd))
        answered = {row["in_reply_to"] for row in self.out()}
        answered.update(message_id for content in self.contents() for message_id in content.get("answers", ()))
        finished = {message_id for message_id, status in self.acks().items() if status in {"completed", "failed"}}
        triggers = {row[0] for row in self._inbound("SELECT id FROM messages_in WHERE trigger = 1")}
        assert finished & triggers <= answered, "acked, and no answer names it"
        claimed = {message_id for message_id, status in self.acks().items() if status == "processing"}
        assert not claimed & answered, "answered, and not acked"

    def _inbound(self, sql: str) -> list[Any]:
        with self.host() as db:
            return db.all(sql)


async def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Poll until it holds; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        await anyio.sleep(0.005)


def quick(**settings: Any) -> RunnerSettings:
    """Settings of an in-process runner that looks soon and stops at once."""
    return RunnerSettings(**{"poll_s": 0.05, "watch_step_ms": 1, "grace_s": 0.0, **settings})
