"""An operator's repairs while the daemon runs: every change in the session's own file, under its lock, with who and why.

Decides nothing about rows (`stale_plan.py`, `message_repair.py`, `session_repair.py`). Must never open a session's files
but through `Session.call`, nor put a session's out/ aside before its container's exit is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from daemon.core.clock import Clock
from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError
from daemon.core.run_state import Life
from daemon.core.stale_plan import Scope
from daemon.engine.sessions import Session, Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.maintenance import answer_repair, message_repair, session_repair, stale_sweep
from daemon.maintenance.session_deletion import Deletions
from daemon.maintenance.stale_reading import Surroundings
from daemon.store.dead_letters import Operator
from daemon.store.registry import SessionKey
from daemon.store.session_files import SessionFiles
from schema.errors import ClawbusError


class AnswerRepair(Protocol):
    """A repair of one answer (answer_repair.py)."""

    def __call__(
        self, files: SessionFiles, answer_id: str, operator: Operator, now: int, *, under_way: bool
    ) -> dict[str, Any]:
        """{id, was, attempts}."""
        ...


class Repairs:
    """Built once. `look` is told of a session that has work again, `given_up` of an answer that was dropped."""

    def __init__(
        self,
        sessions: Sessions,
        supervisor: Supervisor,
        clock: Clock,
        look: Callable[[SessionKey], None],
        given_up: Callable[[SessionKey, str], None],
    ) -> None:
        self.deletions = Deletions(sessions, supervisor, sessions.folder, clock)
        self._sessions = sessions
        self._supervisor = supervisor
        self._clock = clock
        self._look = look
        self._given_up = given_up
        self._log = structlog.get_logger("operator")

    # --- the stale sweep

    async def stale_preview(self, key: SessionKey, scope: Scope) -> dict[str, Any]:
        """Return {runs, left, running} of one session. Raise UnknownSessionError or what opening the files raises."""
        session = await self._sessions.get(key)
        async with session.lock:
            around = await self._around(session)
            work = partial(stale_sweep.preview_report, session.files, key, around, scope)
            return await session.call_locked(work)

    async def stale_apply(
        self, key: SessionKey, scope: Scope, operator: Operator, expected: Sequence[str] | None
    ) -> dict[str, Any]:
        """Swept's report. Raises what `stale_sweep.apply` raises."""
        session = await self._sessions.get(key)
        async with session.lock:
            around = await self._around(session)
            await self._sessions.activate(session)  # before the work is written: a notice to a sender may be
            work = partial(stale_sweep.apply, session.files, key, around, scope, operator, expected=expected)
            swept = await session.call_locked(work)
        self._log.warning("stale_swept", agent=key.agent, session=key.session, runs=len(swept.plan.endings),
                          backup=swept.backup.path.name if swept.backup is not None else None,
                          by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return swept.report()

    async def stale_undo(self, key: SessionKey, backup: str, operator: Operator) -> dict[str, Any]:
        """Put a sweep's backup back. Raises what `stale_sweep.undo` raises."""
        session = await self._sessions.get(key)
        async with session.lock:
            await self._sessions.activate(session)
            now = self._clock.now_ms()

            def work() -> dict[str, Any]:
                found = stale_sweep.found_backup(session.files, backup)
                return stale_sweep.undo(session.files, key, found, operator, now)

            done = await session.call_locked(work)
        self._log.warning("stale_sweep_undone", agent=key.agent, session=key.session, backup=backup,
                          by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return done

    async def _around(self, session: Session) -> Surroundings:
        """With the session's lock held no container of it can start: the supervisor passes through it first."""
        ended = await self._sessions.central(lambda registry: registry.ended_incarnations(session.key))
        slot = self._supervisor.slot(session.key)
        knows = self._supervisor.knows

        def life(incarnation: str) -> Life:
            if slot is not None and slot.incarnation == incarnation:
                return Life.ALIVE
            if incarnation in ended:
                return Life.GONE
            return Life.GONE if knows else Life.UNKNOWN

        synced = session.quarantined is None
        return Surroundings(
            self._clock.now_ms(), life, alive=self._supervisor.may_run(session.key), synced=synced, gone_at=ended
        )

    # --- messages

    async def cancel(self, key: SessionKey, message_id: str, operator: Operator, *, kill: bool) -> dict[str, Any]:
        """See message_repair.cancel. With `kill` the container that works on it is ended, too."""
        session = await self._sessions.get(key)

        def work(now: int) -> dict[str, Any]:
            slot = self._supervisor.slot(key)
            live = slot.incarnation if slot is not None else None
            return message_repair.cancel(session.files, message_id, operator, now, live=live, although_running=kill)

        done = await self._sessions.change(session, work)
        self._log.warning("message_cancelled", agent=key.agent, session=key.session, message=message_id,
                          by=operator.name, reason=operator.reason)  # fmt: skip
        try:
            if done["running"]:
                await self._supervisor.end(key, "operator_kill", graceful=False)
        except NotConfirmedError as error:
            raise NotConfirmedError(
                f"{message_id} is cancelled, but its container still runs: {error}",
                hint="The daemon goes on ending it. Repeat the command to wait for that; `docker ps` shows whether"
                " the runtime answers.",
            ) from error
        finally:
            self._look(key)
        return done

    async def retry(self, key: SessionKey, message_id: str, operator: Operator) -> dict[str, Any]:
        """See message_repair.retry."""
        session = await self._sessions.get(key)
        done = await self._sessions.change(
            session, lambda now: message_repair.retry(session.files, message_id, operator, now)
        )
        self._log.warning("message_retried", agent=key.agent, session=key.session, message=message_id,
                          retried_as=done["retried_as"], by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return done

    # --- answers

    async def retry_answer(self, key: SessionKey, answer_id: str, operator: Operator) -> dict[str, Any]:
        """See answer_repair.retry_answer."""
        return await self._answer(key, answer_id, operator, answer_repair.retry_answer, "delivery_retried")

    async def drop_answer(self, key: SessionKey, answer_id: str, operator: Operator) -> dict[str, Any]:
        """See answer_repair.drop_answer."""
        done = await self._answer(key, answer_id, operator, answer_repair.drop_answer, "delivery_dropped")
        self._given_up(key, answer_id)
        return done

    async def _answer(
        self, key: SessionKey, answer_id: str, operator: Operator, work: AnswerRepair, event: str
    ) -> dict[str, Any]:
        session = await self._sessions.get(key)

        def change(now: int) -> dict[str, Any]:
            under_way = any(answer_id in ids for ids in tuple(session.sending.values()))
            return work(session.files, answer_id, operator, now, under_way=under_way)

        done = await self._sessions.change(session, change)
        self._log.warning(event, agent=key.agent, session=key.session, message_out=answer_id, was=done["was"],
                          attempts=done["attempts"], by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return done

    # --- sessions

    async def quarantine(self, key: SessionKey, operator: Operator) -> dict[str, Any]:
        """Out of service until it is released; its container is ended, its messages are kept."""
        session = await self._sessions.get(key)
        was, now = session.quarantined, self._clock.now_ms()
        reason = f"by {operator.name}: {operator.reason or 'no reason given'}"
        if was is None:
            await self._sessions.central(lambda registry: registry.quarantine(key, reason, now))
            session.quarantined = reason
            self._log.error("session_quarantined", agent=key.agent, session=key.session, reason=reason)
        noted = await self.try_note(key, "session_quarantined", operator)
        slot = self._supervisor.begin_end(key, "quarantine", graceful=False)
        return {"quarantined": was is None, "was": was, "ending": slot is not None, "noted": noted}

    async def reset(self, key: SessionKey, operator: Operator, *, discard: bool) -> dict[str, Any]:
        """Its container ended, its out/ put aside, out of quarantine: it begins anew with what waits.

        Raises NotConfirmedError, ResetWouldLoseError or StorageError; its files are unchanged then.
        """
        session = await self._sessions.get(key)
        if not self._supervisor.knows:
            raise RuntimeUnavailableError("whether a container of the session lives cannot be told now.")
        was, now = session.quarantined, self._clock.now_ms()
        await self._supervisor.end(key, "operator_reset", graceful=False)  # and all that its exit entails
        # From here on nothing is spawned for it; what was spawned since the exit is ended again.
        session.quarantined = was or f"is being reset by {operator.name}"
        try:
            await self._supervisor.end(key, "operator_reset", graceful=False)
            async with session.lock:
                await self._sessions.activate(session)
                work = partial(session_repair.reset, session.files, operator, now, discard=discard)
                done = await session.call_locked(work)
            await self._sessions.central(lambda registry: registry.release(key))
        except BaseException:
            session.quarantined = was
            self._look(key)
            raise
        session.quarantined, session.active = None, True
        session.strikes.clear()
        self._log.warning("session_reset", agent=key.agent, session=key.session, was=was, moved_to=done["moved_to"],
                          by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return {**done, "was": was}

    async def try_note(self, key: SessionKey, event: str, operator: Operator, **more: object) -> bool:
        """Who did what to a session, and why, into its history. False, and a line in the log, where that cannot be."""
        now = self._clock.now_ms()
        try:
            session = await self._sessions.get(key)
            await session.call(partial(session_repair.note, session.files, event, operator, now, **more))
        except ClawbusError as error:
            self._log.warning("repair_not_noted", agent=key.agent, session=key.session, what=event, code=error.code,
                              error=str(error), by=operator.name, reason=operator.reason)  # fmt: skip
            return False
        return True
