"""Takes the ids of a session's life out of mailbox.db when that life is over, so that they can be used again.

An entry is found by its session's name and its message's id, and both may come again: the name after a deletion, the id after
retention. What is kept of before must not answer a new message, nor pass for a new answer of the same id. Synchronous.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from daemon.core.session_key import SessionKey
from schema.connect import open_owner
from schema.migrate import Role


def forget_messages(path: Path, key: SessionKey, ids: Sequence[str]) -> None:
    """Let the entries answer none of these messages any longer. Raise FileBusyError or StorageError."""
    if not path.exists():
        return
    with open_owner(path, Role.MAILBOX) as db, db.transaction():
        db.executemany(
            "DELETE FROM mailbox_replies WHERE agent = ? AND session = ? AND message_id = ?",
            [(*key, message_id) for message_id in ids],
        )


def forget_session(path: Path, key: SessionKey, deletion: str) -> None:
    """Keep a deleted session's entries for their readers, as nobody's answers. Repeating it for one deletion changes nothing.

    Raise FileBusyError or StorageError.
    """
    if not path.exists():
        return
    mark = f"~{deletion}"
    with open_owner(path, Role.MAILBOX) as db, db.transaction():
        db.execute("DELETE FROM mailbox_replies WHERE agent = ? AND session = ?", key)
        db.execute(
            "UPDATE mailbox SET message_out_id = message_out_id || ?3 WHERE agent = ?1 AND session = ?2"
            " AND substr(message_out_id, -length(?3)) <> ?3",
            (*key, mark),
        )
