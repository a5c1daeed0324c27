"""Whether an answer to a message may still come, from one session's files. Reads only; the caller holds the lock."""

from __future__ import annotations

import json

from daemon.store import deliveries, messages, outbound
from daemon.store.session_files import SessionFiles
from schema.connect import Reader
from schema.rows import MessageStatus

_OPEN = (MessageStatus.PENDING, MessageStatus.PAUSED)


def unanswered(files: SessionFiles, message_id: str, *, alive: bool) -> str | None:
    """Why no answer will come any more; None while one may. Raises what opening the files raises.

    A finished message's answer was committed together with its ack, so it is known already: delivered, on its way, or
    given up. While anything of the session is on its way, that may be it. A runner that stamps no incarnation keeps no
    such rule: it may ack what it has only begun, and while its container is `alive` the answer may come.
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
    """Return what the runner noted for the operator when the turn sent nothing, or nothing."""
    row = db.one(
        "SELECT detail FROM message_history WHERE message_id = ? AND event = 'completed' ORDER BY id DESC LIMIT 1",
        (message_id,),
    )
    detail: dict[str, object] = json.loads(row["detail"]) if row is not None and row["detail"] else {}
    return f": {str(detail['reason']).rstrip('.')}" if "reason" in detail else ""
