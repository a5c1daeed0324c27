"""Fires the schedules of one session, and changes them: each a transaction over its inbound.db.

An occurrence becomes a message in the transaction that sets the next one, so a crash can neither lose nor double it.
Synchronous; the caller holds the session's lock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from daemon.config.models import Config
from daemon.core.errors import ScheduleError, UnknownScheduleError
from daemon.core.message_fate import Fate
from daemon.core.schedules import (
    CLOCK_SLACK_MS,
    CatchUp,
    Firing,
    check,
    check_key,
    fire,
    in_step,
    lost_zone,
    next_after,
    set_back,
)
from daemon.core.session_key import SessionKey
from daemon.engine.recurrence import free_occurrence
from daemon.store import host_messages, messages, schedules
from daemon.store.dead_letters import Operator
from daemon.store.schedules import CONFIG, OPERATOR, Scheduled, ScheduleRow, ScheduleState
from daemon.store.transitions import SESSION, record
from schema.frozen import frozen
from schema.handles import Writer
from schema.instants import to_text
from schema.rows import Address, Kind, MessageIn, MessageStatus

_KEEPS_FAILING: Final = Operator("clawbus", "it keeps failing")
_RUNNING = "the occurrence before is not finished: message {}"
_SERIES: Final = "schedule:"  # before a schedule's key: the series of its messages
_SET_BACK: Final = "the clock was set back"
_JUST_AWAKE_MS: Final = 600_000  # longer than a clock is doubted
_MISSED = "missed: the daemon did not run then, or the machine slept"


def configured(config: Config) -> dict[SessionKey, dict[str, Scheduled]]:
    """Return the configuration's schedules by session and key."""
    found: dict[SessionKey, dict[str, Scheduled]] = {}
    for key, one in config.schedules.items():
        times = one.times(config.timezone)
        address = Address(one.channel, one.place or key, one.thread)
        what = Scheduled(times, json.dumps({"text": one.text}, ensure_ascii=False), address, one.check)
        found.setdefault(SessionKey(one.agent, one.session_name(key)), {})[key] = what
    return found


@frozen
class Fired:
    """What schedules did: the messages that they sent, and those that were paused because they keep failing."""

    messages: tuple[MessageIn, ...] = ()
    paused: tuple[ScheduleRow, ...] = ()


def sweep(
    db: Writer, configured: Mapping[str, Scheduled], now: int, pause_after: int = 0, fate: Fate | None = None
) -> Fired:
    """Take over the configuration's schedules and send what is due, in one transaction.

    A schedule that is due after `pause_after` failures in a row (0: any number) is paused instead. While the clock is
    doubted (`fate`) nothing is due; that wait makes no occurrence a missed one.
    """
    fate = fate or Fate()
    changed = differs(db, configured)
    put_off = _put_off(db, now)
    if not (changed or put_off or (not fate.doubted and _placed(schedules.due(db, now)))):
        return Fired()
    with db.transaction():
        for row in put_off:
            schedules.put(db, row)
            _note(db, "schedule_brought_forward", row.key, Operator(CONFIG, _SET_BACK), now)
        if changed:
            take_over(db, configured, now)
        return Fired() if fate.doubted else fire_due(db, now, pause_after, _waited(fate, now))


def _waited(fate: Fate, now: int) -> int:
    """Return for how long what is due now may have waited until the clock was trusted, in milliseconds."""
    waited = now - fate.trying_since
    return waited if 0 <= waited <= _JUST_AWAKE_MS else 0


def _put_off(db: Writer, now: int) -> list[ScheduleRow]:
    """Return, with their right times, the schedules that wait for the time of a clock that was set back since."""
    found: list[ScheduleRow] = []
    for row in _placed(schedules.dated_ahead(db, now + CLOCK_SLACK_MS)):
        right = set_back(row.what.times, row.next_at, now) if row.next_at is not None else None
        if right is not None:
            times, at = right
            found.append(replace(row, what=replace(row.what, times=times), next_at=at))
    return found


def _placed(rows: list[ScheduleRow]) -> list[ScheduleRow]:
    """Return the schedules whose zone this machine has. The others wait for it: an upgrade may have removed a zone's name."""
    return [row for row in rows if lost_zone(row.what.times) is None]


def fire_due(db: Writer, now: int, pause_after: int, waited: int = 0) -> Fired:
    """Store a message for each occurrence that is due, and set the next ones. Call inside a transaction.

    `waited` milliseconds do not count towards an occurrence being missed.
    """
    paused: list[ScheduleRow] = []
    rows: dict[str, ScheduleRow] = {}
    for row in _placed(schedules.due(db, now)):
        if pause_after and schedules.failing_streak(db, row, pause_after) >= pause_after:
            paused.append(_pause_failing(db, row, pause_after, now))
        else:
            rows[row.key] = row
    firings = {key: fire(row.what.times, row.next_at or now, now, row.sent, waited) for key, row in rows.items()}
    return Fired(tuple(_fire_in_step(db, rows, in_step(firings, now), now)), tuple(paused))


