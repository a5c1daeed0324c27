"""A whole runner: it answers each message with its text in capitals, one at a time (docs/contract.md)."""

import json
import os
import pathlib
import signal
import sqlite3
import threading
import time
import uuid

INBOUND = pathlib.Path(os.environ.get("CLAWBUS_IN", "/workspace/in")) / "inbound.db"
OUT = pathlib.Path(os.environ.get("CLAWBUS_OUT", "/workspace/out"))
INCARNATION = os.environ["CLAWBUS_INCARNATION"]
TABLES = """
CREATE TABLE IF NOT EXISTS messages_out (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, in_reply_to TEXT, timestamp TEXT NOT NULL,
  deliver_after TEXT, recurrence TEXT, kind TEXT NOT NULL, platform_id TEXT, channel_type TEXT, thread_id TEXT,
  content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS processing_ack (message_id TEXT PRIMARY KEY, status TEXT NOT NULL, status_changed TEXT NOT NULL,
  incarnation TEXT);
"""
DUE = """
SELECT * FROM host.messages_in AS m WHERE status = 'pending' AND trigger = 1 AND (on_wake = 0 OR ?)
  AND coalesce(julianday(process_after), 0) <= julianday('now')
  AND NOT EXISTS (SELECT 1 FROM processing_ack AS a WHERE a.message_id = m.id) ORDER BY seq LIMIT 1
"""
SEQ = (
    "SELECT max(coalesce((SELECT max(seq) FROM messages_out), 0), coalesce((SELECT max(seq) FROM host.messages_in), 0),"
    " coalesce((SELECT seq FROM host.delivery_cursor), 0))"
)


def now():
    moment = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment * 1000) % 1000:03d}Z"


def opened():
    db = sqlite3.connect(OUT / "outbound.db", timeout=5, isolation_level=None, uri=True)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA synchronous=EXTRA")
    return db


def ack(db, message, status):
    db.execute("INSERT OR REPLACE INTO processing_ack VALUES (?, ?, ?, ?)", (message["id"], status, now(), INCARNATION))


def claim(first):
    db = opened()
    try:
        db.execute("ATTACH ? AS host", (f"file:{INBOUND}?mode=ro",))
        db.execute("BEGIN IMMEDIATE")
        message = db.execute(DUE, (first,)).fetchone()
        if message is not None:
            ack(db, message, "processing")
        db.execute("COMMIT")
        return message
    finally:
        db.close()


def finish(message, text):
    db = opened()
    try:
        db.execute("ATTACH ? AS host", (f"file:{INBOUND}?mode=ro",))
        db.execute("BEGIN IMMEDIATE")
        highest = db.execute(SEQ).fetchone()[0]
        address = (message["platform_id"], message["channel_type"], message["thread_id"])
        db.execute(
            "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content)"
            " VALUES (?, ?, ?, ?, 'chat', ?, ?, ?, ?)",
            (uuid.uuid4().hex, highest + 1 + highest % 2, message["id"], now(), *address, json.dumps({"text": text})),
        )
        ack(db, message, "completed")
        db.execute("COMMIT")
    finally:
        db.close()


stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
db = opened()
db.executescript(TABLES)
db.execute("DELETE FROM processing_ack WHERE status = 'processing'")
db.close()
first, message, text = True, None, ""
while not stopping.is_set() or message is not None:
    try:
        if message is None:
            message, first = claim(first), False
            if message is None:
                stopping.wait(0.1)
                continue
            (OUT / ".heartbeat").touch()
            text = str(json.loads(message["content"]).get("text", "")).upper()
        finish(message, text)
        message = None
    except sqlite3.Error:
        time.sleep(0.1)
