"""The verbs about one row, carried out on a session's files: one implementation for both executors.

Synchronous. The caller holds the session's lock, or the data folder's while no daemon runs, and has marked the session
active in central.db. Each is one transaction, history first; what raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemon.core.commands import (
    AnswerQuestion,
    CancelMessage,
    DropAnswer,
    DropDead,
    RequeueDead,
    RetryAnswer,
    RetryMessage,
    RowVerb,
    Verb,
)
from daemon.engine.dead_letters import drop_one, requeue
from daemon.engine.replies import answer_by_operator
from daemon.maintenance import answer_repair, message_repair
from daemon.store.dead_letters import Operator
from daemon.store.session_files import SessionFiles


def operator_of(verb: Verb) -> Operator:
    """Return who asks, and why, for the history."""
    return Operator(verb.by, verb.reason)


def change_row(
    verb: RowVerb, files: SessionFiles, now: int, *, live: str | None, is_sent_now: Callable[[str], bool]
) -> dict[str, Any]:
    """Carry out the verb and return its result. `live`: the incarnation whose container runs, None if there is none.

    Raises what the functions it calls raise, and what opening the files raises.
    """
    operator = operator_of(verb)
    match verb:
        case RequeueDead():
            return requeue(files, verb.id, operator, now)
        case DropDead():
            return {"id": verb.id, "kind": drop_one(files, verb.id, operator, now)}
        case CancelMessage():
            return message_repair.cancel(files, verb.id, operator, now, live=live, although_running=verb.kill)
        case RetryMessage():
            return message_repair.retry(files, verb.id, operator, now)
        case RetryAnswer():
            return answer_repair.retry_answer(files, verb.id, operator, now, under_way=is_sent_now(verb.id))
        case DropAnswer():
            return answer_repair.drop_answer(files, verb.id, operator, now, under_way=is_sent_now(verb.id))
        case AnswerQuestion():
            return answer_by_operator(files, verb.id, verb.answer, operator.name, now)
        case _:
            raise NotImplementedError(type(verb).__name__)
