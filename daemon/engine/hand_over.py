"""The results of handing rows to a channel. Plain records, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from daemon.core.delivery_plan import (
    DeadLetterDecision,
    Send,
)
from daemon.core.trace import SpanStart
from schema.frozen import frozen


@frozen
class Outcome:
    """The outcome of one intended send. Not `sent`: it never began. `sent` without `error`: there is a receipt."""

    send: Send
    sent: bool
    platform_message_id: str | None = None
    error_code: str | None = None
    error: str | None = None
    permanent: bool = False
    retry_after_s: float | None = None
    in_doubt: bool = False  # for a failure: the answer may have arrived
    paced: bool = False  # for a failure: only a limit of our own makes it wait
    not_wanted: bool = False  # the channel reports that it does not want it
    begun: SpanStart | None = None
    ended_at: int = 0

    def at(self, begun: SpanStart, ended_at: int) -> Outcome:
        """Return the outcome with its times."""
        return replace(self, begun=begun, ended_at=ended_at)


@dataclass(slots=True)
class HandOver:
    """The outcomes of handing one destination's rows to its channel.

    `dead` are the rows that were given up; None until the outcomes are recorded.
    """

    outcomes: list[Outcome]
    dead: Sequence[DeadLetterDecision] | None = None

    @property
    def lane(self) -> tuple[str, str]:
        """The channel and the place of its rows."""
        address = self.outcomes[0].send.address
        return address.channel_type, address.platform_id


def with_receipt(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """Return the outcomes with a receipt, by row id."""
    return {
        one.send.candidate.row.id: one
        for one in outcomes
        if one.sent and one.error is None and not one.not_wanted
    }  # fmt: skip