def _fire_in_step(
    db: Writer, rows: Mapping[str, ScheduleRow], firings: Mapping[str, Firing], now: int
) -> list[MessageIn]:
    """Store the occurrences of all schedules in the order of time, and set the next ones."""
    stored: list[MessageIn] = []
    for key, firing in firings.items():
        first = rows[key].next_at
        if firing.missed and first is not None and first not in firing.due:
            schedules.note_run(db, key, first, now, message_id=None, detail=_MISSED)
    for instant, key in sorted((instant, key) for key, firing in firings.items() for instant in firing.due):
        row, firing = rows[key], firings[key]
        # The last one is sent beside an unfinished message: nothing would make up for it.
        waits = row.what.times.catch_up is CatchUp.ALL or firing.next_at is None
        unfinished = None if waits else schedules.unfinished(db, key)
        if unfinished is not None:
            schedules.note_run(db, key, instant, now, message_id=None, detail=_RUNNING.format(unfinished))
        elif (message := _store(db, row, instant, now)) is not None:
            stored.append(message)
    sent = Counter((message.series_id or "").removeprefix(_SERIES) for message in stored)
    for key, firing in firings.items():
        row, over = rows[key], firing.next_at is None
        state = ScheduleState.OVER if over else row.state
        schedules.put(db, replace(row, next_at=firing.next_at, sent=row.sent + sent[key], state=state))
    return stored


def _pause_failing(db: Writer, row: ScheduleRow, failures: int, now: int) -> ScheduleRow:
    """Pause a schedule, and tell so who reads its answers, once."""
    paused = replace(row, state=ScheduleState.PAUSED, failures=failures, changed_at=now, changed_by=_KEEPS_FAILING.name)
    schedules.put(db, paused)
    _note(db, "schedule_paused", row.key, _KEEPS_FAILING, now, failures=failures)
    text = f"The schedule {row.key} failed {failures} times in a row and is paused. An operator can resume it."
    host_messages.announce(db, f"paused:{row.key}@{now}", row.what.address, text, now)
    return paused


def _store(db: Writer, row: ScheduleRow, instant: int, now: int) -> MessageIn | None:
    """Store the message of an occurrence; None if it was stored before, by a clock that was set back since."""
    series = f"{_SERIES}{row.key}"
    identity, stored = free_occurrence(db, series, instant)
    if not schedules.note_run(db, row.key, instant, now, message_id=identity) or stored:
        return None
    address = row.what.address
    message = MessageIn(
        identity, messages.next_even_seq(db), Kind.TASK.value, to_text(now), MessageStatus.PENDING, row.what.content,
        series_id=series, solo=row.what.check is not None, channel_type=address.channel_type, platform_id=address.platform_id, thread_id=address.thread_id,
    )  # fmt: skip
    messages.insert(db, message, now, event="scheduled", detail={"schedule": row.key, "due": to_text(instant)})
    return message


def take_over(db: Writer, configured: Mapping[str, Scheduled], now: int) -> None:
    """Make the session's schedules of the configuration those of `configured`. Call inside a transaction.

    An unchanged one keeps its next occurrence, and stays paused if an operator paused it.
    """
    for row in schedules.configured(db):
        if row.key not in configured:
            schedules.remove(db, row.key)
            _note(db, "schedule_removed", row.key, Operator(CONFIG), now)
    for key, what in configured.items():
        row = schedules.find(db, key)
        if row is not None and row.origin == CONFIG and same(row.what, what):
            continue
        _put(db, key, what, Operator(CONFIG), now, origin=CONFIG)


def differs(db: Writer, configured: Mapping[str, Scheduled]) -> bool:
    """Return whether `take_over` would change anything."""
    there = {row.key: row.what for row in schedules.configured(db)}
    return there.keys() != configured.keys() or any(not same(there[key], what) for key, what in configured.items())


def same(one: Scheduled, other: Scheduled) -> bool:
    """Return whether two schedules agree in all but where `every` counts from."""
    return replace(one, times=replace(one.times, start=0)) == replace(other, times=replace(other.times, start=0))


