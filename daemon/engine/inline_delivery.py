"""The fast path of delivery, in one thread, for a channel that is its own receiver and deduplicates (`InlineChannel`).

A new row is handed over first; then one commit settles its message and records its receipt. A crash in between leaves the
row new, and the channel recognises it when it comes again. Every other row goes in the order of every delivery: commit the
intent, then the receiver's row, then the receipt. Rows that cannot be finished here stay intended or handed over, and
`delivery.py` continues with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import structlog

from daemon.channels.protocol import InlineChannel, ReaderHolder, Receiver
from daemon.core.clock import Clock
from daemon.core.delivery_plan import Send
from daemon.core.trace import Tracing
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.hand_over import HandOver, Outcome, with_receipt
from daemon.engine.outcome_steps import record_outcomes
from daemon.engine.outcomes import by_destination, note_results, outgoing
from daemon.engine.session import Session
from schema.errors import ClawbusError


class InlineDelivery:
    """Delivers through inline channels. `collect` runs in a thread; the caller holds the session's lock."""

    def __init__(self, channels: Mapping[str, Receiver], clock: Clock, tracing: Tracing) -> None:
        self._clock = clock
        self._tracing = tracing
        self._channels = {
            name: channel
            for name, channel in channels.items()
            if isinstance(channel, InlineChannel) and channel.capabilities.deduplicates
        }

    def collect(
        self, session: Session, means: DeliveryContext, live: str | None
    ) -> tuple[Collected, dict[str, HandOver]]:
        """Record news and intend sends; then hand over and record what this path can, by destination.

        Raise as `delivery_steps.collect` does.
        """
        handed: dict[str, HandOver] = {}
        failed: set[str] = set()  # channels that failed: do not wait for their lock again while holding the session's

        def take(sends: Sequence[Send]) -> list[Outcome]:
            outcomes: list[Outcome] = []
            for address_key, group in by_destination(sends).items():
                done = self._try(session, group, failed, means)
                if done:
                    handed[address_key] = HandOver(done)
                outcomes += done
            return outcomes

        with ExitStack() as held:
            for channel in self._channels.values():
                if isinstance(channel, ReaderHolder):
                    held.enter_context(channel.readers_held())
            found = collect(session.files, means, live, self._clock, take, self._channels.keys())
            for one in handed.values():
                if len(with_receipt(one.outcomes)) == len(one.outcomes):
                    one.dead = ()  # committed as delivered
            for address_key, sends in by_destination(found.sends).items():
                if address_key not in handed and (outcomes := self._try(session, sends, failed, means)):
                    handed[address_key] = HandOver(outcomes)
            self._record(session, handed, means)
        return found, handed

    def _try(self, session: Session, sends: list[Send], failed: set[str], means: DeliveryContext) -> list[Outcome]:
        """Hand one destination's rows over, unless its channel is in `failed`. Add the channel there if it fails."""
        name = sends[0].address.channel_type
        channel = self._channels.get(name) if name not in failed else None
        outcomes = self._hand_over(session, sends, channel, means) if channel is not None else []
        if any(outcome.error for outcome in outcomes) or (channel is not None and not outcomes):
            failed.add(name)
        return outcomes

    def _hand_over(
        self, session: Session, sends: list[Send], channel: InlineChannel, means: DeliveryContext
    ) -> list[Outcome]:
        """Hand the rows over and return their outcomes; an empty list when the channel cannot do it in this thread."""
        key = session.key
        begun = [self._tracing.sending(key.agent, key.session, send.candidate.cause) for send in sends]
        outcomes: list[Outcome] = []
        try:
            results = channel.deliver_inline([outgoing(key, send, None) for send in sends])
            note_results(outcomes, sends, begun, results or (), self._clock.now_ms(), means.config.send_timeout_s)
        except Exception:  # noqa: BLE001 - all rows are sent again, and the channel deduplicates those that it took
            structlog.get_logger("delivery").error(
                "channel_raised", channel=sends[0].address.channel_type, exc_info=True
            )
        if not outcomes:
            return []
        return outcomes + [Outcome(send, sent=False) for send in sends[len(outcomes) :]]

    def _record(self, session: Session, handed: Mapping[str, HandOver], means: DeliveryContext) -> None:
        open_ones = [one for one in handed.values() if one.dead is None]
        outcomes = [outcome for one in open_ones for outcome in one.outcomes]
        if not outcomes:
            return
        try:
            dead_lettered = record_outcomes(session.files, outcomes, means, self._clock.now_ms())
        except ClawbusError:
            return  # the ordinary way retries until it is recorded, and logs why it failed
        for one in open_ones:
            own = {outcome.send.candidate.row.id for outcome in one.outcomes}
            one.dead = [dead for dead in dead_lettered if dead.candidate.row.id in own]
