"""A channel that hands everything over to nobody: what is left of a drain is the bus's own cost.

It gives a receipt for each row, because the bus would not count anything less as delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import ClassVar, Final

import anyio
from anyio.abc import TaskStatus
from pydantic import BaseModel, ConfigDict

from daemon.channels.protocol import Accept, Capabilities, ChannelContext, Outgoing, Receipt

NAME: Final = "noop"
ENTRY_POINT: Final = EntryPoint(NAME, f"{__name__}:NoopChannel", "clawbus.channels")


class NoopSettings(BaseModel):
    """No keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoopChannel:
    """Counts what it was given."""

    Settings: ClassVar[type[BaseModel]] = NoopSettings

    def __init__(self, context: ChannelContext) -> None:
        self.name = context.name
        self.capabilities = Capabilities(deduplicates=True)
        self.count = 0
        self._wanted = 0
        self._reached = anyio.Event()

    async def until(self, count: int) -> None:
        """Wait until it was given so many. One waits at a time."""
        self._wanted, self._reached = count, anyio.Event()
        self._note(0)
        await self._reached.wait()

    def _note(self, more: int) -> None:
        self.count += more
        if self.count >= self._wanted:
            self._reached.set()

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Nothing comes in."""
        del accept
        task_status.started()
        await anyio.sleep_forever()

    async def deliver(self, message: Outgoing) -> Receipt:
        """A receipt at once."""
        del message
        self._note(1)
        return Receipt()

    async def deliver_many(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        """The same for several."""
        self._note(len(messages))
        return [Receipt()] * len(messages)
