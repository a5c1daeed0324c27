"""An answer from a mailbox as the commands show it."""

from __future__ import annotations

from typing import Any

from daemon.core.content import answered_ids, decode, error_of, text_of
from daemon.store.mailbox import MailboxEntry


def as_result(entry: MailboxEntry) -> dict[str, Any]:
    """Return the entry for an envelope: its content decoded, its text picked out, its error if it is one."""
    return {
        "text": text_of(entry.content),
        "content": decode(entry.content),
        "error": error_of(entry.content),
        "cursor": entry.cursor,
        "mailbox": entry.mailbox,
        "message_out_id": entry.message_out_id,
        "in_reply_to": entry.in_reply_to,
        "answers": []
        if not entry.final
        else sorted({*answered_ids(entry.content), *((entry.in_reply_to,) if entry.in_reply_to else ())}),
        "agent": entry.agent,
        "session": entry.session,
        "kind": entry.kind,
        "thread_id": entry.thread_id,
        "delivered_at": entry.delivered_at,
        "final": entry.final,
    }
