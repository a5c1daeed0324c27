"""What a channel owes the bus, and the messages that cross between them. Entry-point group: `clawbus.channels`.

A channel never touches session files. In: it calls `accept` and says yes outside only after that returned.
Out: `deliver` returns a receipt or raises; it never reports success for something it did not hand over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from anyio.abc import TaskStatus
from pydantic import BaseModel

from daemon.core.clock import Clock
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from schema.rows import Address, Kind, MessageStatus


class InDoubt(StrEnum):
    """What to do with a send that a crash left without a receipt, on a channel that does not deduplicate."""

    RESEND = "resend"
    HOLD = "hold"  # dead letter; an operator decides


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a channel can do. `deduplicates`: the same idempotency key twice has one effect at the receiver."""

    deduplicates: bool = False
    threads: bool = False
    files: bool = False
    in_doubt: InDoubt = InDoubt.RESEND


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as a channel or operator hands it in. `content` is anything JSON can hold.

    `message_id` None lets the bus make one. Times are epoch milliseconds. `traceparent` is the W3C trace context that it
    came with, if any; one that is none is ignored.
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
    not_after: int | None = None  # from then on it is not begun, and its sender is informed


@dataclass(frozen=True, slots=True)
class Accepted:
    """The durable yes: the row is committed. `duplicate`: it had been before, with the same content.

    `address` is the stored row's: where its answers go, also when this one named another place. `state` is that of the
    message that counts: the one of this id or, where that one failed (`previous`), the one that does its work again,
    `requeued_as`.
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
class Outgoing:
    """One row to hand over. `key` is the idempotency key, the same on every attempt. `content` is JSON text.

    `traceparent` is the W3C trace context to hand on, if there is one; each attempt may have another.
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


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of hand-over. `platform_message_id` is the receiver's own id, if it gave one.

    `not_wanted`: nothing was handed over, because the configuration wants no answers at this place.
    """

    platform_message_id: str | None = None
    not_wanted: bool = False


class Accept(Protocol):
    """The bus's ingress, as a channel sees it."""

    async def __call__(self, incoming: Incoming) -> Accepted:
        """Store and return, or raise a ClawbusError that says why not; then nothing is stored."""
        ...


@dataclass(frozen=True, slots=True)
class ChannelContext:
    """What a channel is built with: its own name, its checked settings, where it may keep files, the clock."""

    name: str
    settings: Any
    data_dir: Path
    clock: Clock
    max_content_bytes: int


class Channel(Protocol):
    """One way in and out. Built as `cls(context)`; `context.settings` is an instance of `cls.Settings`."""

    Settings: ClassVar[type[BaseModel]]
    name: str
    capabilities: Capabilities

    def __init__(self, context: ChannelContext) -> None: ...

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled. `task_status.started()` once it can take messages; ChannelError if it cannot."""
        ...

    async def deliver(self, message: Outgoing) -> Receipt:
        """Hand one message over.

        Raise TransientDeliveryError or PermanentDeliveryError; anything else counts as transient. The bus sets its
        own time-out around this.
        """
        ...


DeliveryFailure = TransientDeliveryError | PermanentDeliveryError


@runtime_checkable
class ManyChannel(Protocol):
    """A channel that can also take several messages at once. Only one that deduplicates is asked to.

    The bus uses it for a run of messages to one destination; everything else goes through `deliver`.
    """

    async def deliver_many(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure]:
        """Hand them over in order, up to the first that fails: a receipt for each, then that one's error if there is one.

        What is not in the result was not handed over. When this raises, nothing is known of any: all are sent again.
        """
        ...


@runtime_checkable
class OwnChannel(Protocol):
    """A channel that is its own receiver, in a file of the daemon's. Only one that deduplicates is asked to.

    Its rows need not go back to the event loop between the intent and the receipt: a thread's hop costs half of a commit.
    """

    def deliver_here(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | DeliveryFailure] | None:
        """`deliver_many` in the calling thread, which is never the event loop's; raises nothing of its own making.

        None, and nothing done, where it would have to wait for another thread for long: then the messages go the ordinary way.
        """
        ...
