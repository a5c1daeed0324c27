"""The runner's loop: poll, claim, run a turn, commit, repeat. Decides when to stop and how to handle failures.

It never answers twice, never acks a message that was not answered, and never exits because of an error of the provider or
of a file that can pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint
from structlog.typing import FilteringBoundLogger

from container_runner.asking import Asking
from container_runner.heartbeat import Heartbeat
from container_runner.live import TurnProgress
from container_runner.providers.protocol import Answer, DeclaredTimeout, Provider, Turn, TurnMessage
from container_runner.replies import Plan, failure_replies, plan_replies
from container_runner.retention import Retention
from container_runner.saying import Saying
from container_runner.shared.children import Children
from container_runner.shared.errors import (
    AnswerInvalidError,
    AnswerTooLargeError,
    CannotStartError,
    ClaimLostError,
    InboundUnreadableError,
    ProviderCrashedError,
    TurnDeferredError,
    TurnFailedError,
    UnknownDestinationError,
)
from container_runner.store import Batch, Store
from container_runner.watch import InboundWatch
from container_runner.words import Words
from schema.errors import ClawbusError, SchemaTooNewError
from schema.json_text import whole_text
from schema.os_faults import as_host_error, passes, typed_host_errors
from schema.rows import AckStatus, RunnerSettings, TurnNote, TurnUsage

_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_MAX_REASON: Final = 1000
_PRUNE_RETRY_S: Final = 10.0
_GIVE_BACK_S: Final = 10.0
_SIGNAL_STEPS: Final = 10
_LAST_TRIES_S: Final = (0.1, 0.3, 0.6)
_BETWEEN_STEPS_S: Final = 0.05  # a pause for the host, which polls after every change

_T = TypeVar("_T")


async def run_here(work: Callable[[], _T]) -> _T:
    """Run file work on the event loop's own thread. Use it only while no turn runs: it blocks the loop.

    Switching to a worker thread and back costs half as much as a durable commit, and nothing else needs the loop then.
    """
    await checkpoint()  # let signals be handled even during a long backlog
    with typed_host_errors("the files cannot be used"):
        return work()


async def run_sync(work: Callable[..., _T], *arguments: object) -> _T:
    """Run file work in a worker thread, while a turn runs. Raise HostTroubleError when no thread can be started."""
    with typed_host_errors("the files cannot be used"):
        return await to_thread.run_sync(work, *arguments)


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent and session that this runner works for, and its container's incarnation."""

    agent: str
    session: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Maintenance between turns.

    `retention` prunes outbound.db. `children` ends the processes that a turn left running; None leaves them alone.
    `used_up` returns the name of a full folder of the container; it is None when the container's folders are not its own.
    `words` keeps what the agent says besides its answers; None drops it.
    """

    retention: Retention | None = None
    children: Children | None = None
    used_up: Callable[[], str | None] | None = None
    words: Words | None = None


class Runner:
    """Runs one incarnation. Call `run()` in one task; `stop()` may be called from another."""

    def __init__(
        self,
        settings: RunnerSettings,
        identity: Identity,
        store: Store,
        provider: Provider,
        heartbeat: Heartbeat,
        watch: InboundWatch,
        log: FilteringBoundLogger,
        upkeep: Upkeep = Upkeep(),
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._store = store
        self._provider = provider
        self._heartbeat = heartbeat
        self._watch = watch
        self._now_ms = store.now_ms
        self._looked_at = 0  # epoch milliseconds, before the latest claim
        self._log = log
        self._retention = upkeep.retention
        self._used_up = upkeep.used_up
        self._children = upkeep.children
        self._words = upkeep.words
        self._stopping = anyio.Event()
        self._cut_off_at = float("inf")
        self._first_poll = True
        # Messages whose shared turn failed: each is tried again alone, so that only the bad one fails.
        self._solo: set[str] = set()
        self._last_trouble: str | None = None

    def stop(self) -> None:
        """Stop claiming. The current turn has `grace_s` seconds from now to finish. Calling it again has no effect."""
        if not self._stopping.is_set():
            self._cut_off_at = anyio.current_time() + self._settings.grace_s
            self._stopping.set()
            self._watch.poke()

    async def run(self) -> None:
        """Run until `stop()`. Raise only SchemaTooNewError, ClaimLostError or CannotStartError.

        Any other error is retried, or becomes the turn's answer.
        """
        fatal: ClawbusError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch.run)
            try:
                await self._serve()
            except _StoppedError:
                pass
            except (SchemaTooNewError, ClaimLostError, CannotStartError) as error:
                fatal = error
            finally:
                self._watch.close()
                await self._provider.close()
        if fatal is not None:
            raise fatal
        self._log.info("runner_stopped")

    async def _serve(self) -> None:
        dropped = await self._insist("start_failed", self._store.start)
        self._log.info("runner_started", provider=self._settings.provider, stale_claims_dropped=dropped)
        while not self._stopping.is_set():
            batch = await self._look(run_here)
            if batch is not None:
                await self._turn(batch)
            elif await self._prune():
                await self._watch.wait(_BETWEEN_STEPS_S)
            else:
                await self._watch.wait()

    async def _look(
        self, run: Callable[[Callable[[], Batch | None]], Awaitable[Batch | None]], *, joins: bool = False
    ) -> Batch | None:
        """Claim due messages, for a new turn or (`joins`) for the one that is running.

        Return None when nothing was claimed, and when a file could not be used: the next poll tries again.
        """
        looked_at = self._now_ms()
        claim = partial(
            self._store.claim,
            self._settings.max_batch,
            first_poll=self._first_poll,
            silence=self._provider.silence,
            solo=frozenset(self._solo),
            joins=joins,
        )
        try:
            batch = await run(claim)
        except SchemaTooNewError:
            raise
        except ClawbusError as error:
            self._note_trouble("poll_failed", error)
            return None
        self._first_poll, self._looked_at = False, looked_at
        self._last_trouble = None
        return batch

    async def _prune(self) -> bool:
        """Run one small retention step. Return True when another step is due.

        Called only when no message is due, so a new message waits for at most one step. A step that fails is retried later.
        """
        if self._retention is None or not self._retention.due or self._stopping.is_set():
            return False
        try:
            pruned = await run_sync(self._retention.step)
        except ClawbusError as error:
            self._retention.postpone(_PRUNE_RETRY_S)
            self._note_trouble("prune_failed", error)
            return False
        if pruned.answers or pruned.acks:
            self._log.info("outbound_pruned", answers=pruned.answers, acks=pruned.acks, given_back=pruned.given_back)
        return pruned.more

    async def _turn(self, batch: Batch) -> None:
        log = self._log.bind(messages=[message.id for message in batch.messages])
        log.info("turn_started")
        began = anyio.current_time()
        show_tool = partial(self._show_tool, log)
        said = partial(self._keep_words, log, [message.id for message in batch.messages if message.trigger])
        who = (self._identity.agent, self._identity.session)
        saying = Saying(
            self._store.outbox, who, batch.messages, batch.routing, batch.destinations, self._settings.max_answer_bytes,
            self._note_trouble,
        )  # fmt: skip
        asking = Asking(self._store.outbox, self._watch, who, batch.messages, batch.routing, self._note_trouble)
        progress = TurnProgress(
            self._heartbeat, show_tool, self._now_ms, self._provider.silence, said, asking.ask, saying.say
        )
        outcome: _Outcome | CannotStartError | None = None
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._cut_off, scope)
                if self._provider.accepts_follow_ups and not batch.alone:
                    group.start_soon(self._feed, progress)
                outcome = await self._work(batch, progress)
                group.cancel_scope.cancel()
        await self._end_leftovers(log)
        inbox = progress.follow_ups_inbox
        messages = (*batch.messages, *inbox.taken)
        if outcome is None:
            await self._abandon(log)
            return
        if isinstance(outcome, CannotStartError):
            await self._give_back(log, outcome)
            raise outcome
        status = await self._commit(outcome, batch, messages, [message.id for message in inbox.waiting], log)
        log.info("turn_ended", status=status, seconds=round(anyio.current_time() - began, 3))
        self._retire_if_used_up()

    def _retire_if_used_up(self) -> None:
        """Stop between two turns when a folder is full: earlier turns filled it, and a fresh container has room again."""
        full = self._used_up() if self._used_up is not None else None
        if full is not None and not self._stopping.is_set():
            self._log.warning("container_used_up", folder=full)
            self.stop()

    async def _work(self, batch: Batch, progress: TurnProgress) -> _Outcome | CannotStartError:
        turn = Turn(
            agent=self._identity.agent,
            session=self._identity.session,
            incarnation=self._identity.incarnation,
            messages=batch.messages,
            routing=batch.routing,
            destinations=batch.destinations,
            state=batch.state,
        )
        # Date the heartbeat before the claim: the ceiling counts from here, and a turn without progress is claim-stuck.
        self._heartbeat.touch(self._looked_at)
        try:
            return await self._provider.run(turn, progress)
        except (TurnFailedError, TurnDeferredError, CannotStartError) as ending:
            return ending
        except Exception as error:  # noqa: BLE001 -- a provider's exception ends its turn, not the loop
            if passes(error):  # MemoryError does not: this message may have caused it
                return CannotStartError(str(as_host_error(error, "the turn cannot go on") or error))
            self._log.exception("provider_crashed")
            return ProviderCrashedError(f"The provider raised {type(error).__name__}: {error}"[:_MAX_REASON])

    async def _feed(self, progress: TurnProgress) -> None:
        """Claim messages that arrive while the turn runs and push them into it. Claim nothing once the runner is stopping."""
        while not self._stopping.is_set():
            await self._watch.wait()
            if self._stopping.is_set():
                return
            try:
                batch = await self._look(run_sync, joins=True)  # in a worker thread, because the turn is running
            except SchemaTooNewError:
                return  # the main loop raises it after this turn
            # There is no await between the claim and the push, so no claimed message can be lost.
            if batch is not None:
                progress.follow_ups_inbox.push(batch.messages)

    async def _cut_off(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait()
        await anyio.sleep_until(self._cut_off_at)
        scope.cancel()

    async def _end_leftovers(self, log: FilteringBoundLogger) -> None:
        if self._children is None:
            return
        with anyio.CancelScope(shield=True):
            ended = await self._children.end_leftovers()
            if ended.count:
                level = log.warning if ended.remain else log.info
                level("leftovers_ended", programs=ended.names, count=ended.count, remain=ended.remain)

    async def _give_back(self, log: FilteringBoundLogger, why: CannotStartError) -> None:
        """Release the claims. Use this thread, because it may be impossible to start another one."""
        log.error("turn_given_back", code=why.code, error=str(why), hint=why.hint)
        with suppress(_StoppedError), anyio.move_on_after(_GIVE_BACK_S):
            await self._insist("release_failed", self._store.release_all)

    async def _is_being_ended(self) -> bool:
        """Return whether a stop signal has arrived, including one that the event loop has not handled yet.

        A container that is stopped while it is frozen thaws with its signal pending.
        """
        for _ in range(_SIGNAL_STEPS):
            if self._stopping.is_set():
                break
            await checkpoint()
        return self._stopping.is_set()

    async def _abandon(self, log: FilteringBoundLogger) -> None:
        """Release the claims, so that the next incarnation can claim the messages and no try is charged."""
        log.warning("turn_abandoned", grace_s=self._settings.grace_s)
        for pause_s in _LAST_TRIES_S:  # a claim that is not released costs its message a try
            try:
                await run_here(
                    self._store.release_all
                )  # on this thread, because it may be impossible to start another one
            except ClawbusError as error:
                log.warning("release_failed", code=error.code, error=str(error))
                await anyio.sleep(pause_s)
            else:
                return

    async def _commit(
        self,
        outcome: _Outcome,
        batch: Batch,
        messages: Sequence[TurnMessage],
        released: Sequence[str],
        log: FilteringBoundLogger,
    ) -> str:
        """Commit the turn's end, retrying for as long as the file cannot be written. Return the messages' new status."""
        if isinstance(outcome, TurnDeferredError):
            if await self._defer(outcome, messages, released, log):
                return AckStatus.LATER.value
            outcome = TurnFailedError(f"{outcome} This host cannot give it again later.")
        plan, failure = self._planned(outcome, batch, messages, log)
        if failure is not None and await self._is_being_ended():
            # The container is being stopped, which may have caused the failure. The message must not fail for that.
            log.warning("turn_cut", code=failure.code, error=str(failure), detail=failure.detail)
            await self._abandon(log)
            return "abandoned"
        if failure is not None:
            log.warning("turn_failed", code=failure.code, error=str(failure), detail=failure.detail)
            if _is_shared(messages):
                return await self._split(messages, released, log)
        status = AckStatus.COMPLETED if failure is None else AckStatus.FAILED
        finish = partial(
            self._store.finish,
            self._store.outbound_rows(plan.replies),
            [message.id for message in messages],
            status,
            released=released,
            state=_state(outcome) if failure is None else None,
            usage=_usage(outcome, messages) if failure is None else None,
            note=_note(outcome) if failure is None else TurnNote(failure.code, str(failure)),
        )
        try:
            await self._insist("commit_failed", finish)
        except _StoppedError:
            await self._abandon(log)
            return "abandoned"
        self._solo.difference_update(message.id for message in messages)
        return status.value

    async def _split(self, messages: Sequence[TurnMessage], released: Sequence[str], log: FilteringBoundLogger) -> str:
        """Release a failed turn's messages, so that each trigger is tried alone: one bad message must not fail the others.

        If the runner dies in between, the list of messages to try alone is lost; the next shared turn fails and splits again.
        """
        ids = [message.id for message in messages]
        self._solo.update(message.id for message in messages if message.trigger)
        log.warning("turn_split", triggers=sum(message.trigger for message in messages))
        try:
            await self._insist("release_failed", partial(self._store.give_back, [*ids, *released]))
        except _StoppedError:
            await self._abandon(log)
            return "abandoned"
        return "split"

    async def _defer(
        self,
        outcome: TurnDeferredError,
        messages: Sequence[TurnMessage],
        released: Sequence[str],
        log: FilteringBoundLogger,
    ) -> bool:
        """Ask the host to try the messages later. Return False when it does not support that."""
        retry_at = None if outcome.after_s is None else self._now_ms() + int(outcome.after_s * 1000)
        reason = None if outcome.reason is None else outcome.reason[:_MAX_REASON]
        log.warning("turn_deferred", after_s=outcome.after_s, reason=reason)
        defer = partial(
            self._store.defer, [message.id for message in messages], retry_at=retry_at, reason=reason, released=released
        )
        try:
            done = await self._insist("commit_failed", defer)
        except _StoppedError:
            await self._abandon(log)
            return True
        self._solo.difference_update(message.id for message in messages)
        return done

    def _planned(
        self,
        outcome: Answer | TurnFailedError,
        batch: Batch,
        messages: Sequence[TurnMessage],
        log: FilteringBoundLogger,
    ) -> tuple[Plan, TurnFailedError | None]:
        if isinstance(outcome, TurnFailedError):
            return self._failure_replies(outcome, batch, messages), outcome
        try:
            plan = plan_replies(outcome.messages, messages, batch.routing, batch.destinations)
        except AnswerInvalidError as failure:
            return self._failure_replies(failure, batch, messages), failure
        if outcome.ignored:
            log.warning("output_ignored", types=list(outcome.ignored))
        if outcome.note is not None:
            log.warning("nothing_sent", code=outcome.note.code, reason=outcome.note.message)
        for name in plan.unknown:
            log.warning("output_dropped", reason="unknown destination", destination=name[:200])
        failure = _refusal(plan, self._settings.max_answer_bytes)
        return (plan, None) if failure is None else (self._failure_replies(failure, batch, messages), failure)

    def _failure_replies(self, failure: TurnFailedError, batch: Batch, messages: Sequence[TurnMessage]) -> Plan:
        open_detail = self._settings.error_detail == "sender"
        return failure_replies(failure, messages, batch.routing, open_detail=open_detail)

    async def _show_tool(self, log: FilteringBoundLogger, tool: DeclaredTimeout | None, started_at: int) -> None:
        """Record the tool in outbound.db, from which the host judges the turn, and in the log, for whoever reads it later."""
        if tool is None or tool == self._provider.silence:
            log.info("tool_ended")
        else:
            log.info("tool_started", tool=tool.name[:200], timeout_s=tool.timeout_s)
        try:
            await run_sync(self._store.set_tool, tool, started_at)
        except ClawbusError as error:
            # The turn continues; at worst the host assumes a shorter timeout for the tool.
            self._log.warning("tool_state_failed", code=error.code, error=str(error))

    def _keep_words(self, log: FilteringBoundLogger, messages: Sequence[str], kind: str, text: str) -> None:
        if self._words is not None:
            self._words.keep(log, messages, kind, text)

    async def _insist(self, event: str, work: Callable[[], _T]) -> _T:
        """Repeat `work` until it succeeds. While stopping, only until the grace is over; then raise _StoppedError."""
        for attempt in range(2**31):
            try:
                return await run_here(work)
            except (SchemaTooNewError, ClaimLostError):
                raise
            except ClawbusError as error:
                self._note_trouble(event, error)
            if anyio.current_time() >= self._cut_off_at:
                break
            with anyio.move_on_after(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]):
                await self._stopping.wait()
                await anyio.sleep_until(self._cut_off_at)
        raise _StoppedError(event)

    def _note_trouble(self, event: str, error: ClawbusError) -> None:
        """Log a problem once, and again when it changes. InboundUnreadableError (the host commits) is logged as debug only."""
        quiet = isinstance(error, InboundUnreadableError) or self._last_trouble == error.code
        (self._log.debug if quiet else self._log.warning)(event, code=error.code, error=str(error))
        if not isinstance(error, InboundUnreadableError):
            self._last_trouble = error.code


_Outcome = Answer | TurnFailedError | TurnDeferredError


class _StoppedError(Exception):
    """The grace ended before the work could be done."""


def _usage(outcome: _Outcome, messages: Sequence[TurnMessage]) -> tuple[str, TurnUsage] | None:
    """Return what the turn used, under its last trigger."""
    if not isinstance(outcome, Answer) or outcome.usage is None:
        return None
    return next(message.id for message in reversed(messages) if message.trigger), outcome.usage


def _state(outcome: _Outcome) -> dict[str, str | None] | None:
    if not isinstance(outcome, Answer):
        return None
    return {whole_text(key): None if value is None else whole_text(value) for key, value in outcome.state.items()}


def _note(outcome: _Outcome) -> TurnNote | None:
    return outcome.note if isinstance(outcome, Answer) else None


def _is_shared(messages: Sequence[TurnMessage]) -> bool:
    """Return whether the turn has more than one trigger."""
    return sum(message.trigger for message in messages) > 1


def _refusal(plan: Plan, max_bytes: int) -> TurnFailedError | None:
    """Return why a plan cannot be sent: no row of it has a known destination, or a row is too large; None if it can."""
    if plan.unknown and not plan.replies:
        return UnknownDestinationError(
            f"The answer went to {plan.unknown[0][:200]!r}, which this agent may not send to."
        )
    if any(len(reply.content.encode()) > max_bytes for reply in plan.replies):
        return AnswerTooLargeError(f"A message of the answer has more than {max_bytes} bytes as JSON.")
    return None
