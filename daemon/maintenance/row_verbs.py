"""The verbs about one row, carried out on a session's files: one implementation for both executors.

Synchronous. The caller holds the session's lock, or the data folder's while no daemon runs, and has marked the session
active in central.db. Each verb is one transaction, history first; one that raises has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from daemon.core.answer_place import check_address, check_channel
from daemon.core.errors import ContentError, ScheduleError
from daemon.core.message_verbs import (
    AnswerQuestion,
    CancelMessage,
    DropAnswer,
    DropDead,
    RequeueDead,
    RetryAnswer,
    RetryMessage,
)
from daemon.core.schedule_verbs import CancelSchedule, PauseSchedule, PutSchedule, ResumeSchedule, RunSchedule
from daemon.core.schedules import CatchUp, Times, check, check_key
from daemon.core.verb import RowVerb, Verb
from daemon.engine import schedule_steps
from daemon.engine.dead_letters import drop_one, requeue
from daemon.engine.replies import answer_by_operator
from daemon.maintenance import answer_repair, message_repair
from daemon.store.dead_letters import Operator
from daemon.store.schedules import Scheduled
from daemon.store.session_files import SessionFiles
from schema.handles import Writer
from schema.rows import Address


def operator_of(verb: Verb) -> Operator:
    """Return who gave the command, and why, for the history."""
    return Operator(verb.by, verb.reason)


def change_row(
    verb: RowVerb, files: SessionFiles, now: int, *, live: str | None, is_sent_now: Callable[[str], bool]
) -> dict[str, Any]:
    """Carry out the verb and return its result. `live`: the incarnation whose container runs, None if there is none.

    Raise the errors of the functions that it calls, and the errors of opening the files.
    """
    operator = operator_of(verb)
    match verb:
        case RequeueDead():
            return requeue(files, verb.id, operator, now)
        case DropDead():
            return {"id": verb.id, "kind": drop_one(files, verb.id, operator, now)}
        case CancelMessage():
            return message_repair.cancel(files, verb.id, operator, now, live=live, kill=verb.kill)
        case RetryMessage():
            return message_repair.retry(files, verb.id, operator, now)
        case RetryAnswer():
            return answer_repair.retry_answer(files, verb.id, operator, now, under_way=is_sent_now(verb.id))
        case DropAnswer():
            return answer_repair.drop_answer(files, verb.id, operator, now, under_way=is_sent_now(verb.id))
        case AnswerQuestion():
            return answer_by_operator(files, verb.id, verb.answer, operator.name, now)
        case PutSchedule() | PauseSchedule() | ResumeSchedule() | CancelSchedule() | RunSchedule():
            with files.inbound() as db, db.transaction():
                return _change_schedule(db, verb, operator, now)
        case _:
            raise NotImplementedError(type(verb).__name__)


def _change_schedule(db: Writer, verb: RowVerb, operator: Operator, now: int) -> dict[str, Any]:
    match verb:
        case PutSchedule():
            return schedule_steps.put(db, verb.id, _scheduled(verb), operator, now)
        case PauseSchedule():
            return schedule_steps.pause(db, verb.id, operator, now)
        case ResumeSchedule():
            return schedule_steps.resume(db, verb.id, operator, now)
        case CancelSchedule():
            return schedule_steps.cancel(db, verb.id, operator, now)
        case _:
            return schedule_steps.run_now(db, verb.id, operator, now)


def check_schedule(verb: PutSchedule, channels: Collection[str], now: int) -> None:
    """Raise ScheduleError, MessageError or ContentError for a schedule that cannot be stored. Call it before its session is created."""
    check_key(verb.id)
    check_channel(verb.channel, channels)
    check(_scheduled(verb).times, now)


def _scheduled(verb: PutSchedule) -> Scheduled:
    if verb.catch_up not in tuple(CatchUp):
        raise ScheduleError(f"catch_up {verb.catch_up!r} is not one of {', '.join(CatchUp)}.")
    times = Times(
        verb.at, verb.every_ms, verb.cron, verb.timezone, until=verb.until, count=verb.count,
        catch_up=CatchUp(verb.catch_up),
    )  # fmt: skip
    address = Address(verb.channel, verb.place, verb.thread)
    check_address(address)
    for name, text in (("text", verb.text), ("check", verb.check or "")):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ContentError(f"{name} has half a character, which is no text in UTF-8.") from error
    if verb.check is not None and "\0" in verb.check:
        raise ScheduleError("check has a NUL character, which no command can have.", hint="Remove it.")
    content = json.dumps({"text": verb.text}, ensure_ascii=False)
    return Scheduled(times, content, address, verb.check)
