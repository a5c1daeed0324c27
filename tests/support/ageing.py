"""Makes what happened to a session a moment ago look old, in its files: for what is judged by its age."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

HOUR_MS: Final = 3_600_000
_TEXT: Final = "strftime('%Y-%m-%dT%H:%M:%f', {column}, '-3600 seconds') || 'Z'"


def age_session(root: Path) -> None:
    """Everything in the session's two files an hour older. Nobody else may be writing them."""
    _run(
        root / "in" / "inbound.db",
        f"UPDATE attempts SET claimed_at = claimed_at - {HOUR_MS}, ended_at = ended_at - {HOUR_MS}",
        f"UPDATE message_history SET at = at - {HOUR_MS}",
        f"UPDATE messages_in SET timestamp = {_TEXT.format(column='timestamp')}",
        "UPDATE messages_in SET process_after = NULL WHERE process_after IS NOT NULL",
    )
    outbound = root / "out" / "outbound.db"
    if outbound.exists():
        _run(outbound, f"UPDATE processing_ack SET status_changed = {_TEXT.format(column='status_changed')}")


def age_central(data: Path) -> None:
    """Every incarnation an hour older."""
    _run(
        data / "central.db",
        f"UPDATE incarnations SET created_at = created_at - {HOUR_MS}, started_at = started_at - {HOUR_MS},"
        f" ended_at = ended_at - {HOUR_MS}",
    )


def change(path: Path, *statements: str) -> None:
    """Any other change of a file, as somebody who wrecks it."""
    _run(path, *statements)


def _run(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db, db:
        for statement in statements:
            db.execute(statement)
