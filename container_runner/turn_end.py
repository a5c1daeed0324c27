"""Commits how a turn ended: its answer, its failure, or that it is tried again later, in one transaction with the acks.

Uses the store and the log only. Runs no provider and claims nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import anyio

from container_runner.file_work import FileWork, GraceOverError, run_here
from container_runner.logs import Logger
from container_runner.providers.checked import is_quiet
from container_runner.providers.protocol import Answer, OutMessage, TurnMessage
from container_runner.replies import Plan, failure_replies, plan_replies
from container_runner.shared.errors import (
    AnswerInvalidError,
    AnswerTooLargeError,
    CannotStartError,
    TurnDeferredError,
    TurnFailedError,
    TurnStoppedError,
    UnknownDestinationError,
)
from container_runner.shared.sent_files import FileSource
from container_runner.stopping import Stopping
from container_runner.store import Batch, OutboundRow, Store
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.json_text import whole_text
from schema.rows import AckStatus, RunnerSettings, ToolCall, TurnNote, TurnUsage

_MAX_REASON: Final = 1000
# Of all keys and values. Each turn reads them, and without a limit the file would grow until the session is quarantined.
MAX_STATE_BYTES: Final = 16 * 1024**2
_FILE_REFUSED: Final = "FILE_REFUSED"
_GIVE_BACK_S: Final = 10.0
_LAST_TRIES_S: Final = (0.1, 0.3, 0.6)

Outcome = Answer | TurnFailedError | TurnDeferredError


@frozen
class EndedTurn:
    """What a turn was about, once its provider has ended.

    `messages` are the batch's and the follow-ups that the provider took. `released` are the ids of follow-ups that were
    claimed and not taken: their claims are released with the commit. `log` is bound to the turn's messages.
    """

    batch: Batch
    messages: tuple[TurnMessage, ...]
    released: tuple[str, ...]
    log: Logger
    tools: tuple[ToolCall, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The ids of `messages`."""
        return [message.id for message in self.messages]


