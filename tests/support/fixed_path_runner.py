"""A runner as NanoClaw 2.0.64's is one: fixed paths, tables that must be there, whole seconds, no incarnation.

It answers each message to the destination "here", and acks it before its answer is committed, as that one does. Paths
come from the environment where the host sets them (the process runtime). Standard library alone; it imports nothing of
clawbus.
"""

import json
import os
import sqlite3
import time
import uuid
from pathlib import Path

WORKSPACE = Path("/workspace")
INBOUND = Path(os.environ["CLAWBUS_IN"]) / "inbound.db" if "CLAWBUS_IN" in os.environ else WORKSPACE / "inbound.db"
OUTBOUND = Path(os.environ["CLAWBUS_OUT"]) / "outbound.db" if "CLAWBUS_OUT" in os.environ else WORKSPACE / "outbound.db"
HEARTBEAT = OUTBOUND.with_name(".heartbeat")


def read(sql, *values):
    db = sqlite3.connect(f"file:{INBOUND}?mode=ro", uri=True, timeout=5)
    db.row_factory = sqlite3.Row
    try:
        return db.execute(sql, values).fetchall()
    finally:
        db.close()


def write(out, sql, *values):
    out.execute(sql, values)
    out.commit()


def ack(out, message, status):
    sql = "INSERT OR REPLACE INTO processing_ack(message_id, status, status_changed) VALUES (?, ?, datetime('now'))"
    write(out, sql, message["id"], status)


def answer(out, message):
    (place,) = read("SELECT * FROM destinations WHERE name = 'here'")
    highest = [
        out.execute("SELECT coalesce(max(seq), 0) FROM messages_out").fetchone()[0],
        read("SELECT coalesce(max(seq), 0) AS seq FROM messages_in")[0]["seq"],
    ]
    seq = max(highest) + 1 + max(highest) % 2
    write(
        out,
        "INSERT INTO messages_out(id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content)"
        " VALUES (?, ?, ?, datetime('now'), 'chat', ?, ?, ?, ?)",
        f"msg-{uuid.uuid4().hex}", seq, message["id"], place["platform_id"], place["channel_type"],
        message["thread_id"], json.dumps({"text": f"answer to: {json.loads(message['content']).get('text')}"}),
    )  # fmt: skip


def main():
    out = sqlite3.connect(OUTBOUND, timeout=5)
    write(out, "DELETE FROM processing_ack WHERE status = 'processing'")  # fails without the table, as NanoClaw's does
    while True:
        try:
            rows = read(
                "SELECT * FROM messages_in WHERE status = 'pending'"
                " AND (process_after IS NULL OR datetime(process_after) <= datetime('now')) ORDER BY seq"
            )
        except sqlite3.OperationalError:  # the host is in mid-commit
            rows = []
        acked = {row[0] for row in out.execute("SELECT message_id FROM processing_ack")}
        for message in (row for row in rows if row["id"] not in acked):
            ack(out, message, "processing")
            HEARTBEAT.touch()
            ack(out, message, "completed")
            answer(out, message)
        time.sleep(0.1)


main()
