"""Reads the rows that a delivery poll plans, and the rules that hold for them. Changes nothing.

Synchronous; the caller holds the session's lock and a read transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from daemon.core.attachments import IntakeLimits
from daemon.core.content import is_runner_error
from daemon.core.delivery_plan import (
    Candidate,
    Rules,
)
from daemon.core.message_fate import Void
from daemon.core.sent_files import names_in
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.fate_steps import Judged
from daemon.store import deliveries, destinations, host_messages, outbound, questions, reply_routes
from daemon.store.schedules import repeats_failure
from daemon.store.sent_files import SentStore
from schema.frozen import frozen
from schema.handles import Reader
from schema.questions import is_question
from schema.rows import MessageOut

_WITH_FILES: Final = 4  # new rows of one poll whose files are copied; the session's lock is held meanwhile
_LARGE: Final = 1024**2  # characters; a batch of new rows is cut short well above this


@frozen
class Batch:
    """The rows of one poll. `top_seq`: the last new row that was read, None without any; `more`: some are left to read."""

    candidates: tuple[Candidate, ...]
    held: frozenset[str]
    top_seq: int | None
    file_id: str
    more: bool


def without_cut(batch: Batch, judged: Judged) -> tuple[Batch, list[str]]:
    """Return the batch without the error answers of void acks, and the ids of these answers.

    A void ack does not count, because its container was being ended when it wrote it: the message is tried again.
    """
    void = {verdict.message_id for verdict in judged.verdicts if isinstance(verdict, Void)}
    void |= {message.id for message in judged.pending if message.void_ack is not None}
    cut = [
        one.row.id for one in batch.candidates
        if one.state is None and one.row.in_reply_to in void and is_runner_error(one.row.content)
    ]  # fmt: skip
    if not cut:
        return batch, []
    kept = tuple(one for one in batch.candidates if one.row.id not in cut)
    return replace(batch, candidates=kept), cut


def without_repeats(db: Reader, batch: Batch) -> tuple[Batch, list[str]]:
    """Return the batch without error answers to occurrences of a schedule whose last one failed too, and their ids."""
    cut = [
        one.row.id for one in batch.candidates
        if one.state is None and is_runner_error(one.row.content) and repeats_failure(db, one.row.in_reply_to or "")
    ]  # fmt: skip
    if not cut:
        return batch, []
    return replace(batch, candidates=tuple(one for one in batch.candidates if one.row.id not in cut)), cut


def read_batch(db: Reader, out: Reader | None, means: DeliveryContext, now: int) -> Batch:
    """Read the rows to plan. Read new ones only if no tracked row was left out, so that the order is kept."""
    batch = means.config.batch
    limit = batch if means.few is None else min(batch, means.few)
    held = means.held | deliveries.retrying_destinations(db, now)
    every_due = deliveries.due(db, now, held, limit, full=means.full)
    for channel, place in means.full:
        if deliveries.due(db, now, held, 1, only=(channel, place)):
            means.wait(channel, place)
    due = [row for row in every_due if row.message_out_id not in means.under_way]
    host = host_messages.host_rows(db, [row.message_out_id for row in due if row.from_host])
    agent, due, left_out = _agent_rows(out, due)
    new: Sequence[MessageOut] = []
    if out is not None and len(every_due) < limit and not left_out:
        new = outbound.rows_after(out, deliveries.cursor(db, out.file_id), batch)
    room = means.config.max_open_answers
    if new:  # rows beyond the limit wait in the container's file
        room = max(0, room - deliveries.count_open(db))
    held_back, new = len(new) > room, new[:room]
    read, new = len(new), _up_to_files(new)
    known = deliveries.known(db, [row.id for row in new])
    tracked = [(row, _row_of(row, host if row.from_host else agent)) for row in due]
    fresh = _first_of_each(new, known)
    asked = {row.in_reply_to for row in (*fresh, *(found for _, found in tracked if found)) if row.in_reply_to}
    origins = reply_routes.origins(db, sorted(asked))
    return Batch(
        candidates=(
            *(_tracked(row, found, origins) for row, found in tracked),
            *(_fresh(row, now, origins) for row in fresh),
        ),
        held=held,
        top_seq=new[-1].seq if new else None,
        file_id=out.file_id if out is not None else "",
        more=left_out
        or len(new) < read
        or len(every_due) == limit
        or len(new) == batch
        or (sum(len(row.content) for row in new) > _LARGE and not held_back),
    )


def _up_to_files(new: Sequence[MessageOut]) -> Sequence[MessageOut]:
    """Return the first rows, with at most _WITH_FILES that bring files."""
    with_files = [place for place, row in enumerate(new) if names_in(row.content)]
    return new[: with_files[_WITH_FILES]] if len(with_files) > _WITH_FILES else new


def with_sent_files(db: Reader, batch: Batch, sent: SentStore, limits: IntakeLimits) -> Batch:
    """Return the batch with the files that its rows bring, copied if they are new. Raise StorageError."""
    if not any(_brings_files(one) for one in batch.candidates):
        return batch
    arrived = partial(deliveries.arrived, db)
    found = [
        replace(one, files=sent.keep(one.row.id, one.row.content, limits, arrived)) if _brings_files(one) else one
        for one in batch.candidates
    ]
    return replace(batch, candidates=tuple(found))


def _brings_files(one: Candidate) -> bool:
    return not one.from_host and not one.gone and '"files' in one.row.content


def _agent_rows(
    out: Reader | None, due: list[deliveries.Tracked]
) -> tuple[dict[str, MessageOut], list[deliveries.Tracked], bool]:
    """Return the container's rows for the tracked ones, the leading part of `due` that was read, and whether more is left."""
    ours = [row.message_out_id for row in due if not row.from_host]
    if out is None:
        return {}, due, False
    found, looked = outbound.rows_by_id(out, ours)
    if looked == len(ours):
        return found, due, False
    end = next(index for index, row in enumerate(due) if row.message_out_id == ours[looked])
    return found, due[:end], True


