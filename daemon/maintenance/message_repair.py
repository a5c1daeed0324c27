"""An operator's repairs of one message: cancel it, or have it tried again now. Each is one transaction, history first.

Synchronous; the caller holds the session's lock. Never writes outbound.db and never brings a finished message back:
what is tried again after its end is a new message with the same content and address.
"""

from __future__ import annotations

from typing import Any

from daemon.core.errors import UnknownMessageError
from daemon.core.message_fate import is_noted
from daemon.core.repair_errors import MessageFinishedError
from daemon.maintenance.stale_sweep import tell_cancelled
from daemon.store import messages, outbound
from daemon.store.dead_letters import DeadAnswer, Operator, dead_letter, refuse_closed, requeue_message
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status, record
from schema.errors import HostileFileError
from schema.handles import Reader, Writer
from schema.instants import to_text
from schema.rows import AckStatus, MessageIn, MessageStatus


def cancel(
    files: SessionFiles,
    message_id: str,
    operator: Operator,
    now: int,
    *,
    live: str | None,
    kill: bool = False,
) -> dict[str, Any]:
    """Cancel an unfinished message and inform its sender. `live`: the incarnation whose container lives, if any.

    A turn that works on it sees that and stops; the sweep ends a container that does not. The caller of `kill` ends it at once,
    and for that one a message that is already cancelled is not an error.

    Returns {id, was, running}. Raises UnknownMessageError, MessageFinishedError or the errors of opening the files; nothing
    has changed then.
    """
    with files.inbound() as db:
        message = _find(db, message_id)
        if message.status is MessageStatus.CANCELLED and kill:
            # A cancel whose kill was not confirmed: the repeat has nothing left to write, and the container to end.
            return {"id": message_id, "was": message.status.value, "running": _works_on(files, message, live)}
        if message.status not in (MessageStatus.PENDING, MessageStatus.PAUSED):
            again = f" `clawbus message retry {message_id}` has it worked on again."
            raise MessageFinishedError(
                f"{message_id} is {message.status.value}.",
                hint=f"`clawbus message show {message_id}` has its history."
                + ("" if message.status is MessageStatus.COMPLETED else again),
            )
        # The runner reads this file in the transaction of its answer: either it has answered, or it sees the cancel.
        with db.transaction(exclusive=True):
            running = _check_ack(files, message, live)
            if running and live is not None:
                messages.note_claim(db, message_id, live, now, now)  # so that the sweep knows of the turn
            detail = operator.detail(code="CANCELLED", running=running)
            change_status(db, message_id, MessageStatus.CANCELLED, "cancelled", now, detail=detail)
            tell_cancelled(db, message_id, now, operator.reason)
    if running:
        files.ring()
    return {"id": message_id, "was": message.status.value, "running": running}


def retry(files: SessionFiles, message_id: str, operator: Operator, now: int) -> dict[str, Any]:
    """Have a message tried now: one that waits at once, one that was given up or cancelled as a new message.

    Returns {id, was, retried_as}. Raise UnknownMessageError, MessageFinishedError (it is completed), NotDeadLetterError (a
    new message does its work already) or what opening the file raises; nothing has changed then.
    """
    with files.inbound() as db:
        message = _find(db, message_id)
        retried_as = message_id
        with db.transaction():
            match message.status:
                case MessageStatus.PENDING | MessageStatus.PAUSED:
                    _due_now(db, message, operator, now)
                case MessageStatus.FAILED:
                    letter = dead_letter(db, message_id)
                    assert not isinstance(letter, DeadAnswer)
                    retried_as = requeue_message(db, letter, operator, now).id
                case MessageStatus.CANCELLED:
                    refuse_closed(db, message_id)
                    retried_as = requeue_message(db, message, operator, now).id
                case MessageStatus.COMPLETED:
                    raise MessageFinishedError(
                        f"{message_id} is completed; it was answered.",
                        hint=f"`clawbus message show {message_id}` has its history; to repeat the work, send a new message.",
                    )
    return {"id": message_id, "was": message.status.value, "retried_as": retried_as}


def _find(db: Reader, message_id: str) -> MessageIn:
    message = messages.find(db, message_id)
    if message is None:
        raise UnknownMessageError(
            f"there is no message {message_id!r} in this session.",
            hint="`clawbus session show AGENT SESSION` lists them; an answer is retried with `clawbus delivery retry`.",
        )
    return message


def _check_ack(files: SessionFiles, message: MessageIn, live: str | None) -> bool:
    """Return whether the live container works on the message.

    Raise MessageFinishedError when its agent has finished it already.
    """
    try:
        with files.outbound() as out:
            ack = outbound.acks_for(out, [message.id]).get(message.id) if out is not None else None
    except HostileFileError:
        return live is not None  # an untrusted file counts neither way
    if ack is None or is_noted(message, ack):
        return False
    if ack.status is AckStatus.LATER:
        return False  # it asks to be tried again, which a cancelled message is not
    if ack.status is not AckStatus.PROCESSING:
        raise MessageFinishedError(
            f"the agent has {ack.status.value} {message.id}; that is about to be recorded.",
            hint="Nothing to cancel: `clawbus session show` has its status in a moment.",
        )
    return live is not None and ack.incarnation in (live, None)


def _works_on(files: SessionFiles, message: MessageIn, live: str | None) -> bool:
    try:
        return _check_ack(files, message, live)
    except MessageFinishedError:
        return False


def _due_now(db: Writer, message: MessageIn, operator: Operator, now: int) -> None:
    before = to_text(message.process_after) if message.process_after is not None else None
    detail = operator.detail(process_after=before, tries=message.tries)
    if message.status is MessageStatus.PAUSED:
        change_status(db, message.id, MessageStatus.PENDING, "resumed", now, detail=detail)
    record(db, message.id, "retry_requested", now, detail=detail)
    db.execute("UPDATE messages_in SET process_after = NULL WHERE id = ?", (message.id,))
