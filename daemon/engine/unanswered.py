"""Decides, from one session's files, whether a message may still be answered. Only reads; the caller holds the lock."""

from __future__ import annotations

import json

from daemon.store import deliveries, messages, outbound
from daemon.store.session_files import SessionFiles
from schema.handles import Reader
from schema.rows import MessageStatus

_OPEN = (MessageStatus.PENDING, MessageStatus.PAUSED)


def unanswered(files: SessionFiles, message_id: str, *, alive: bool) -> str | None:
    """Return why no answer will arrive; None while one may. Raise the errors of opening the files.

    A finished message's answer was committed together with its ack, so it is already known: delivered, on its way, or given
    up. Any answer of the session that is on its way may be the one. A runner that stamps no incarnation does not follow this
    rule: it may ack a message that it has only begun, so an answer may arrive while its container is `alive`.
    """
    with files.inbound() as db:
        message = messages.find(db, message_id)
        if message is None or message.status in _OPEN:
            return None
        with files.outbound() as out:
            if out is not None and outbound.has_after(out, deliveries.cursor(db, out.file_id)):
                return None
            ack = outbound.acks_for(out, [message_id]).get(message_id) if out is not None and alive else None
            if ack is not None and ack.incarnation is None:
                return None
        if deliveries.next_attempt_at(db) is not None:
            return None
        why = _noted(db, message_id)
    return f"it is {message.status.value}, and nothing that answers it is on its way{why}"


def _noted(db: Reader, message_id: str) -> str:
    """Return the reason that the runner noted for a turn that sent nothing, as `: REASON`, or an empty text."""
    row = db.one(
        "SELECT detail FROM message_history WHERE message_id = ? AND event = 'completed' ORDER BY id DESC LIMIT 1",
        (message_id,),
    )
    detail: dict[str, object] = json.loads(row["detail"]) if row is not None and row["detail"] else {}
    return f": {str(detail['reason']).rstrip('.')}" if "reason" in detail else ""
