"""A data folder in which every list has a row, with names and texts that are wider than a terminal."""

import json
from pathlib import Path
from typing import Final

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from schema.connect import open_owner
from schema.ids import session_path
from schema.instants import to_text
from schema.migrate import Role
from tests.support.fake_operations import NOW
from tests.support.session_world import SessionWorld

AGENT: Final = "an-agent-with-a-long-name"
SESSION: Final = "telegram:-1001234567890123:a-topic-with-a-Küche"
MESSAGE: Final = "01M8FHSNAY52PJVXWFNW2C10N7"
WORKING: Final = "01M8FJ0WQ7C3ZT5V9K2D8R4XNE"
ANSWER: Final = "01M8FK3M6A1B2C3D4E5F6G7H8J"
INCARNATION: Final = "01M8FK9ZZ8N7M6K5J4H3G2F1E0"
TEXT: Final = "a text that goes on and on → far beyond the edge of the screen, and still says something at its end"


def fill(home: Path) -> SessionWorld:
    """Make the folder: a session at work, a dead message, a dead and a failing answer, a quarantined session, a log."""
    data = home / "data"
    with (home / "clawbus.toml").open("a") as file:
        file.write(
            f"[agents.{AGENT}]\nenv = {{A_VARIABLE_WITH_A_LONG_NAME = 'x'}}\n[channels.hook-with-a-long-name]\ntype = 'webhook'\n"
        )
    (data / "clawbus.version").write_text("1\n")
    registry = Registry(data / "central.db")
    registry.install_id(1)
    for name in (SESSION, "held"):
        registry.activate(SessionKey(AGENT, name), 1)
    SessionWorld(session_path(data / "sessions", AGENT, "held")).accept("m0")
    session = SessionWorld(session_path(data / "sessions", AGENT, SESSION))
    for message_id in ("m1", MESSAGE, WORKING):
        session.accept(message_id, content=json.dumps({"text": TEXT}))
    with open_owner(data / "central.db", Role.CENTRAL) as db, db.transaction():
        db.execute(
            "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, container_id, created_at, started_at)"
            " VALUES (?, ?, ?, 'process', 'f', ?, ?, ?)",
            (INCARNATION, AGENT, SESSION, "c" * 64, NOW, NOW),
        )
        db.execute("UPDATE sessions SET quarantined_at = ?, quarantine_reason = ? WHERE session = 'held'", (NOW, TEXT))
    with open_owner(session.files.folder.inbound_db, Role.INBOUND) as db, db.transaction():
        db.execute("UPDATE messages_in SET status = 'failed', tries = 5 WHERE id = ?", (MESSAGE,))
        db.execute("INSERT INTO attempts VALUES (?, ?, ?, NULL, NULL)", (WORKING, INCARNATION, NOW))
        for message_id, event, detail in (
            (MESSAGE, "failed", {"code": "TRIES_EXHAUSTED", "reason": TEXT}),
            (WORKING, "claimed", {"incarnation": INCARNATION}),
        ):
            db.execute(
                "INSERT INTO message_history(message_id, event, at, detail) VALUES (?, ?, ?, ?)",
                (message_id, event, NOW, json.dumps(detail)),
            )
        for seq, (answer, state) in enumerate(((ANSWER, "dead"), (f"{ANSWER[:-1]}B", "retrying"))):
            db.execute(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error,"
                " last_error_code, next_attempt_at) VALUES (?, ?, ?, ?, 3, ?, ?, 'DELIVERY_PERMANENT', ?)",
                (answer, 2 * seq + 1, "webhook\x1fhttps://example.org/hooks/of-a-bot\x1f", state, NOW, TEXT, NOW),
            )
    with session.runner() as db, db.transaction():
        db.execute("INSERT INTO container_state VALUES (1, 'a-tool', 60000, ?, ?)", (to_text(NOW), to_text(NOW)))
    log = data / "logs" / "clawbus.log"
    log.parent.mkdir(exist_ok=True)
    event = {
        "timestamp": to_text(NOW),
        "level": "info",
        "event": "accepted",
        "agent": AGENT,
        "session": SESSION,
        "text": TEXT,
    }
    log.write_text(f"{json.dumps(event)}\n" * 3, encoding="utf-8")
    return session
