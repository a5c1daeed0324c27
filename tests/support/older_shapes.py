"""Session files as older NanoClaw versions made them, with rows in them.

The column lists follow github.com/nanocoai/nanoclaw, src/db/session-db.ts and its migrations of messages_in and
delivered: the shape before series_id, trigger, source_session_id and on_wake were added, and those in between.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

OLDEST_IN: Final = """
CREATE TABLE messages_in (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT NOT NULL, timestamp TEXT NOT NULL,
  status TEXT DEFAULT 'pending', process_after TEXT, recurrence TEXT, tries INTEGER DEFAULT 0, platform_id TEXT,
  channel_type TEXT, thread_id TEXT, content TEXT NOT NULL);
CREATE TABLE delivered (message_out_id TEXT PRIMARY KEY, delivered_at TEXT NOT NULL);
CREATE TABLE destinations (name TEXT PRIMARY KEY, display_name TEXT, type TEXT NOT NULL, channel_type TEXT,
  platform_id TEXT, agent_group_id TEXT);
"""
ROUTING: Final = """
CREATE TABLE session_routing (id INTEGER PRIMARY KEY CHECK (id = 1), channel_type TEXT, platform_id TEXT, thread_id TEXT);
"""
ROWS_IN: Final = """
INSERT INTO messages_in(id, seq, kind, timestamp, status, process_after, recurrence, tries, content) VALUES
  ('done', 2, 'chat', '2026-04-23 15:12:16', 'completed', NULL, NULL, 0, '{"text":"one"}'),
  ('open', 4, 'chat', '2026-04-23T15:12:17.000Z', 'pending', NULL, NULL, 1, '{"text":"two"}'),
  ('lost', 6, 'task', '2026-04-23 15:12:18', 'failed', '2026-04-24 00:00:00', NULL, 5, '{"text":"three"}'),
  ('held', 8, 'task', '2026-04-23 15:12:19', 'paused', NULL, '0 9 * * *', 0, '{"text":"four"}'),
  ('bare', 10, 'chat', '2026-04-23 15:12:20', 'pending', NULL, NULL, NULL, '{"text":"five"}');
INSERT INTO delivered(message_out_id, delivered_at) VALUES ('o1', '2026-04-23 15:13:00');
"""
OLDEST_OUT: Final = """
CREATE TABLE messages_out (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, in_reply_to TEXT, timestamp TEXT NOT NULL,
  deliver_after TEXT, recurrence TEXT, kind TEXT NOT NULL, platform_id TEXT, channel_type TEXT, thread_id TEXT,
  content TEXT NOT NULL);
CREATE TABLE processing_ack (message_id TEXT PRIMARY KEY, status TEXT NOT NULL, status_changed TEXT NOT NULL);
CREATE TABLE session_state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
ROWS_OUT: Final = """
INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, content) VALUES
  ('o1', 3, 'done', '2026-04-23 15:12:59', 'chat', 'me', 'local', '{"text":"sent"}'),
  ('o2', 5, 'open', '2026-04-23 15:13:59', 'chat', 'me', 'local', '{"text":"not sent"}');
INSERT INTO processing_ack VALUES ('done', 'completed', '2026-04-23 15:12:59'), ('open', 'processing', '2026-04-23 15:13:00');
INSERT INTO session_state(key, value) VALUES ('conversation', 'abc');
"""

# name -> what is done to the oldest shape before its rows come in
INBOUND_SHAPES: Final = {
    "oldest": "",
    "with routing": ROUTING,
    "with series": ROUTING + "ALTER TABLE messages_in ADD COLUMN series_id TEXT;"
    "CREATE INDEX idx_messages_in_series ON messages_in(series_id);",
    "with trigger": ROUTING + "ALTER TABLE messages_in ADD COLUMN trigger INTEGER NOT NULL DEFAULT 1;",
    "with receipts": ROUTING + "ALTER TABLE delivered ADD COLUMN platform_message_id TEXT;"
    "ALTER TABLE delivered ADD COLUMN status TEXT NOT NULL DEFAULT 'delivered';",
    "without on_wake": ROUTING + "ALTER TABLE messages_in ADD COLUMN series_id TEXT;"
    "ALTER TABLE messages_in ADD COLUMN trigger INTEGER NOT NULL DEFAULT 1;"
    "ALTER TABLE messages_in ADD COLUMN source_session_id TEXT;",
}
OUTBOUND_SHAPES: Final = {
    "oldest": "",
    "with updated_at": "ALTER TABLE session_state ADD COLUMN updated_at TEXT NOT NULL DEFAULT '2026-04-23 00:00:00';",
    "with container_state": "CREATE TABLE container_state (id INTEGER PRIMARY KEY CHECK (id = 1), current_tool TEXT,"
    " tool_declared_timeout_ms INTEGER, tool_started_at TEXT, updated_at TEXT NOT NULL);",
}


def make_older(path: Path, *scripts: str, wal: bool = False) -> None:
    """A file as somebody else made it: user_version 0."""
    connection = sqlite3.connect(path)
    if wal:
        connection.execute("PRAGMA journal_mode=WAL")
    for script in scripts:
        connection.executescript(script)
    connection.commit()
    connection.close()
