"""Carries out an operator's verbs in a running daemon: each change under the session's lock, with who and why.

It decides nothing about rows (`row_verbs.py`, `stale_plan.py`, `session_repair.py` do). It opens a session's files only through
`Session.call`, and never puts a session's out/ aside before its container's exit is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final
from weakref import WeakValueDictionary

import anyio
import structlog

from daemon.core.agent_verbs import RefillBudget
from daemon.core.clock import Clock
from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError, UnknownAgentError
from daemon.core.events import AnswerDropped
from daemon.core.message_verbs import (
    AnswerQuestion,
    CancelMessage,
    DropAnswer,
    DropDead,
    RequeueDead,
    RetryAnswer,
    RetryMessage,
)
from daemon.core.run_evidence import RuntimeContext
from daemon.core.schedule_verbs import CancelSchedule, PauseSchedule, PutSchedule, ResumeSchedule, RunSchedule
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import (
    ApplyStale,
    DeleteSession,
    KillSession,
    PreviewStale,
    QuarantineSession,
    ReleaseSession,
    ResetSession,
    StopSession,
    UndoStale,
)
from daemon.core.stale_plan import Scope
from daemon.core.verb import AnyVerb, HostVerb, RowVerb
from daemon.engine.budgets import Budgets
from daemon.engine.events import Events
from daemon.engine.router import Router
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.maintenance import host_verbs, session_repair, stale_sweep
from daemon.maintenance.host_verbs import Configured
from daemon.maintenance.row_verbs import change_row, check_schedule, operator_of
from daemon.maintenance.session_deletion import Deletions
from daemon.store.dead_letters import Operator
from schema.errors import ClawbusError

_NOTE_S: Final = 2.0
# Event of the log, and the fields of the verb's result that go with it.
_EVENTS: Final[Mapping[type[RowVerb], tuple[str, tuple[str, ...]]]] = MappingProxyType(
    {
        RequeueDead: ("dead_letter_requeued", ("requeued_as",)),
        DropDead: ("dead_letter_dropped", ()),
        CancelMessage: ("message_cancelled", ()),
        RetryMessage: ("message_retried", ("retried_as",)),
        RetryAnswer: ("delivery_retried", ("was", "attempts")),
        DropAnswer: ("delivery_dropped", ("was", "attempts")),
        AnswerQuestion: ("question_answered", ("outcome",)),
        PutSchedule: ("schedule_set", ("was", "next_at")),
        PauseSchedule: ("schedule_paused", ("was",)),
        ResumeSchedule: ("schedule_resumed", ("was", "next_at")),
        CancelSchedule: ("schedule_removed", ("was",)),
        RunSchedule: ("schedule_run", ("message_id",)),
    }
)
# What the verb's id names in the log; of every other verb a message.
_ROWS: Final[Mapping[type[RowVerb], str]] = MappingProxyType(
    {
        RetryAnswer: "message_out",
        DropAnswer: "message_out",
        AnswerQuestion: "question",
        **dict.fromkeys((PutSchedule, PauseSchedule, ResumeSchedule, CancelSchedule, RunSchedule), "schedule"),
    }
)


class DaemonExecutor:
    """Executes verbs in the daemon. `look` is called for a session that has work again."""

    def __init__(
        self,
        sessions: Sessions,
        supervisor: Supervisor,
        clock: Clock,
        look: Callable[[SessionKey], None],
        events: Events,
        router: Router,
        budgets: Budgets,
    ) -> None:
        self.router = router
        self.budgets = budgets
        self.deletions = Deletions(sessions, supervisor, sessions.folder, clock)
        self._sessions = sessions
        self._supervisor = supervisor
        self._clock = clock
        self._look = look
        self._events = events
        # Verbs that take a session out of service or put it back wait for each other: each acts on what the one before left.
        self._in_turn: WeakValueDictionary[SessionKey, anyio.Lock] = WeakValueDictionary()
        self._log = structlog.get_logger("operator")

    async def execute(self, verb: AnyVerb) -> dict[str, Any]:
        """Carry out one verb and return its result. Raise UnknownSessionError and what the verb's own part raises."""
        if isinstance(verb, HostVerb):
            return await self._change_host(verb)
        key, operator = SessionKey(verb.agent, verb.session), operator_of(verb)
        match verb:
            case RowVerb():
                return await self._change_row(key, verb, operator)
            case StopSession():
                return await self._stop(key)
            case KillSession():
                return await self._kill(key, operator)
            case ReleaseSession() | QuarantineSession() | ResetSession() | DeleteSession():
                async with self._in_turn.setdefault(key, anyio.Lock()):
                    return await self._change_service(key, verb, operator)
            case ApplyStale():
                return await self._stale_apply(key, verb.scope, operator, verb.expected)
            case PreviewStale():
                return await self._stale_preview(key, verb.scope)
            case UndoStale():
                return await self._stale_undo(key, verb.backup, operator)
            case _:
                raise NotImplementedError(type(verb).__name__)

    # --- the whole installation

    async def _change_service(
        self,
        key: SessionKey,
        verb: ReleaseSession | QuarantineSession | ResetSession | DeleteSession,
        operator: Operator,
    ) -> dict[str, Any]:
        match verb:
            case ReleaseSession():
                return await self._release(key, operator)
            case QuarantineSession():
                return await self._quarantine(key, operator)
            case ResetSession():
                return await self._reset(key, operator, discard=verb.discard)
            case DeleteSession():
                return await self.deletions.delete(key, operator, force=verb.force)

    async def _change_host(self, verb: HostVerb) -> dict[str, Any]:
        router, now = self.router, self._clock.now_ms()
        configured = Configured(router.configured, frozenset(router.agents), router.channels, self.budgets.day)
        if isinstance(verb, RefillBudget):
            await self.budgets.flush()
        done = await self._sessions.central(
            lambda registry: registry.with_file(lambda db: host_verbs.execute(db, verb, configured, now))
        )
        await router.load()
        if isinstance(verb, RefillBudget):
            await self.budgets.load()
            self.budgets.reconsider()
        self._log.warning("host_changed", verb=type(verb).__name__, what=done.get("name"), by=verb.by,
                          reason=verb.reason)  # fmt: skip
        return done

    # --- one row

    async def _change_row(self, key: SessionKey, verb: RowVerb, operator: Operator) -> dict[str, Any]:
        if isinstance(verb, PutSchedule):
            if key.agent not in self.router.agents:
                raise UnknownAgentError(f"there is no agent {key.agent!r}.")
            check_schedule(verb, self.router.channels, self._clock.now_ms())
            session = await self._sessions.create(key)
        else:
            session = await self._sessions.get(key)
        if isinstance(verb, CancelMessage):
            # Cancelling a message that a container works on requires that the container can be ended.
            self._check_known(key)

        def is_sent_now(answer_id: str) -> bool:
            return any(answer_id in ids for ids in tuple(session.sending.values()))

        def work(now: int) -> dict[str, Any]:
            slot = self._supervisor.slot(key)
            live = slot.incarnation if slot is not None else None
            return change_row(verb, session.files, now, live=live, is_sent_now=is_sent_now)

        done = await self._sessions.change(session, work)
        event, fields = _EVENTS[type(verb)]
        row = _ROWS.get(type(verb), "message")
        more = {row: verb.id, **{name: done[name] for name in fields}}
        self._log.warning(event, agent=key.agent, session=key.session, **more, by=operator.name, reason=operator.reason)
        if isinstance(verb, DropDead | DropAnswer):
            self._events.publish(AnswerDropped(self._clock.now_ms(), key.agent, key.session, verb.id))
        try:
            if isinstance(verb, CancelMessage) and verb.kill and done["running"]:
                await self._end_cancelled(key, verb.id)
        finally:
            self._look(key)  # it has work again, or its count of dead letters has changed
        return done

    async def _end_cancelled(self, key: SessionKey, message_id: str) -> None:
        try:
            await self._supervisor.end(key, "operator_kill", graceful=False)
        except NotConfirmedError as error:
            raise NotConfirmedError(
                f"{message_id} is cancelled, but its container still runs: {error}",
                hint="The daemon keeps trying to end it. Repeat the command to wait for that; `docker ps` shows whether"
                " the runtime answers.",
            ) from error

    # --- the stale sweep

    async def _stale_preview(self, key: SessionKey, scope: Scope) -> dict[str, Any]:
        """Return {runs, left, running} of one session. Raise UnknownSessionError or the errors of opening the files."""
        session = await self._sessions.get(key)
        async with session.lock:
            context = await self._context(session)
            work = partial(stale_sweep.preview_report, session.files, key, context, scope)
            return await session.call_locked(work)

    async def _stale_apply(
        self, key: SessionKey, scope: Scope, operator: Operator, expected: Sequence[str] | None
    ) -> dict[str, Any]:
        """Apply a stale sweep to one session and return its report. Raise as `stale_sweep.apply` does."""
        session = await self._sessions.get(key)
        async with session.lock:
            context = await self._context(session)
            await self._sessions.activate(session)  # before the work is written: a notice to a sender may be
            work = partial(stale_sweep.apply, session.files, key, context, scope, operator, expected=expected)
            swept = await session.call_locked(work)
        self._log.warning("stale_swept", agent=key.agent, session=key.session, runs=len(swept.plan.endings),
                          backup=swept.backup.path.name if swept.backup is not None else None,
                          by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return swept.report()

    async def _stale_undo(self, key: SessionKey, backup: str, operator: Operator) -> dict[str, Any]:
        """Restore a sweep's backup. Raise as `stale_sweep.undo` does."""
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

    async def _context(self, session: Session) -> RuntimeContext:
        """Return what is known about the session's containers.

        The caller holds the session's lock, so none can start meanwhile.
        """
        ended = await self._sessions.central(lambda registry: registry.ended_incarnations(session.key))
        slot = self._supervisor.slot(session.key)
        return RuntimeContext(
            self._clock.now_ms(),
            synced=session.quarantined is None,
            alive=frozenset() if slot is None else frozenset({slot.incarnation}),
            complete=self._supervisor.knows,
            ended=ended,
            occupied=self._supervisor.may_run(session.key),
        )

    def _check_known(self, key: SessionKey) -> None:
        """Raise RuntimeUnavailableError while it is unknown whether a container of the session runs.

        After a start with the runtime away, a session without a slot may well have one: "no container" would be a guess.
        """
        if self._supervisor.slot(key) is None and not self._supervisor.knows:
            raise RuntimeUnavailableError(
                f"whether a container of session {key} runs cannot be determined now.",
                hint="`clawbus doctor` says what to do about the runtime; then repeat the command.",
            )

    # --- sessions

    async def _stop(self, key: SessionKey) -> dict[str, Any]:
        found = await self._sessions.get(key)
        self._check_known(key)
        slot = self._supervisor.begin_end(found.key, "operator_stop", graceful=True)
        incarnation = slot.incarnation if slot is not None else None
        self._log.info("operator_stop", agent=key.agent, session=key.session, incarnation=incarnation)
        return {"stopping": slot is not None, "incarnation": incarnation}

    async def _kill(self, key: SessionKey, operator: Operator) -> dict[str, Any]:
        found = await self._sessions.get(key)
        self._log.warning(
            "operator_kill", agent=key.agent, session=key.session, by=operator.name, reason=operator.reason
        )
        if self._supervisor.slot(found.key) is not None:
            # Before the kill, while the attempts that it ends are open; a file that cannot be written stops no kill.
            with anyio.move_on_after(_NOTE_S):
                await self._try_note(key, "session_killed", operator)
        slot = await self._supervisor.end(key, "operator_kill", graceful=False)
        if slot is None:
            self._check_known(key)
        return {
            "killed": slot is not None,
            "incarnation": slot.incarnation if slot is not None else None,
            "exit_code": slot.exit_code if slot is not None else None,
        }

    async def _release(self, key: SessionKey, operator: Operator) -> dict[str, Any]:
        """Release the session and sweep it at once. One whose folder is gone gets a new one."""
        found = await self._sessions.get(key)
        if found.quarantined is not None and not found.files.folder.root.exists():
            await found.call(found.files.create)
            self._log.warning("session_made_anew", agent=key.agent, session=key.session)
        was = found.quarantined
        await self._sessions.central(lambda registry: registry.release(key))
        found.quarantined, found.active = None, True
        found.consecutive_timeouts.clear()
        self._sessions.troubles.forget(key)
        self._log.info("operator_release", agent=key.agent, session=key.session, was=was, by=operator.name,
                       reason=operator.reason)  # fmt: skip
        if was is not None:
            await self._try_note(key, "session_released", operator, was=was)
        self._look(key)
        return {"released": was is not None, "was": was}

    async def _quarantine(self, key: SessionKey, operator: Operator) -> dict[str, Any]:
        """Take a session out of service until it is released: end its container, keep its messages."""
        session = await self._sessions.get(key)
        was, now = session.quarantined, self._clock.now_ms()
        reason = session_repair.quarantine_reason(operator)
        if was is None:
            await self._sessions.central(lambda registry: registry.quarantine(key, reason, now))
            session.quarantined = reason
            self._log.error("session_quarantined", agent=key.agent, session=key.session, reason=reason)
        noted = await self._try_note(key, "session_quarantined", operator)
        slot = self._supervisor.begin_end(key, "quarantine", graceful=False)
        return {"quarantined": was is None, "was": was, "ending": slot is not None, "noted": noted}

    async def _reset(self, key: SessionKey, operator: Operator, *, discard: bool) -> dict[str, Any]:
        """End the session's container, put its out/ aside, release it. It continues with the waiting messages.

        Raise NotConfirmedError, ResetWouldLoseError or StorageError; its files are unchanged then.
        """
        session = await self._sessions.get(key)
        self._check_known(key)
        was, now = session.quarantined, self._clock.now_ms()
        await self._supervisor.end(key, "operator_reset", graceful=False)  # and all that its exit entails
        # From here on nothing is spawned for it; what was spawned since the exit is ended again.
        session.quarantined = meanwhile = was or f"is being reset by {operator.name}"
        try:
            await self._supervisor.end(key, "operator_reset", graceful=False)
            async with session.lock:
                await self._sessions.activate(session)
                work = partial(session_repair.reset, session.files, operator, now, discard=discard)
                done = await session.call_locked(work)
            await self._sessions.central(lambda registry: registry.release(key))
        except BaseException:
            if session.quarantined == meanwhile:  # the sweep may have put it aside for a reason of its own
                session.quarantined = was
            self._look(key)
            raise
        session.quarantined, session.active = None, True
        session.consecutive_timeouts.clear()
        self._log.warning("session_reset", agent=key.agent, session=key.session, was=was, moved_to=done["moved_to"],
                          by=operator.name, reason=operator.reason)  # fmt: skip
        self._look(key)
        return {**done, "was": was}

    async def _try_note(self, key: SessionKey, event: str, operator: Operator, **more: object) -> bool:
        """Write who did what to a session, and why, to its history. If that fails, log it and return False."""
        now = self._clock.now_ms()
        try:
            session = await self._sessions.get(key)
            await session.call(partial(session_repair.note, session.files, event, operator, now, **more))
        except ClawbusError as error:
            self._log.warning("repair_not_noted", agent=key.agent, session=key.session, what=event, code=error.code,
                              error=str(error), by=operator.name, reason=operator.reason)  # fmt: skip
            return False
        return True
