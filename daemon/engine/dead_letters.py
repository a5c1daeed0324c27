"""An operator's repairs of dead letters: requeue and drop, each one transaction in the session's own file.

Never sends anything and never writes outbound.db: what is requeued goes the usual way, and the sweep is told to look.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from daemon.core.clock import Clock
from daemon.core.errors import RowGoneError
from daemon.engine.sessions import Sessions
from daemon.store import deliveries, outbound
from daemon.store.dead_letters import (
    DeadAnswer,
    Operator,
    dead_letter,
    drop,
    requeue_answer,
    requeue_message,
)
from daemon.store.registry import SessionKey
from daemon.store.session_files import SessionFiles
from schema.connect import Reader


class DeadLetters:
    """Built once. `look` is told of a session that has work again, `given_up` of an answer that was dropped."""

    def __init__(
        self,
        sessions: Sessions,
        clock: Clock,
        look: Callable[[SessionKey], None],
        given_up: Callable[[SessionKey, str], None],
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._look = look
        self._given_up = given_up
        self._log = structlog.get_logger("operator")

    async def requeue(self, key: SessionKey, letter_id: str, operator: Operator) -> dict[str, Any]:
        """{id, kind: in|out, requeued_as}: what goes on its way again, and under which id.

        Raises UnknownSessionError, UnknownMessageError, NotDeadLetterError, RowGoneError or what opening the files
        raises; nothing has changed then.
        """
        session = await self._sessions.get(key)
        done = await self._sessions.change(session, partial(requeue, session.files, letter_id, operator))
        self._log.warning("dead_letter_requeued", agent=key.agent, session=key.session, message=letter_id,
                          requeued_as=done["requeued_as"], by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return done

    async def drop(self, key: SessionKey, letter_id: str, operator: Operator) -> dict[str, Any]:
        """{id, kind}. Raises UnknownSessionError, UnknownMessageError, NotDeadLetterError or what opening raises."""
        session = await self._sessions.get(key)
        now = self._clock.now_ms()
        kind = await session.call(partial(drop_one, session.files, letter_id, operator, now))
        self._log.warning("dead_letter_dropped", agent=key.agent, session=key.session, message=letter_id,
                          by=operator.name, reason=operator.reason)  # fmt: skip
        self._given_up(key, letter_id)
        self._look(key)  # an idle session's count is kept in central.db
        return {"id": letter_id, "kind": kind}


def requeue(files: SessionFiles, letter_id: str, operator: Operator, now: int) -> dict[str, Any]:
    """Requeue one dead letter. Synchronous; the caller holds the session's lock."""
    with files.inbound() as db:
        letter = dead_letter(db, letter_id)
        if isinstance(letter, DeadAnswer):
            _check_row(files, db, letter)
            with db.transaction():
                requeue_answer(db, letter, operator, now)
            return {"id": letter_id, "kind": "out", "requeued_as": letter_id}
        with db.transaction():
            again = requeue_message(db, letter, operator, now)
        return {"id": letter_id, "kind": "in", "requeued_as": again.id}


def _check_row(files: SessionFiles, db: Reader, letter: DeadAnswer) -> None:
    """Raise RowGoneError when there is nothing left to send."""
    identity = letter.message_out_id
    if letter.from_host:
        found = identity in deliveries.host_rows(db, [identity])
    else:
        with files.outbound() as out:
            found = out is not None and identity in outbound.rows_by_id(out, [identity])[0]
    if not found:
        raise RowGoneError(f"the row of {identity} is no longer in the session's outbound.db.")


def drop_one(files: SessionFiles, letter_id: str, operator: Operator, now: int) -> str:
    """Close one dead letter; in or out. Synchronous; the caller holds the session's lock."""
    with files.inbound() as db:
        letter = dead_letter(db, letter_id)
        with db.transaction():
            drop(db, letter, operator, now)
    return "out" if isinstance(letter, DeadAnswer) else "in"
