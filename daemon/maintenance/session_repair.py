"""An operator's repairs of one session's files: write a note into its history, or replace its folder out/ by an empty one.

All functions block. The caller must hold the session's lock. Nothing is deleted: the old out/ stays beside the new one. No
function writes to an existing outbound.db.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from daemon.core.message_fate import is_noted
from daemon.core.repair_errors import ResetWouldLoseError
from daemon.store import deliveries, messages, outbound
from daemon.store.dead_letters import Operator
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import SESSION, record
from schema.errors import (
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    ReadRaceError,
    StorageError,
)
from schema.handles import Reader
from schema.instants import file_stamp
from schema.rows import AckStatus


def quarantine_reason(operator: Operator) -> str:
    """Return the reason to record when an operator quarantines a session."""
    return f"by {operator.name}: {operator.reason or 'no reason given'}"


def note(files: SessionFiles, event: str, operator: Operator, now: int, **more: object) -> None:
    """Record in the history who did what to the session, and why: for the session, and for each message with an open attempt.

    `more` is added to the details.
    """
    with files.inbound() as db, db.transaction():
        detail = operator.detail(**more)
        record(db, SESSION, event, now, detail=detail)
        for attempt in messages.open_attempts(db):
            record(db, attempt.message_id, event, now, incarnation=attempt.incarnation, detail=detail)


def reset(files: SessionFiles, operator: Operator, now: int, *, discard: bool) -> dict[str, Any]:
    """Set out/ aside, make an empty one, and give open attempts back, so that their messages can be claimed again.

    The container's exit must be CONFIRMED. Return {moved_to, released}: the path of the old folder or None, and how many
    attempts were given back. Unless `discard`, raise ResetWouldLoseError when answers or finished turns in out/ would be
    lost, and StorageError or FileBusyError if the host cannot do it; then nothing has changed.
    """
    with files.inbound() as db:
        if not discard:
            _refuse_losses(files, db)
    moved_to = _set_aside(files.folder.outbox, now)
    try:
        files.create()
        released = _record_reset(files, operator, now, moved_to)
    except BaseException:
        if moved_to is not None:
            with contextlib.suppress(OSError):
                moved_to.rename(files.folder.outbox)  # it replaces an empty folder, and nothing else
        raise
    return {"moved_to": str(moved_to) if moved_to is not None else None, "released": released}


def _record_reset(files: SessionFiles, operator: Operator, now: int, moved_to: Path | None) -> int:
    """Record the reset and give open attempts back. Return how many."""
    with files.inbound() as db, db.transaction():
        detail = operator.detail(moved_to=moved_to.name if moved_to is not None else None)
        record(db, SESSION, "session_reset", now, detail=detail)
        open_attempts = messages.open_attempts(db)
        for attempt in open_attempts:
            record(db, attempt.message_id, "released", now, incarnation=attempt.incarnation, detail=detail)
            messages.end_attempt(db, attempt.message_id, attempt.incarnation, now, "released")
    return len(open_attempts)


def _refuse_losses(files: SessionFiles, db: Reader) -> None:
    """Raise ResetWouldLoseError if out/ holds, or may hold, something that the host still needs."""
    waiting = deliveries.count_open(db, of_agent=True)
    if waiting:
        raise ResetWouldLoseError(f"{waiting} answers from out/ are not delivered yet.")
    try:
        files.recover()
        with files.outbound() as out:
            if out is not None and outbound.has_after(out, deliveries.cursor(db, out.file_id)):
                raise ResetWouldLoseError("out/ holds answers that the host has not recorded.")
            pending = {message.id: message for message in messages.pending(db, 0)}
            acks = outbound.acks_for(out, list(pending)) if out is not None else {}
    except (HostileFileError, ReadRaceError, ReadDeadlineError, FileBusyError) as error:
        hint = "Repeat with --discard: out/ is kept unchanged in the folder that is set aside."
        raise ResetWouldLoseError(f"the content of out/ is unknown: {error}", hint=hint) from error
    finished = [
        ack.message_id for ack in acks.values()
        if ack.status not in (AckStatus.PROCESSING, AckStatus.LATER) and not is_noted(pending[ack.message_id], ack)
    ]  # fmt: skip
    if finished:
        raise ResetWouldLoseError(
            f"the agent has finished {', '.join(finished[:3])}, but the host has not recorded that."
        )


def _set_aside(outbox: Path, now: int) -> Path | None:
    """Rename out/ to a name with the time, and return the new path. Return None if there is no out/. Raise StorageError."""
    if not os.path.lexists(outbox):
        return None
    stamp = file_stamp(now)
    for number in range(100):
        target = outbox.with_name(f"{outbox.name}.reset-{stamp}{f'-{number}' if number else ''}")
        if os.path.lexists(target):
            continue
        try:
            outbox.rename(target)
        except OSError as error:
            raise StorageError(f"{outbox} cannot be set aside: {error.strerror}.") from error
        return target
    raise StorageError(f"{outbox.parent} holds a hundred folders that were set aside.", hint="Remove old ones.")
