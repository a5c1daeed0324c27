"""One entry of the durable mailbox that answers on the `local` channel land in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MailboxEntry:
    """A row of the mailbox. `cursor` grows for ever; `content` is JSON text; `delivered_at` is epoch milliseconds."""

    cursor: int
    mailbox: str
    message_out_id: str
    agent: str
    session: str
    in_reply_to: str | None
    kind: str
    thread_id: str | None
    content: str
    delivered_at: int
