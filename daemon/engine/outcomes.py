"""Converts between delivery's Send and Outcome and the channel's Outgoing, Receipt and errors. No I/O.

A channel may be third-party code: only a Receipt counts as a delivery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from daemon.channels.protocol import DeliveryFailure, Outgoing, Receipt
from daemon.core.delivery_plan import Send
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.session_key import SessionKey
from daemon.core.trace import SpanStart
from daemon.engine.hand_over import Outcome
from schema.json_text import without_halves
from schema.os_faults import as_host_error, passes


def by_destination(sends: Iterable[Send]) -> dict[str, list[Send]]:
    """Group the sends by destination (the address's key), in order."""
    groups: dict[str, list[Send]] = {}
    for send in sends:
        groups.setdefault(send.address.key, []).append(send)
    return groups


def outgoing(key: SessionKey, send: Send, traceparent: str | None) -> Outgoing:
    """Return the row as the channel receives it."""
    row = send.candidate.row
    return Outgoing(
        key=f"{key.agent}/{key.session}/{row.id}",
        message_out_id=row.id,
        agent=key.agent,
        session=key.session,
        kind=row.kind,
        address=send.address,
        content=without_halves(row.content),
        timestamp=row.timestamp,
        in_reply_to=row.in_reply_to,
        attempt=send.candidate.attempts + 1,
        traceparent=traceparent,
        final=row.final,
        files=send.candidate.files,
    )


def success(send: Send, receipt: object, begun: SpanStart, ended_at: int) -> Outcome:
    """Return the outcome of a delivered row. Raise TypeError if the channel returned anything but a Receipt."""
    if not isinstance(receipt, Receipt):
        raise TypeError(f"deliver returned {type(receipt).__name__}, not a Receipt")
    platform_id = None if receipt.platform_message_id is None else str(receipt.platform_message_id)
    return Outcome(
        send, sent=True, platform_message_id=platform_id, not_wanted=receipt.not_wanted, begun=begun, ended_at=ended_at
    )


def failure(send: Send, error: Exception, timeout_s: float) -> Outcome:
    """Return the outcome of a failed send. `timeout_s` is the bus's own timeout in seconds, which the text names."""
    if isinstance(error, TimeoutError):
        text = f"no answer within {timeout_s:g} s"
        return Outcome(send, sent=True, error_code=TransientDeliveryError.code, error=text, in_doubt=True)
    if isinstance(error, PermanentDeliveryError):
        return Outcome(send, sent=True, error_code=error.code, error=str(error), permanent=True)
    if isinstance(error, TransientDeliveryError):
        return Outcome(
            send, sent=True, error_code=error.code, error=str(error), retry_after_s=error.retry_after_s,
            in_doubt=error.in_doubt, paced=error.paced,
        )  # fmt: skip
    channel = send.address.channel_type
    host = as_host_error(error, f"the channel {channel} cannot send") if passes(error) else None
    if host is not None:
        return Outcome(send, sent=True, error_code=host.code, error=f"{host} {host.hint}", in_doubt=True)
    structlog.get_logger("delivery").error("channel_raised", channel=channel, exc_info=error)
    return Outcome(send, sent=True, error_code="CHANNEL_BUG", error=f"{type(error).__name__}: {error}", in_doubt=True)


def note_results(
    outcomes: list[Outcome],
    sends: Sequence[Send],
    begun: Sequence[SpanStart],
    results: Sequence[Receipt | DeliveryFailure],
    ended_at: int,
    timeout_s: float,
) -> None:
    """Append the outcomes of a channel's `deliver_many` to `outcomes`, up to the first failure.

    Raise TypeError if a result is neither a receipt nor a delivery error.
    """
    for send, start, result in zip(sends, begun, results, strict=False):
        if isinstance(result, (PermanentDeliveryError, TransientDeliveryError)):
            outcomes.append(failure(send, result, timeout_s).at(start, ended_at))
            return
        outcomes.append(success(send, result, start, ended_at))
