"""Simulated channels and what is behind them: receivers that count effects by idempotency key, and fail in every known way.

A receiver's memory outlives the daemon. The channel tells the daemon what a real one could tell it, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import anyio
from anyio.abc import TaskStatus
from pydantic import BaseModel

from daemon.channels.protocol import Accept, Capabilities, ChannelContext, InDoubt, Outgoing, Receipt
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from tests.simulation.loop import PROCESS
from tests.simulation.world import World

TRAITS: Final[Mapping[str, Capabilities]] = {
    "dedup": Capabilities(deduplicates=True, threads=True),
    "plain": Capabilities(threads=True, in_doubt=InDoubt.RESEND),
    "careful": Capabilities(threads=True, in_doubt=InDoubt.HOLD),
}


@dataclass
class Effect:
    """Something happened at a receiver. `ambiguous`: the daemon was told that it failed, or it was repeated on the way."""

    key: str
    at: float
    place: str
    message_out_id: str
    agent: str
    session: str
    by: str
    ambiguous: bool
    attempt: int
    content: str


@dataclass
class Receivers:
    """All that is outside, over the whole run."""

    world: World
    receipts: Callable[[Outgoing], tuple[str | None, str | None]]  # what inbound.db has: receipt status, tracked state
    effects: dict[str, list[Effect]] = field(default_factory=dict[str, list[Effect]])
    keys: dict[tuple[str, str, str], str] = field(default_factory=dict[tuple[str, str, str], str])
    under_way: Counter[str] = field(default_factory=Counter[str])
    down_until: dict[str, float] = field(default_factory=dict[str, float])
    on_effect: Callable[[Outgoing], None] = lambda _: None

    def take(self, channel: str, message: Outgoing, *, ambiguous: bool = False) -> None:
        """The receiver got it; one that deduplicates does so here."""
        known = self.effects.setdefault(message.key, [])
        if TRAITS[channel].deduplicates and known:
            self.world.step("receiver", f"knows {message.message_out_id[-6:]} already")
            return
        self.on_effect(message)
        process = PROCESS.get()
        self.world.step("receiver", f"took {message.message_out_id[-6:]} at {message.address.key!r}")
        known.append(
            Effect(
                message.key,
                self.world.loop.time(),
                message.address.key,
                message.message_out_id,
                message.agent,
                message.session,
                process.name if process is not None else "",
                ambiguous,
                message.attempt,
                message.content,
            )
        )


class NoSettings(BaseModel):
    """Simulated channels have none."""


class SimChannel:
    """daemon.channels.protocol.Channel."""

    Settings: ClassVar[type[BaseModel]] = NoSettings

    def __init__(self, context: ChannelContext) -> None:
        self.name = context.name
        self.receivers: Receivers = context.settings
        self.world = self.receivers.world
        self.capabilities = TRAITS[context.name]

    async def run(self, accept: Accept, *, task_status: TaskStatus[None]) -> None:
        """Takes messages in through the world's clients, so nothing to do here."""
        task_status.started()
        await anyio.sleep_forever()

    async def deliver(self, message: Outgoing) -> Receipt:
        """Hand it over, in one of many ways."""
        world, receivers = self.world, self.receivers
        self._check(message)
        process = PROCESS.get()
        lane = f"{process.name if process else ''} {message.session} {message.address.key}"
        if receivers.under_way[lane]:
            world.broken(f"two sends are under way at once from {message.session} to {message.address.key!r}")
        receivers.under_way[lane] += 1
        try:
            return await self._deliver(message)
        finally:
            receivers.under_way[lane] -= 1

    def deliver_inline(self, messages: Sequence[Outgoing]) -> list[Receipt | TransientDeliveryError] | None:
        """As the `local` channel: at once, in the caller's thread. Only what deduplicates is asked to."""
        world, receivers = self.world, self.receivers
        if world.chance(0.4):
            return None
        results: list[Receipt | TransientDeliveryError] = []
        for message in messages:
            self._check(message, own=True)
            if receivers.down_until.get(self.name, 0.0) > world.loop.time() or world.chance(world.faults.receiver):
                return [*results, TransientDeliveryError("the receiver is down.")]
            world.step("daemon", f"hands {message.message_out_id[-6:]} over to {self.name}, attempt {message.attempt}")
            receivers.take(self.name, message)
            results.append(Receipt(f"p1-{message.message_out_id[-6:]}"))
        return results

    async def _deliver(self, message: Outgoing) -> Receipt:
        world, receivers = self.world, self.receivers
        world.step("daemon", f"sends {message.message_out_id[-6:]} to {self.name}, attempt {message.attempt}")
        await world.crash_point("before a send", 2)
        await anyio.sleep(world.rng.expovariate(20.0))
        if receivers.down_until.get(self.name, 0.0) > world.loop.time():
            raise TransientDeliveryError("the receiver is down.")
        if world.chance(world.faults.receiver):
            await self._go_wrong(message)
        receivers.take(self.name, message)
        try:
            await world.crash_point("after a send, before its receipt", 4)
            await anyio.sleep(world.rng.expovariate(50.0))
        except anyio.get_cancelled_exc_class():
            # Timed out between effect and answer (a daemon that was frozen meanwhile): it is told that it failed.
            receivers.effects[message.key][-1].ambiguous = True
            raise
        return Receipt(f"p{len(receivers.effects[message.key])}-{message.message_out_id[-6:]}")

    async def _go_wrong(self, message: Outgoing) -> None:
        world, receivers = self.world, self.receivers
        kind = world.rng.choice(
            ("transient", "retry_after", "permanent", "late", "reset_after", "stall", "twice", "bug", "down")
        )
        world.fault(f"receiver_{kind}", self.name, message.message_out_id[-6:])
        if kind == "transient":
            raise TransientDeliveryError("503")
        if kind == "retry_after":
            raise TransientDeliveryError("429", retry_after_s=world.between(1, 120))
        if kind == "permanent":
            raise PermanentDeliveryError("410")
        if kind == "bug":
            raise KeyError("a defect of the channel")
        if kind == "down":
            receivers.down_until[self.name] = world.loop.time() + world.between(5, 300)
            raise TransientDeliveryError("connection refused")
        if kind == "stall":
            await anyio.sleep(10_000)
        if kind in ("late", "reset_after"):
            receivers.take(self.name, message, ambiguous=True)
            if kind == "reset_after":
                raise TransientDeliveryError("connection reset after the request was sent", in_doubt=True)
            await anyio.sleep(10_000)
        if kind == "twice":  # the receiver's own proxy repeats the request
            receivers.take(self.name, message, ambiguous=True)

    def _check(self, message: Outgoing, *, own: bool = False) -> None:
        """One row, one key; the intent is on disk before the send, and nothing is sent that has its receipt.

        `own`: the channel is its own receiver and deduplicates. It may get a row that the host has not recorded at all,
        because the row's first record is its receipt.
        """
        row = (message.agent, message.session, message.message_out_id)
        if self.receivers.keys.setdefault(row, message.key) != message.key:
            self.world.broken(f"{row} was sent under two idempotency keys")
        receipt, state = self.receivers.receipts(message)
        if receipt is not None:
            self.world.broken(f"{message.key} is sent again, and has its receipt: {receipt}")
        if state != "intended" and not (own and state is None):
            self.world.broken(f"{message.key} is sent without its intent on disk: {state}")


class SimChannels(dict[str, Any]):
    """daemon.channels.registry.Channels, as far as the composition root uses it."""

    local: Any = None
