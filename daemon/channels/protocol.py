"""The channel protocol, and the messages that channels and the bus exchange. Entry-point group: `clawbus.channels`.

A channel never touches session files. In: it calls `accept`, and confirms to the sender only after that has returned.
Out: `deliver` returns a receipt or raises. It never reports success for something it did not hand over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from anyio.abc import TaskStatus
from pydantic import BaseModel

from daemon.core.answering import Person
from daemon.core.attachments import Attachment
from daemon.core.clock import Clock
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.routing import EventRefusal, PlaceEvent
from daemon.core.sent_files import NONE, SentFiles
from schema.rows import Address, Kind, MessageStatus


class InDoubt(StrEnum):
    """What to do with an answer in doubt (a crash left it without a receipt), on a channel that does not deduplicate."""

    RESEND = "resend"
    HOLD = "hold"  # the answer becomes a dead letter, and an operator decides


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a channel can do. `deduplicates`: sending the same idempotency key twice has one effect at the receiver."""

    deduplicates: bool = False
    threads: bool = False
    files: bool = False
    in_doubt: InDoubt = InDoubt.RESEND


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Accepted:
    """The durable confirmation: the row is committed. `duplicate`: a row with this id and content was already stored.

    `address` is the stored row's: answers go there, even if a duplicate named another place. `state` is that of this
    id's message. If that message failed and was requeued, `state` is that of its successor, whose id is `requeued_as`, and
    `previous` is the failed one's.
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


@dataclass(frozen=True, slots=True)
class PlaceMessage:
    """An event of a place together with what its agents get to read. `content` is the same for the same event."""

    event: PlaceEvent
    content: object
    address: Address
    kind: str = Kind.CHAT
    traceparent: str | None = None
    not_after: int | None = None
    files: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class Routed:
    """What became of an event: a durable message for each agent that it went to, and why it went to no other."""

    accepted: tuple[Accepted, ...] = ()
    refusals: tuple[EventRefusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One row to hand over. `key` is the idempotency key, the same on every attempt. `content` is JSON text.

    `traceparent` is the W3C trace context to pass on, if there is one; it may differ between attempts. Not `final`: it was
    said in the middle of a turn (`in_reply_to` names the message), and the answer is still to come. `files` are the host's
    copies, the same on every attempt, and what was refused: a channel sends them, or says that they are there.
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


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of hand-over. `platform_message_id` is the receiver's own id, if it returned one.

    `not_wanted`: nothing was handed over, because the configuration asks for no answers at this destination.
    """

    platform_message_id: str | None = None
    not_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Typing:
    """A sign at a place that an agent works on message `about` (`on`), or that it does no more."""

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

        Acknowledge the event to the platform after that. Raise a ClawbusError when one could not be stored: hand the event
        in again, and what was stored is not stored twice.
        """
        ...


@dataclass(frozen=True, slots=True)
class ChannelContext:
    """What a channel is built with: its own name, its checked settings, where it may keep files, the clock."""

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
        """Hand the messages over in order, up to the first that fails. Return a receipt for each, then that one's error.

        A message without an entry in the result was not handed over. When this raises, the outcome of all is unknown, and
        all are sent again.
        """
        ...


@runtime_checkable
class TypingChannel(Protocol):
    """A channel that can show that an agent works. A sign may fail, and is neither recorded nor sent again."""

    def shows_typing(self, address: Address) -> bool:
        """Return whether signs are wanted at this place."""
        ...

    async def typing(self, sign: Typing) -> None:
        """Show or end a sign, within seconds. Receivers end it by themselves when it is not renewed."""
        ...


@runtime_checkable
class InlineChannel(Protocol):
    """A channel that is its own receiver and stores in a file of the daemon. Used only if the channel deduplicates.

    A new row is stored by it first, and then its receipt and its message's status are committed at once, without an intent:
    after a crash between the two the row comes again, under the same key. All of it happens in one worker thread.
    """

    def deliver_inline(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure] | None:
        """Do what `deliver_many` does, in the calling thread, which is never the event loop's. Return failures, do not raise.

        Return None when it would have to wait long for another thread; the messages are then delivered the ordinary way.
        """
        ...


@runtime_checkable
class ReaderHolder(Protocol):
    """An `InlineChannel` that can let its readers wait until the bus has recorded what they are about to read."""

    def readers_held(self) -> AbstractContextManager[None]:
        """Return a context in which `deliver_inline`, called in the same thread, wakes no readers until the context ends."""
        ...
