"""Stores the next message of a series (messages with a `recurrence`) in the transaction that ends the previous one.

The next time is computed from the scheduled time, so a late run does not shift the series. Times that have already passed
are skipped. The new id is derived from the series and the time, so one time never gets two messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from daemon.core.schedules import next_cron
from daemon.store import messages
from daemon.store.transitions import record
from schema.handles import Reader, Writer
from schema.instants import from_text, to_text
from schema.rows import MessageIn, MessageStatus


def rearm(db: Writer, finished: Sequence[MessageIn], now: int, timezone: str) -> list[MessageIn]:
    """Insert each series' next occurrence and clear the finished row's recurrence. Call inside a transaction.

    `now` is in epoch milliseconds; cron expressions are read in `timezone`, an IANA name. Return the new rows.
    """
    armed: list[MessageIn] = []
    for message in finished:
        accepted = from_text(message.timestamp)
        scheduled = message.process_after if message.process_after is not None else accepted
        instant = next_cron(message.recurrence or "", max(now, scheduled or now), timezone)
        messages.clear_recurrence(db, message.id)
        if instant is None:
            record(db, message.id, "series_ended", now, detail={"recurrence": message.recurrence})
            continue
        series = message.series_id or message.id
        identity, stored = free_occurrence(db, series, instant)
        if stored:
            continue
        following = replace(
            message,
            id=identity,
            seq=messages.next_even_seq(db),
            timestamp=to_text(now),
            status=MessageStatus.PENDING,
            process_after=instant,
            series_id=series,
            tries=0,
            solo=False,
            holds=False,
            deferrals=0,
            void_ack=None,
            not_after=_expiry(message, scheduled, instant),
            traceparent=None,  # each occurrence has its own trace
        )
        messages.insert(db, following, now, event="rearmed")
        armed.append(following)
    return armed


def _expiry(message: MessageIn, scheduled: int | None, instant: int) -> int | None:
    """Return when the new occurrence expires: as long after its time as the previous one did. None if that one never did."""
    if message.not_after is None or scheduled is None:
        return None
    return instant + max(0, message.not_after - scheduled)


def free_occurrence(db: Reader, series: str, instant: int) -> tuple[str, bool]:
    """Return the id of a series' occurrence at this time (epoch milliseconds), and whether it is already stored.

    A sender may have used this id for a message outside the series. The occurrence then gets the next free `ID+rN`.
    """
    identity, number = occurrence_id(series, instant), 0
    candidate = identity
    while (known := messages.find(db, candidate)) is not None:
        if known.series_id == series:
            return candidate, True
        number += 1
        candidate = f"{identity}+r{number}"
    return candidate, False


def occurrence_id(series: str, instant: int) -> str:
    """Return the id of an occurrence, always the same for the same series and time, with at most 200 characters."""
    if len(series) > 150:  # the digest keeps two long series ids with the same beginning apart
        series = f"{series[:117]}-{sha256(series.encode()).hexdigest()[:32]}"
    return f"{series}@{instant}"
