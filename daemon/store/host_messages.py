"""The host's own messages to people, in one session's inbound.db: notices that it sends without the agent.

Functions that write must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from daemon.core.lifecycle import is_due
from daemon.store.deliveries import known, track
from daemon.store.messages import address_of, chunks, marks, next_even_seq, pending
from daemon.store.schedules import repeats_failure
from schema.handles import Reader, Writer
from schema.ids import new_id
from schema.instants import to_text
from schema.rows import Address, DeliveryState, Kind, MessageIn, MessageOut


def notify_sender(db: Writer, message: MessageIn, address: Address, code: str, text: str, at: int) -> None:
    """Queue the host's own answer to a message that failed for good. At most one notice per message.

    Occurrences of a schedule that fail one after the other get one, for the first.
    `text` goes to the sender, who may be a stranger: it must hold no path, no address and no error text. The operator finds
    the details in the message's history, by the reference.
    """
    if db.one("SELECT 1 FROM host_messages WHERE in_reply_to = ? AND final = 1", (message.id,)) is not None:
        return
    if repeats_failure(db, message.id):
        return
    # A sender may use the message's id again: after retention, or in a session that was deleted and made again. Its receiver
    # would take a notice of the same id for a repetition. Nor can a container take an id that it does not know.
    notice_id = f"failed:{message.id}:{new_id(at)}"
    sentence = f"{text[:1].upper()}{text[1:].rstrip('.')}."
    error = {"code": code, "message": sentence, "reference": message.id}
    content = {"text": f"{sentence} Reference: {message.id}.", "error": error}
    notice = _notice(db, notice_id, address, content, at, replies_to=message)
    _queue_notice(db, notice, address, at)


def say(db: Writer, message: MessageIn, address: Address, text: str, at: int) -> None:
    """Queue the host's own answer to a message, in the caller's transaction."""
    notice = _notice(db, f"said:{message.id}:{new_id(at)}", address, {"text": text}, at, replies_to=message)
    _queue_notice(db, notice, address, at)


def announce(db: Writer, identity: str, address: Address, text: str, at: int) -> None:
    """Queue a notice of the host's own that answers no message. Repeating the id changes nothing."""
    if known(db, [identity]):
        return
    notice = _notice(db, identity, address, {"text": text}, at)
    _queue_notice(db, notice, address, at)


def tell_waiting(db: Writer, day: str, text: str, at: int) -> int:
    """Tell each place whose messages are due that they wait, once per place and day (YYYY-MM-DD). Return the number of notices.

    A notice is not final: the messages' answers are still to come.
    """
    queued = 0
    for message in pending(db, at):
        if not is_due(message, at):
            continue
        address = address_of(message)
        if address is None:
            continue
        place = hashlib.sha256(address.key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        notice = _notice(db, f"waits:{day}:{place}", address, {"text": text}, at, replies_to=message, final=False)
        if known(db, [notice.id]) or db.one("SELECT 1 FROM host_messages WHERE id = ?", (notice.id,)) is not None:
            continue
        _queue_notice(db, notice, address, at)
        queued += 1
    return queued


def _notice(
    db: Reader,
    identity: str,
    address: Address,
    content: object,
    at: int,
    *,
    replies_to: MessageIn | None = None,
    final: bool = True,
) -> MessageOut:
    """Return the row of a notice to this address, with the next sequence number. `at` is in epoch milliseconds."""
    return MessageOut(
        id=identity,
        seq=next_even_seq(db),
        kind=Kind.CHAT,
        timestamp=to_text(at),
        content=json.dumps(content, ensure_ascii=False),
        in_reply_to=replies_to.id if replies_to is not None else None,
        channel_type=address.channel_type,
        platform_id=address.platform_id,
        thread_id=address.thread_id,
        final=final,
    )


def _queue_notice(db: Writer, notice: MessageOut, address: Address, at: int) -> None:
    db.execute(
        "INSERT INTO host_messages(id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content,"
        " final) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (notice.id, notice.seq, notice.in_reply_to, notice.timestamp, notice.kind, notice.platform_id,
         notice.channel_type, notice.thread_id, notice.content, int(notice.final)),
    )  # fmt: skip
    track(db, notice, from_host=True, destination=address.key, state=DeliveryState.QUEUED, not_before=None, at=at)


def host_rows(db: Reader, ids: Sequence[str]) -> dict[str, MessageOut]:
    """Return the host's own messages by id."""
    found: dict[str, MessageOut] = {}
    for chunk in chunks(ids):
        for row in db.all(f"SELECT * FROM host_messages WHERE id IN ({marks(chunk)})", chunk):
            found[row["id"]] = MessageOut(
                id=row["id"],
                seq=row["seq"],
                kind=row["kind"],
                timestamp=row["timestamp"],
                content=row["content"],
                in_reply_to=row["in_reply_to"],
                channel_type=row["channel_type"],
                platform_id=row["platform_id"],
                thread_id=row["thread_id"],
                final=bool(row["final"]),
            )
    return found
