"""What one session's inbound.db says about a row that its agent sends to another agent."""

from __future__ import annotations

from daemon.core.relays import Relay, from_text
from daemon.store import host_messages, messages, pruned, reply_routes
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.rows import Address, MessageIn


@frozen
class Sent:
    """Why an agent sends a row. `answers`: the question of another agent that it answers; None: it is a question itself.

    `cause` is the message that the agent works on, as far as that is known, and `before` its relay.
    """

    answers: Relay | None
    cause: str | None
    before: Relay | None


def why_sent(db: Reader, in_reply_to: str | None, address: Address) -> Sent:
    """Return why a row goes to `address`: by the message it names, else by the latest trigger of the session."""
    named = messages.find(db, in_reply_to) if in_reply_to is not None else None
    if named is None and address.thread_id is not None:
        named = _latest(db, address)
    cause = named or _latest(db, None)
    before = from_text(cause.relay) if cause is not None else None
    return Sent(_question(db, named, address), cause.id if cause is not None else None, before)


def _question(db: Reader, named: MessageIn | None, address: Address) -> Relay | None:
    """Return the question from `address` that the session works on with the message `named`, or None.

    Another agent's answer comes from where the question was sent for: that question may be what is answered now.
    """
    relay = from_text(named.relay) if named is not None else None
    if named is None or relay is None or messages.address_of(named) != address:
        return None
    if not relay.reply:
        return relay
    origin = messages.find(db, relay.cause) if relay.cause is not None else None
    asked = from_text(origin.relay) if origin is not None else None
    if asked is not None and not asked.reply:
        return asked
    rows = db.all(
        "SELECT relay FROM messages_in WHERE channel_type = ? AND platform_id = ? AND thread_id IS ? AND relay IS NOT NULL"
        " ORDER BY seq DESC LIMIT 100",
        (address.channel_type, address.platform_id, address.thread_id),
    )
    return next((one for row in rows if (one := from_text(row["relay"])) is not None and not one.reply), None)


def _latest(db: Reader, address: Address | None) -> MessageIn | None:
    where, values = "", ()
    if address is not None:
        where = " AND channel_type = ? AND platform_id = ? AND thread_id IS ?"
        values = (address.channel_type, address.platform_id, address.thread_id)
    row = db.one(f'SELECT id FROM messages_in WHERE "trigger" = 1{where} ORDER BY seq DESC LIMIT 1', values)
    return messages.find(db, row["id"]) if row is not None else None


def place_of(db: Reader, message_id: str | None) -> Address | None:
    """Return where a message came from; without one, or for one that is gone, the session's own place."""
    message = messages.find(db, message_id) if message_id is not None else None
    address = messages.address_of(message) if message is not None else None
    return address or reply_routes.routing(db)


def is_of_another_life(db: Reader, message_id: str | None) -> bool:
    """Return whether this session never had the message: it was made anew under the name of the one that had it."""
    if message_id is None or messages.find(db, message_id) is not None:
        return False
    return not any(one["what"] == "messages" for one in pruned.read(db))


def tell_root(db: Writer, message_id: str, code: str, text: str, now: int) -> bool:
    """Queue the host's notice to whoever sent the message that a chain began with, once. Return whether there is one."""
    message = messages.find(db, message_id)
    address = messages.address_of(message) if message is not None else None
    if message is None or address is None:
        return False
    with db.transaction():
        host_messages.notify_sender(db, message, address, code, text, now)
    return True
