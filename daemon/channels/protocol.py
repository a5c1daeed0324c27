"""The channel protocol, and the messages that channels and the bus exchange. Entry-point group: `clawbus.channels`.

A channel never touches session files. In: it calls `accept`, and confirms to the sender only after that has returned.
Out: `deliver` returns a receipt or raises. It never reports success for something it did not hand over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from anyio.abc import TaskStatus
from pydantic import BaseModel

from daemon.core.answering import Person
from daemon.core.attachments import Attachment, FilesToFetch
from daemon.core.clock import Clock
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.routing import EventRefusal, PlaceEvent
from daemon.core.sent_files import NONE, SentFiles
from schema.frozen import frozen
from schema.rows import Address, Kind, MessageStatus


class InDoubt(StrEnum):
    """What to do with an answer in doubt (a crash left it without a receipt), on a channel that does not deduplicate."""

    RESEND = "resend"
    HOLD = "hold"  # the answer becomes a dead letter, and an operator decides


@frozen
class Capabilities:
    """What a channel can do. `deduplicates`: sending the same idempotency key twice has one effect at the receiver."""

    deduplicates: bool = False
    threads: bool = False
    files: bool = False
    in_doubt: InDoubt = InDoubt.RESEND


@frozen
class Incoming:
    """A message as a channel or operator hands it in. `content` is anything JSON can hold.

    If `message_id` is None, the bus generates one. Times are epoch milliseconds. `traceparent` is the W3C trace context
    that it came with, if any; a malformed one is ignored.
    """

    agent: str
    session: str
    content: object
    message_id: str | None = None
    kind: str = Kind.CHAT
    address: Address | None = None
    trigger: bool = True
    on_wake: bool = False
    process_after: int | None = None
    recurrence: str | None = None
    create_session: bool = True
    traceparent: str | None = None
    not_after: int | None = None  # epoch ms; afterwards no turn begins with this message, and its sender is informed
    stop_late: bool = False  # also stop a turn that still works on it at `not_after`
    person: Person | None = None  # who wrote it, as far as the channel has verified that
    plain: str | None = None  # an event's text, which may answer an open question of the same place
    note: Mapping[str, object] | None = None  # how the message came here, for its first history row
    relay: str | None = None  # the host's own record of a message between agents; no channel sets it
    files: tuple[Attachment, ...] = ()  # stored in the session; the content gets `attachments`, which names them
    to_fetch: FilesToFetch | None = None  # further ones; needs a `message_id`, by which a repeat is known


@frozen
class Accepted:
    """The durable confirmation: the row is committed. `duplicate`: a row with this id and content was already stored.

    `address` is the stored row's: answers go there, even if a duplicate named another place. `state` is that of this
    id's message. If that message failed or was cancelled, and was requeued, `requeued_as` is its successor's id, `state`
    is the successor's state, and `previous` is its own.
    """

    message_id: str
    agent: str
    session: str
    seq: int
    duplicate: bool = False
    address: Address | None = None
    state: str = MessageStatus.PENDING
    previous: str | None = None
    requeued_as: str | None = None


@frozen
class PlaceMessage:
    """An event of a place and the content that its agents read. The same event must always come with the same `content`."""

    event: PlaceEvent
    content: object
    address: Address
    kind: str = Kind.CHAT
    traceparent: str | None = None
    not_after: int | None = None
    files: tuple[Attachment, ...] = ()
    to_fetch: FilesToFetch | None = None


@frozen
class Routed:
    """What became of an event: a durable message for each agent that it went to, and why it went to no other."""

    accepted: tuple[Accepted, ...] = ()
    refusals: tuple[EventRefusal, ...] = ()


@frozen
class Outgoing:
    """One row to hand over. `key` is the idempotency key, the same on every attempt. `content` is JSON text.

    `traceparent` is the W3C trace context to pass on, if there is one; it may differ between attempts. If not `final`, the
    agent said this in the middle of its turn for message `in_reply_to`, and its answer is still to come. `files` has the
    host's copies, the same on every attempt, and the refusals. A channel sends the files, or says that there are some.
    """

    key: str
    message_out_id: str
    agent: str
    session: str
    kind: str
    address: Address
    content: str
    timestamp: str
    in_reply_to: str | None = None
    attempt: int = 1
    traceparent: str | None = None
    final: bool = True
    files: SentFiles = NONE


@frozen
class Receipt:
    """Proof of hand-over. `platform_message_id` is the receiver's own id, if it returned one.

    `not_wanted`: nothing was handed over, because the configuration asks for no answers at this destination.
    """

    platform_message_id: str | None = None
    not_wanted: bool = False


@frozen
class Typing:
    """A typing sign to show (`on`) or end at a place: the agent works on message `about`, or has stopped working on it."""

    address: Address
    agent: str
    session: str
    about: str
    on: bool


class Accept(Protocol):
    """The bus's ingress, as a channel sees it."""

    async def __call__(self, incoming: Incoming) -> Accepted:
        """Store the message durably and return. Raise a ClawbusError that says why it cannot; then nothing is stored."""
        ...