def put(
    db: Writer, key: str, what: Scheduled, operator: Operator, now: int, *, origin: str = OPERATOR
) -> dict[str, object]:
    """Add or change a schedule that belongs to `origin`, an operator or the agent: {key, was: added|changed|unchanged, next_at, state}. A paused one stays paused.

    Call inside a transaction.

    Raise ScheduleError for times that never come, and for a schedule that the configuration owns.
    """
    check_key(key)
    check(what.times, now)
    row = schedules.find(db, key)
    if row is not None:
        _refuse_configured(row)
        if same(row.what, what) and row.origin == origin and row.state is not ScheduleState.OVER:
            return {"key": key, "was": "unchanged", "next_at": row.next_at, "state": row.state.value}
    paused = row is not None and row.state is ScheduleState.PAUSED
    made = _put(db, key, what, operator, now, origin=origin, paused=paused)
    return {
        "key": key, "was": "added" if row is None else "changed", "next_at": made.next_at, "state": made.state.value,
    }  # fmt: skip


def _put(
    db: Writer, key: str, what: Scheduled, operator: Operator, now: int, *, origin: str, paused: bool = False
) -> ScheduleRow:
    if what.times.every_ms is not None:
        what = replace(what, times=replace(what.times, start=now))
    # A configured instant that is past was missed: the catch-up rule decides about it.
    at = what.times.at if what.times.at is not None else next_after(what.times, now)
    state = ScheduleState.OVER if at is None else ScheduleState.PAUSED if paused else ScheduleState.ACTIVE
    row = ScheduleRow(key, what, origin, state, at, 0, now, operator.name)
    schedules.put(db, row)
    _note(db, "schedule_set", key, operator, now, times=what.times.words)
    return row


def pause(db: Writer, key: str, operator: Operator, now: int) -> dict[str, object]:
    """Fire no occurrence until it is resumed: {key, was}. Call inside a transaction. Raise UnknownScheduleError."""
    row = _known(db, key)
    if row.state is ScheduleState.ACTIVE or row.failures:
        schedules.put(
            db, replace(row, state=ScheduleState.PAUSED, changed_at=now, changed_by=operator.name, failures=0)
        )
        _note(db, "schedule_paused", key, operator, now)
    return {"key": key, "was": row.state.value}


def resume(db: Writer, key: str, operator: Operator, now: int) -> dict[str, object]:
    """Go on with the next occurrence from now: {key, was, next_at}. What was due meanwhile does not come.

    Call inside a transaction. Raise UnknownScheduleError.
    """
    row = _known(db, key)
    if row.state is not ScheduleState.PAUSED:
        return {"key": key, "was": row.state.value, "next_at": row.next_at}
    at = next_after(row.what.times, now)
    state = ScheduleState.ACTIVE if at is not None else ScheduleState.OVER
    schedules.put(db, replace(row, state=state, next_at=at, changed_at=now, changed_by=operator.name, failures=0))
    _note(db, "schedule_resumed", key, operator, now)
    return {"key": key, "was": row.state.value, "next_at": at}


def cancel(db: Writer, key: str, operator: Operator, now: int) -> dict[str, object]:
    """Delete an operator's schedule: {key, was}. Messages that were sent stay. Call inside a transaction.

    Raise UnknownScheduleError, and ScheduleError for one that the configuration owns.
    """
    row = _known(db, key)
    _refuse_configured(row)
    schedules.remove(db, key)
    schedules.part_with_runs(db, key)
    _note(db, "schedule_removed", key, operator, now)
    return {"key": key, "was": row.state.value}


def run_now(db: Writer, key: str, operator: Operator, now: int) -> dict[str, object]:
    """Send the schedule's message now, beside its occurrences: {key, message_id}. Call inside a transaction.

    Raise UnknownScheduleError.
    """
    row = _known(db, key)
    message = _store(db, row, now, now)
    if message is None:
        raise ScheduleError(f"schedule {key} has sent a message in this very millisecond.", hint="Repeat the command.")
    _note(db, "schedule_run", key, operator, now, message_id=message.id)
    return {"key": key, "message_id": message.id}


def _known(db: Writer, key: str) -> ScheduleRow:
    row = schedules.find(db, key)
    if row is None:
        raise UnknownScheduleError(f"there is no schedule {key!r:.80} in this session.")
    return row


def _refuse_configured(row: ScheduleRow) -> None:
    if row.origin == CONFIG:
        raise ScheduleError(
            f"schedule {row.key} belongs to the configuration.",
            hint=f"Change [schedules.{row.key}] in clawbus.toml and restart the daemon; `clawbus schedule pause` stops it now.",
        )


def _note(db: Writer, event: str, key: str, operator: Operator, now: int, **more: object) -> None:
    """Write who changed which schedule into the session's history."""
    record(db, SESSION, event, now, detail=operator.detail(schedule=key, **more))
