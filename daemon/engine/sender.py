"""Sends intended rows over their channel and returns the outcomes. Records nothing.

A channel's bug, hang or wrong return value only makes the send fail.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from daemon.channels.protocol import ManyChannel, Receiver
from daemon.core.clock import Clock
from daemon.core.delivery_plan import Send
from daemon.core.trace import SpanStart, Tracing
from daemon.engine.hand_over import Outcome
from daemon.engine.outcomes import failure, note_results, outgoing, success
from daemon.engine.session import Session


class Sender:
    """Sends rows. A send that takes longer than `timeout_s` seconds is in doubt."""

    def __init__(self, channels: Mapping[str, Receiver], timeout_s: float, clock: Clock, tracing: Tracing) -> None:
        self._channels = channels
        self._timeout_s = timeout_s
        self._clock = clock
        self._tracing = tracing
        self._many = {
            name: c for name, c in channels.items() if isinstance(c, ManyChannel) and c.capabilities.deduplicates
        }

    def takes_many(self, sends: list[Send]) -> bool:
        """Return whether these rows of one destination can be sent in one call."""
        return len(sends) > 1 and sends[0].address.channel_type in self._many

    async def one(self, session: Session, send: Send) -> Outcome:
        """Send one row. An exception of its channel becomes part of the outcome."""
        begun = self._begin(session, send)
        channel = self._channels[send.address.channel_type]
        try:
            with anyio.fail_after(self._timeout_s):
                receipt = await channel.deliver(outgoing(session.key, send, begun.traceparent))
            return success(send, receipt, begun, self._clock.now_ms())
        except Exception as error:  # noqa: BLE001 - a channel's bug must not stop other channels; log it and retry
            return failure(send, error, self._timeout_s).at(begun, self._clock.now_ms())

    def _begin(self, session: Session, send: Send) -> SpanStart:
        return self._tracing.sending(session.key.agent, session.key.session, send.candidate.cause)

    async def many(self, session: Session, sends: list[Send]) -> list[Outcome]:
        """Send several rows in one call. Rows without a result are sent again later, which is safe: the channel deduplicates."""
        outcomes: list[Outcome] = []
        begun = [self._begin(session, send) for send in sends]
        messages = [outgoing(session.key, send, one.traceparent) for send, one in zip(sends, begun, strict=True)]
        try:
            with anyio.fail_after(self._timeout_s):
                results = await self._many[sends[0].address.channel_type].deliver_many(messages)
            note_results(outcomes, sends, begun, results, self._clock.now_ms(), self._timeout_s)
            # Treat an empty result as a failure: otherwise the channel would be called again at once, forever.
            error = None if outcomes else TypeError("deliver_many returned nothing")
        except Exception as raised:  # noqa: BLE001 - as in a single send; the first row without a result gets the error
            error = raised
        if error is not None:
            first = len(outcomes)
            outcomes.append(failure(sends[first], error, self._timeout_s).at(begun[first], self._clock.now_ms()))
        return outcomes