@runtime_checkable
class Intake(Protocol):
    """What the daemon passes to `Channel.run` as `accept`: it takes events of places, too."""

    async def __call__(self, incoming: Incoming) -> Accepted:
        """See Accept."""
        ...

    async def event(self, message: PlaceMessage) -> Routed:
        """Route an event and store a message for each agent that it goes to. Return only after all are stored.

        The channel acknowledges the event to the platform after that. Raise a ClawbusError when a message could not be
        stored. The channel may then hand the event in again: nothing is stored twice.
        """
        ...


@frozen
class ChannelContext:
    """What a channel gets when it is built: its name, its checked settings, the data folder, the clock, the size limit."""

    name: str
    settings: Any
    data_dir: Path
    clock: Clock
    max_content_bytes: int


class Receiver(Protocol):
    """What delivery needs from a channel."""

    capabilities: Capabilities

    async def deliver(self, message: Outgoing) -> Receipt:
        """See Channel."""
        ...


class Channel(Protocol):
    """One way in and out. Built as `cls(context)`; `context.settings` is an instance of `cls.Settings`."""

    Settings: ClassVar[type[BaseModel]]
    name: str
    capabilities: Capabilities

    def __init__(self, context: ChannelContext) -> None: ...

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled. Call `task_status.started()` once ready for messages; raise ChannelError if that fails."""
        ...

    async def deliver(self, message: Outgoing) -> Receipt:
        """Hand one message over.

        Raise TransientDeliveryError or PermanentDeliveryError; any other exception is treated as transient. The bus
        applies its own timeout to this call.
        """
        ...


DeliveryFailure = TransientDeliveryError | PermanentDeliveryError


@runtime_checkable
class ManyChannel(Protocol):
    """A channel that can also deliver several messages at once. The bus uses this only if the channel deduplicates.

    It is called for consecutive messages to one destination; everything else goes through `deliver`.
    """

    async def deliver_many(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure]:
        """Hand the messages over in order, and stop at the first failure. Return their receipts, then the failure.

        A message without an entry in the result was not handed over. If this raises, the outcome of all is unknown, and
        the bus sends all again.
        """
        ...


@runtime_checkable
class TypingChannel(Protocol):
    """A channel that can show that an agent works. A sign may fail, and is neither recorded nor sent again."""

    def shows_typing(self, address: Address) -> bool:
        """Return whether this place wants typing signs."""
        ...

    async def typing(self, sign: Typing) -> None:
        """Show or end a sign, within seconds. The receiver must end a sign by itself when it is not renewed."""
        ...


@runtime_checkable
class InlineChannel(Protocol):
    """A channel that is its own receiver: it stores answers in a file of the daemon. Used only if the channel deduplicates.

    The channel stores a new row first. Then the bus commits the row's receipt and its message's status, without an intent.
    After a crash in between, the bus delivers the row again under the same key. All this happens in one worker thread.
    """

    def deliver_inline(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure] | None:
        """Do what `deliver_many` does, but block, and return failures instead of raising. Never called in the event loop's thread.

        Return None instead of waiting long for another thread; the bus then delivers the messages as on any other channel.
        """
        ...


@runtime_checkable
class ReaderHolder(Protocol):
    """An `InlineChannel` whose readers can be kept waiting until the bus has recorded the entries that they will read."""

    def readers_held(self) -> AbstractContextManager[None]:
        """Return a context manager. `deliver_inline`, called inside it in the same thread, wakes readers only at its end."""
        ...