class TurnEnd:
    """Commits the end of each turn of one runner."""

    def __init__(
        self, settings: RunnerSettings, store: Store, files: FileWork, stopping: Stopping, source: FileSource
    ) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._stopping = stopping
        self._source = source
        # Messages whose shared turn failed: each is tried again alone, so that only the bad one fails.
        self._solo: set[str] = set()

    @property
    def solo(self) -> frozenset[str]:
        """The ids of messages that must not share their next turn with another trigger."""
        return frozenset(self._solo)

    async def commit(self, outcome: Outcome, turn: EndedTurn) -> str:
        """Commit the turn's end, retrying for as long as the file cannot be written. Return the messages' new status.

        Instead of an ack's status, return `split` when the messages are to be tried again one by one, `abandoned` when
        their claims were released because the runner is being stopped, and `cancelled` when the host has cancelled the messages.
        """
        if isinstance(outcome, TurnStoppedError):
            return await self._release(turn, "cancelled", _usage(outcome, turn))
        if isinstance(outcome, TurnDeferredError):
            if await self._defer(outcome, turn):
                return AckStatus.LATER.value
            outcome = TurnFailedError(f"{outcome} This host cannot give it again later.")
        if isinstance(outcome, Answer):
            try:
                outcome = await self._files.until_done("files_unreadable", partial(_with_files, outcome, self._source))
            except GraceOverError:
                await self.abandon(turn.log)
                return "abandoned"
        plan, failure = self._plan(outcome, turn)
        if failure is not None and await self._stopping.has_pending_request():
            # The container is being stopped, which may have caused the failure. The message must not fail for that.
            turn.log.warning("turn_cut", code=failure.code, error=str(failure), detail=failure.detail)
            await self.abandon(turn.log)
            return "abandoned"
        if failure is not None:
            turn.log.warning("turn_failed", code=failure.code, error=str(failure), detail=failure.detail)
            if _is_shared(turn.messages):
                return await self._split(turn, _usage(outcome, turn))
        return await self._finish(outcome, plan, failure, turn)

    async def give_back(self, log: Logger, why: CannotStartError) -> None:
        """Release the claims of a turn that could not start. Use this thread: it may be impossible to start another one."""
        log.error("turn_given_back", code=why.code, error=str(why), hint=why.hint)
        with suppress(GraceOverError), anyio.move_on_after(_GIVE_BACK_S):
            await self._files.until_done("release_failed", self._store.release_all)

    async def abandon(self, log: Logger) -> None:
        """Release the claims, so that the next incarnation can claim the messages and no try is charged."""
        log.warning("turn_abandoned", grace_s=self._settings.grace_s)
        for pause_s in _LAST_TRIES_S:  # a claim that is not released costs its message a try
            try:
                await run_here(self._store.release_all)  # it may be impossible to start another thread
            except ClawbusError as error:
                log.warning("release_failed", code=error.code, error=str(error))
                await anyio.sleep(pause_s)
            else:
                return

    async def _finish(self, outcome: Outcome, plan: Plan, failure: TurnFailedError | None, turn: EndedTurn) -> str:
        status = AckStatus.COMPLETED if failure is None else AckStatus.FAILED
        rows = self._store.outbound_rows(plan.replies)
        finish = partial(
            self._store.finish,
            rows,
            turn.ids,
            status,
            released=turn.released,
            state=_state(outcome) if failure is None else None,
            usage=_usage(outcome, turn),
            note=_note(outcome) if failure is None else TurnNote(failure.code, str(failure)),
            triggers=[message.id for message in turn.messages if message.trigger],
        )
        try:
            for row in rows:
                await self._place(row)
            kept = await self._files.until_done("commit_failed", finish)
        except GraceOverError:
            await self.abandon(turn.log)
            return "abandoned"
        self._solo.difference_update(turn.ids)
        return status.value if kept else "cancelled"

    async def _place(self, row: OutboundRow) -> None:
        """Put a row's files into place. Only once: after a commit that may have succeeded, the host may be reading them."""
        if row.reply.files:
            await self._files.until_done("files_failed", partial(self._store.outbox.place, row.id, row.reply))

    async def _split(self, turn: EndedTurn, usage: tuple[str, TurnUsage] | None) -> str:
        """Release a failed turn's messages, so that each trigger is tried alone: one bad message must not fail the others.

        If the runner dies in between, the list of messages to try alone is lost; the next shared turn fails and splits again.
        """
        self._solo.update(message.id for message in turn.messages if message.trigger)
        turn.log.warning("turn_split", triggers=sum(message.trigger for message in turn.messages))
        return await self._release(turn, "split", usage)

    async def _release(self, turn: EndedTurn, word: str, usage: tuple[str, TurnUsage] | None) -> str:
        """Release the turn's claims and return `word`. What the host has cancelled is not claimed again; the rest is."""
        give_back = partial(self._store.give_back, [*turn.ids, *turn.released], usage)
        try:
            await self._files.until_done("release_failed", give_back)
        except GraceOverError:
            await self.abandon(turn.log)
            return "abandoned"
        return word

    async def _defer(self, outcome: TurnDeferredError, turn: EndedTurn) -> bool:
        """Ask the host to try the messages later. Return False when it does not support that."""
        retry_at = None if outcome.after_s is None else self._store.now_ms() + int(outcome.after_s * 1000)
        reason = None if outcome.reason is None else outcome.reason[:_MAX_REASON]
        turn.log.warning("turn_deferred", after_s=outcome.after_s, reason=reason)
        defer = partial(self._store.defer, turn.ids, retry_at=retry_at, reason=reason, released=turn.released)
        try:
            done = await self._files.until_done("commit_failed", defer)
        except GraceOverError:
            await self.abandon(turn.log)
            return True
        self._solo.difference_update(turn.ids)
        return done

    def _plan(self, outcome: Answer | TurnFailedError, turn: EndedTurn) -> tuple[Plan, TurnFailedError | None]:
        """Return the rows to write, and why the turn failed (None: it did not). A failure's rows are error answers."""
        if isinstance(outcome, TurnFailedError):
            return self._failure_replies(outcome, turn), outcome
        try:
            plan = plan_replies(outcome.messages, turn.messages, turn.batch.routing, turn.batch.destinations)
        except AnswerInvalidError as failure:
            return self._failure_replies(failure, turn), failure
        if outcome.ignored:
            turn.log.warning("output_ignored", types=list(outcome.ignored))
        if outcome.note is not None:
            event = "files_refused" if outcome.note.code == _FILE_REFUSED else "nothing_sent"
            # Normal: the check printed nothing, so there is nothing to say.
            log = turn.log.info if is_quiet(outcome) else turn.log.warning
            log(event, code=outcome.note.code, reason=outcome.note.message)
        for name in plan.unknown:
            turn.log.warning("output_dropped", reason="unknown destination", destination=name[:200])
        failure = _refusal(plan, self._settings.max_answer_bytes) or _refused_state(turn.batch.state, outcome.state)
        return (plan, None) if failure is None else (self._failure_replies(failure, turn), failure)

    def _failure_replies(self, failure: TurnFailedError, turn: EndedTurn) -> Plan:
        open_detail = self._settings.error_detail == "sender"
        return failure_replies(failure, turn.messages, turn.batch.routing, open_detail=open_detail)


