"""One outgoing row before it has an id. Imported by the tools, which start quickly because they import little."""

from __future__ import annotations

from schema.frozen import frozen


@frozen
class OutFile:
    """A file that goes with a row: its name, without a path, and its bytes."""

    name: str
    data: bytes


@frozen
class Reply:
    """A row of messages_out without id, seq and timestamp. `content` is JSON text, `deliver_after` epoch milliseconds.

    When not `final`, it was sent in the middle of a turn and answers no message.
    """

    kind: str
    content: str
    in_reply_to: str | None
    channel_type: str | None
    platform_id: str | None
    thread_id: str | None
    deliver_after: int | None = None
    final: bool = True
    files: tuple[OutFile, ...] = ()