def _first_of_each(new: Sequence[MessageOut], known: frozenset[str]) -> list[MessageOut]:
    """Return the rows whose id is new: an id that the container uses again is the same message and is not sent again.

    This also holds within one batch: a file without the contract's keys may hold an id twice.
    """
    first: dict[str, MessageOut] = {}
    for row in new:
        if row.id not in known:
            first.setdefault(row.id, row)
    return list(first.values())


_Origins = Mapping[str, reply_routes.Origin]


def _row_of(row: deliveries.Tracked, rows: Mapping[str, MessageOut]) -> MessageOut | None:
    """Return the row with the seq that was recorded first: the container may have rewritten the row since."""
    found = rows.get(row.message_out_id)
    return found if found is None or found.seq == row.seq else replace(found, seq=row.seq)


def _tracked(row: deliveries.Tracked, found: MessageOut | None, origins: _Origins) -> Candidate:
    origin = origins.get(found.in_reply_to) if found is not None and found.in_reply_to is not None else None
    return Candidate(
        row=found or MessageOut(row.message_out_id, row.seq, "", "", ""),
        from_host=row.from_host,
        state=row.state,
        attempts=row.attempts,
        first_at=row.first_at,
        doubts=row.doubts,
        origin=origin.address if origin is not None else None,
        gone=found is None,
        cause=origin.cause if origin is not None else None,
    )


def _fresh(row: MessageOut, now: int, origins: _Origins) -> Candidate:
    origin = origins.get(row.in_reply_to) if row.in_reply_to is not None else None
    return Candidate(
        row=row,
        from_host=False,
        state=None,
        first_at=now,
        origin=origin.address if origin is not None else None,
        cause=origin.cause if origin is not None else None,
    )


def read_rules(db: Reader, batch: Batch, means: DeliveryContext, now: int) -> Rules:
    """Return the rules that hold for the rows of `batch` now. Read from inbound.db only what one of the rows depends on."""
    allowed, revoked = _places(db, batch, means)
    return Rules(
        now=now,
        routing=reply_routes.routing(db),
        allowed=allowed,
        revoked=revoked,
        channels=means.channels,
        held=batch.held,
        max_content_bytes=means.max_content_bytes,
        full=means.full,
        probing=deliveries.probing_destinations(db),
        scheduled_room=_scheduled_room(db, batch, means, now),
        max_ahead_ms=int(means.config.max_ahead_s * 1000),
        question_room=_question_room(db, batch),
    )


def _places(
    db: Reader, batch: Batch, means: DeliveryContext
) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    """Return the places that the session may write to now, and those of the batch to which it once could and no longer may."""
    if means.granted is None:
        return destinations.granted(db), frozenset()
    allowed = means.granted | destinations.not_derived(db)
    rows = (one.row for one in batch.candidates)
    unknown = {(row.channel_type, row.platform_id) for row in rows if row.channel_type and row.platform_id} - allowed
    return allowed, (destinations.granted(db) | means.lost) & unknown if unknown else frozenset()


def _scheduled_room(db: Reader, batch: Batch, means: DeliveryContext, now: int) -> int:
    """Return how many more scheduled rows are allowed. They are counted only if a new row asks for a delivery time."""
    limit = means.config.max_scheduled_answers
    asked = any(one.state is None and (one.row.deliver_after or 0) > now for one in batch.candidates)
    return limit - deliveries.count_scheduled(db, now) if asked else limit


def _question_room(db: Reader, batch: Batch) -> int:
    """Return how many more questions may be open. They are counted only if a new row asks one."""
    asks = any(one.state is None and is_question(one.row.kind, one.row.content) for one in batch.candidates)
    return questions.MAX_OPEN - questions.count_open(db) if asks else questions.MAX_OPEN