def _usage(outcome: Outcome, turn: EndedTurn) -> tuple[str, TurnUsage] | None:
    """Return what the turn used, under its last trigger."""
    if isinstance(outcome, TurnDeferredError) or (outcome.usage is None and not turn.tools):
        return None
    last = next(message.id for message in reversed(turn.messages) if message.trigger)
    return last, replace(outcome.usage or TurnUsage(), tools=turn.tools)


def _with_files(answer: Answer, source: FileSource) -> Answer:
    """Return the answer with the files that its messages name, and a note about those that are refused."""
    messages: list[OutMessage] = []
    refused: list[str] = []
    for message in answer.messages:
        content, attached, left = source.attach(message.content, message.attached)
        messages.append(replace(message, content=content, attached=attached))
        refused += [f"{one.path} {one.detail}" for one in left]
    if not refused:
        return replace(answer, messages=tuple(messages))
    note = answer.note or TurnNote(_FILE_REFUSED, "Not sent: " + "; ".join(refused))
    return replace(answer, messages=tuple(messages), note=note)


def _state(outcome: Outcome) -> dict[str, str | None] | None:
    if not isinstance(outcome, Answer):
        return None
    return {whole_text(key): None if value is None else whole_text(value) for key, value in outcome.state.items()}


def _note(outcome: Outcome) -> TurnNote | None:
    return outcome.note if isinstance(outcome, Answer) else None


def _is_shared(messages: Sequence[TurnMessage]) -> bool:
    """Return whether the turn has more than one trigger."""
    return sum(message.trigger for message in messages) > 1


def _refused_state(before: Mapping[str, str], changes: Mapping[str, str | None]) -> TurnFailedError | None:
    """Return why the session's state may not grow by these changes, or None if it may."""
    after = {key: value for key, value in {**before, **changes}.items() if value is not None}
    size = _size(after)
    if size <= MAX_STATE_BYTES or size <= _size(before):
        return None
    return AnswerTooLargeError(
        f"The session's state would have {size} bytes in {len(after)} keys; the most is {MAX_STATE_BYTES}."
        " A `value` of null removes a key."
    )


def _size(state: Mapping[str, str]) -> int:
    return sum(len(part.encode("utf-8", "replace")) for pair in state.items() for part in pair)


def _refusal(plan: Plan, max_bytes: int) -> TurnFailedError | None:
    """Return why a plan cannot be sent: no row of it has a known destination, or a row is too large; None if it can."""
    if plan.unknown and not plan.replies:
        return UnknownDestinationError(
            f"The answer went to {plan.unknown[0][:200]!r}, which this agent may not send to."
        )
    if any(len(reply.content.encode()) > max_bytes for reply in plan.replies):
        return AnswerTooLargeError(f"A message of the answer has more than {max_bytes} bytes as JSON.")
    return None
