"""A channel in memory, driven by a test. Held by the channel contract suite.

It keeps what it was handed in `sent`, raises what `script` says first, and holds back the places in `stalled`.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from typing import ClassVar

import anyio
from anyio.abc import TaskStatus
from pydantic import BaseModel, ConfigDict

from daemon.channels.protocol import Accept, Capabilities, ChannelContext, InDoubt, Outgoing, Receipt
from daemon.core.errors import PermanentDeliveryError


class FakeSettings(BaseModel):
    """[channels.NAME] with type = "fake"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deduplicates: bool = False
    in_doubt: InDoubt = InDoubt.RESEND


class FakeChannel:
    """Hands over to a list. With `deduplicates`, a key that was handed over before has no second effect."""

    Settings: ClassVar[type[BaseModel]] = FakeSettings

    def __init__(self, context: ChannelContext) -> None:
        self.name = context.name
        settings = context.settings
        assert isinstance(settings, FakeSettings)
        self.capabilities = Capabilities(deduplicates=settings.deduplicates, threads=True, in_doubt=settings.in_doubt)
        self.sent: list[Outgoing] = []  # what had an effect at the receiver
        self.calls: list[Outgoing] = []  # every attempt
        self.script: dict[str, deque[Exception]] = defaultdict(deque)  # place -> what the next attempts there raise
        self.stalled: dict[str, anyio.Event] = {}  # place -> until when attempts there hang
        self.receipts: object = None  # what `deliver` returns instead of a receipt, if it is to misbehave
        self.run_errors: deque[Exception] = deque()
        self.runs = 0
        self.accept: Accept | None = None
        self._receipts: dict[str, Receipt] = {}
        self._fail = anyio.Event()

    def fail(self, error: Exception) -> None:
        """`run` raises this now."""
        self.run_errors.append(error)
        self._fail.set()

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled, or until `fail`."""
        self.runs += 1
        self.accept = accept
        task_status.started()
        await self._fail.wait()
        self._fail = anyio.Event()
        raise self.run_errors.popleft()

    async def deliver(self, message: Outgoing) -> Receipt:
        """See the module's docstring."""
        await anyio.lowlevel.checkpoint()
        self.calls.append(message)
        place = message.address.platform_id
        _check(message)
        if place in self.stalled:
            await self.stalled[place].wait()
        if self.script[place]:
            raise self.script[place].popleft()
        if not (self.capabilities.deduplicates and message.key in self._receipts):
            self.sent.append(message)
            self._receipts[message.key] = Receipt(platform_message_id=f"{self.name}-{len(self.sent)}")
        if self.receipts is not None:
            return self.receipts  # pyright: ignore[reportReturnType] - a channel that breaks its contract
        return self._receipts[message.key]

    def texts(self, place: str | None = None) -> list[str]:
        """The contents that arrived, in order."""
        return [one.content for one in self.sent if place in (None, one.address.platform_id)]


def _check(message: Outgoing) -> None:
    """What no receiver could take."""
    if not message.address.platform_id.isprintable():
        raise PermanentDeliveryError("there is no such place.")
    try:
        json.loads(message.content.encode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PermanentDeliveryError(f"the content cannot be handed over: {error}") from error
