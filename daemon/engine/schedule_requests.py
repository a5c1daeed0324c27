"""Carries out an agent's request about its own schedules, in the transaction that records the request's row.

An agent can make schedules only for the session it works in, and change only those. The answers to a schedule's messages go
to the destination of the row that asked for it.
"""

from __future__ import annotations

import json

from daemon.core.errors import ScheduleError
from daemon.core.schedule_limits import ScheduleLimits, check_limits, check_soon, is_soon
from daemon.core.schedules import CLOCK_SLACK_MS, CatchUp, Times, check_form, upcoming
from daemon.core.time_phrases import instant_of
from daemon.engine import schedule_steps
from daemon.store import messages, schedules
from daemon.store.dead_letters import Operator
from daemon.store.schedule_requests import SOON, note_outcome, soon_since
from daemon.store.schedules import AGENT, Scheduled, ScheduleState
from schema.errors import ClawbusError
from schema.handles import Writer
from schema.instants import to_text
from schema.rows import Address, Kind, MessageIn, MessageOut, MessageStatus
from schema.schedule_requests import Action, ScheduleRequest, ScheduleRequestError, from_content

_BY_AGENT = Operator(AGENT, None)
_UPCOMING = 3


def carry_out(db: Writer, row: MessageOut, address: Address, limits: ScheduleLimits, now: int) -> None:
    """Carry out the request of a row and record the outcome. A refusal is an outcome, too; it changes nothing."""
    request = None
    try:
        request = from_content(row.content)
        outcome: dict[str, object] = {"ok": True, **_done(db, request, address, limits, now)}
    except ScheduleRequestError as error:
        outcome = _refused("BAD_SCHEDULE", f"the request {error}.", "Correct it and ask again.")
    except ClawbusError as error:
        outcome = _refused(error.code, str(error), error.hint)
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:
        # No check foresaw it. It must not stop the session's other answers.
        outcome = _refused(
            "BAD_SCHEDULE", f"the request cannot be carried out: {str(error)[:200]}.", "Ask for another."
        )
    note_outcome(db, row.id, outcome, now, counted_since=now - limits.window_ms)
    if request is not None and request.notify and not outcome["ok"]:
        _tell_agent(db, row, request, outcome, now)


def _done(
    db: Writer, request: ScheduleRequest, address: Address, limits: ScheduleLimits, now: int
) -> dict[str, object]:
    row = schedules.find(db, request.key)
    if row is not None and row.origin != AGENT:
        raise ScheduleError(f"schedule {request.key!r} is not yours.", hint="Choose another key.")
    if row is not None and row.state is ScheduleState.PAUSED and row.changed_by != AGENT:
        raise ScheduleError(
            f"schedule {request.key!r} was paused, and not by you.",
            hint=f"An operator can resume it: `clawbus schedule resume {request.key}`.",
        )
    match request.action:
        case Action.PUT:
            return _put(db, request, address, limits, now)
        case Action.PAUSE:
            return schedule_steps.pause(db, request.key, _BY_AGENT, now)
        case Action.RESUME:
            return schedule_steps.resume(db, request.key, _BY_AGENT, now)
        case Action.CANCEL:
            return schedule_steps.cancel(db, request.key, _BY_AGENT, now)
        case Action.RUN_NOW:
            unfinished = schedules.unfinished(db, request.key)
            if unfinished is not None and row is not None:
                raise ScheduleError(f"its message {unfinished} is not finished.", hint="Wait until it is.")
            _check_soon(db, limits, now)
            return {**SOON, **schedule_steps.run_now(db, request.key, _BY_AGENT, now)}


def _put(db: Writer, request: ScheduleRequest, address: Address, limits: ScheduleLimits, now: int) -> dict[str, object]:
    times = _times(request, limits, now)
    check_form(times)
    check_limits(times, schedules.count_of_agent(db, besides=request.key), limits, now)
    soon = is_soon(times, limits, now)
    if soon:
        _check_soon(db, limits, now)
    what = Scheduled(times, json.dumps({"text": request.text}, ensure_ascii=False), address, request.check)
    done = schedule_steps.put(db, request.key, what, _BY_AGENT, now, origin=AGENT)
    row = schedules.find(db, request.key)
    assert row is not None
    next_ones = [to_text(at) for at in upcoming(row.what.times, row.next_at, row.sent, _UPCOMING)]
    return {**(SOON if soon and done["was"] != "unchanged" else {}), **done, "upcoming": next_ones}


def _check_soon(db: Writer, limits: ScheduleLimits, now: int) -> None:
    """Raise ScheduleError if the agent has had too many requests granted that made something due soon."""
    asked, oldest = soon_since(db, now - limits.window_ms, now + CLOCK_SLACK_MS)
    check_soon(asked, oldest, limits, now)


def _times(request: ScheduleRequest, limits: ScheduleLimits, now: int) -> Times:
    zone = request.timezone or limits.timezone
    catch_up = request.catch_up or CatchUp.LATEST.value
    if catch_up not in tuple(CatchUp):
        raise ScheduleError(f"catch_up {catch_up!r:.80} is not one of {', '.join(CatchUp)}.")
    return Times(
        at=instant_of(request.at, zone, now) if request.at is not None else None,
        every_ms=round(request.every_s * 1000) if request.every_s is not None else None,
        cron=request.cron,
        timezone=zone,
        until=instant_of(request.until, zone, now) if request.until is not None else None,
        count=request.count,
        catch_up=CatchUp(catch_up),
    )


def _refused(code: str, message: str, fix: str) -> dict[str, object]:
    return {"ok": False, "error": {"code": code, "message": message, "fix": fix}}


def _tell_agent(db: Writer, row: MessageOut, request: ScheduleRequest, outcome: dict[str, object], now: int) -> None:
    """Store the refusal as a message that does not wake the agent: some programs print requests and read no outcome."""
    content = {
        "type": "schedule_refused",
        "text": f"Your request to {request.action.value} the schedule {request.key!r} was refused.",
        "key": request.key,
        "error": outcome["error"],
    }
    messages.insert(
        db,
        MessageIn(
            id=messages.free_id(db, f"refused:{row.id}"),
            seq=messages.next_even_seq(db),
            kind=Kind.SYSTEM,
            timestamp=to_text(now),
            status=MessageStatus.PENDING,
            content=json.dumps(content, ensure_ascii=False),
            trigger=False,
        ),
        now,
    )
