"""The runner's loop: poll, claim, run a turn, hand its outcome to `turn_end.py`, repeat. The only file that runs a provider.

It never exits because of an error of the provider, or of a file error that can pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from container_runner.asking import Asking
from container_runner.cancelled_messages import stop_when_cancelled
from container_runner.file_work import FileWork, GraceOverError, run_here, run_in_thread
from container_runner.heartbeat import Heartbeat
from container_runner.live import TurnProgress
from container_runner.logs import Logger
from container_runner.providers.checked import is_quiet
from container_runner.providers.protocol import DeclaredTimeout, Provider, Turn
from container_runner.retention import Retention
from container_runner.saying import Saying
from container_runner.shared.children import Children
from container_runner.shared.errors import (
    CannotStartError,
    ClaimLostError,
    ProviderCrashedError,
    TurnDeferredError,
    TurnFailedError,
)
from container_runner.shared.sent_files import FileSource
from container_runner.stopping import Stopping
from container_runner.store import Batch, Store
from container_runner.turn_end import EndedTurn, Outcome, TurnEnd
from container_runner.watch import InboundWatch
from container_runner.words import Words
from schema.errors import ClawbusError, SchemaTooNewError
from schema.frozen import frozen
from schema.layout import CONTAINER_HOME
from schema.os_faults import as_host_error, passes
from schema.rows import AckStatus, RunnerSettings

_MAX_REASON: Final = 1000
_PRUNE_RETRY_S: Final = 10.0
_BETWEEN_STEPS_S: Final = 0.05  # a pause for the host, which polls after every change


@frozen
class Identity:
    """The agent and session that this runner works for, and its container's incarnation."""

    agent: str
    session: str
    incarnation: str


@frozen
class Upkeep:
    """Maintenance between turns.

    `retention` prunes outbound.db. `children` ends the processes that a turn left running; None leaves them alone.
    `used_up` returns the name of a full folder of the container; it is None when the container's folders are not its own.
    `words` keeps what the agent writes besides its answers; None drops it. `home` is where its answers' files come from.
    """

    retention: Retention | None = None
    children: Children | None = None
    used_up: Callable[[], str | None] | None = None
    words: Words | None = None
    home: Path = Path(CONTAINER_HOME)


_NO_UPKEEP: Final = Upkeep()


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
        log: Logger,
        upkeep: Upkeep = _NO_UPKEEP,
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
        self._stopping = Stopping(settings.grace_s)
        self._files = FileWork(self._stopping, log, store.repair)
        self._source = FileSource(upkeep.home, settings.max_files, settings.max_file_bytes)
        self._end = TurnEnd(settings, store, self._files, self._stopping, self._source)
        self._first_poll = True
        self._seen = 0  # the watch's count before the latest claim
        self._took_all = False  # whether the latest claim and its turn left nothing to claim

    def stop(self) -> None:
        """Stop claiming. The current turn has `grace_s` seconds from now to finish. Calling it again has no effect."""
        if not self._stopping.requested:
            self._stopping.request()
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
            except GraceOverError:
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
        dropped = await self._files.until_done("start_failed", self._store.start)
        await self._remove_files(starting=True)
        self._log.info("runner_started", provider=self._settings.provider, stale_claims_dropped=dropped)
        while not self._stopping.requested:
            # Most turns leave nothing to claim, and a poll that finds nothing costs as much as a claim.
            batch = None if self._took_all and self._watch.silent_since(self._seen) else await self._look(run_here)
            self._took_all = batch is not None and batch.took_all
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
        looked_at, seen, poll = self._now_ms(), self._watch.pokes, self._watch.begin_poll()
        self._took_all = False
        claim = partial(
            self._store.claim,
            self._settings.max_batch,
            first_poll=self._first_poll,
            silence=self._provider.silence,
            solo=self._end.solo,
            joins=joins,
        )
        try:
            batch = await run(claim)
        except SchemaTooNewError:
            raise
        except ClawbusError as error:
            self._files.note_problem("poll_failed", error)
            return None
        self._first_poll, self._looked_at, self._seen = False, looked_at, seen
        self._watch.end_poll(poll, self._store.quiet_s)
        self._files.note_success()
        return batch

    async def _prune(self) -> bool:
        """Run one small retention step. Return True when another step is due.

        Called only when no message is due, so a new message waits for at most one step. A step that fails is retried later.
        """
        if self._retention is None or not self._retention.due or self._stopping.requested:
            return False
        try:
            pruned = await run_in_thread(self._retention.step)
        except ClawbusError as error:
            self._retention.postpone(_PRUNE_RETRY_S)
            self._files.note_problem("prune_failed", error)
            return False
        if pruned.answers or pruned.acks:
            self._log.info("outbound_pruned", answers=pruned.answers, acks=pruned.acks, given_back=pruned.given_back)
        return pruned.more

    async def _turn(self, batch: Batch) -> None:
        log = self._log.bind(messages=[message.id for message in batch.messages])
        log.info("turn_started")
        began = anyio.current_time()
        progress = self._progress(batch, log)
        outcome: Outcome | CannotStartError | None = None
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._cut_off, scope)
                if self._provider.accepts_follow_ups and not batch.alone:
                    group.start_soon(self._feed, progress)
                is_cancelled = partial(self._is_cancelled, [one.id for one in batch.messages if one.trigger])
                group.start_soon(stop_when_cancelled, self._watch, self._seen, is_cancelled, progress.stop)
                outcome = await self._work(batch, progress)
                group.cancel_scope.cancel()
        await self._end_leftovers(log)
        if outcome is None:
            await self._end.abandon(log)
            return
        if isinstance(outcome, CannotStartError):
            await self._end.give_back(log, outcome)
            raise outcome
        inbox = progress.follow_ups_inbox
        untaken = tuple(message.id for message in inbox.waiting)
        worked_on = (*batch.messages, *inbox.taken)
        if is_quiet(outcome):
            untaken += tuple(message.id for message in worked_on if not message.trigger)
            worked_on = tuple(message for message in worked_on if message.trigger)
        status = await self._end.commit(outcome, EndedTurn(batch, worked_on, untaken, log, progress.tools.calls()))
        seconds = anyio.current_time() - began
        log.info("turn_ended", status=status, seconds=round(seconds, 3))
        # In a long turn a message may have become due by time alone, without a ring.
        self._took_all &= status == AckStatus.COMPLETED.value and not untaken and seconds < self._settings.poll_s
        await self._remove_files()
        self._retire_if_used_up()

    async def _remove_files(self, *, starting: bool = False) -> None:
        """Remove the files of answers that the host has copied. What cannot be removed now goes after a later turn."""
        try:
            await run_here(partial(self._store.outbox.remove_files, starting=starting))
        except ClawbusError as error:
            self._files.note_problem("files_not_removed", error)

    def _progress(self, batch: Batch, log: Logger) -> TurnProgress:
        """Build what the provider reports to while it works on this batch."""
        outbox, note = self._store.outbox, self._files.note_problem
        who = (self._identity.agent, self._identity.session)
        max_bytes = self._settings.max_answer_bytes
        saying = Saying(outbox, who, batch.messages, batch.routing, batch.destinations, max_bytes, note, self._source)
        asking = Asking(outbox, self._watch, who, batch.messages, batch.routing, note)
        return TurnProgress(
            self._heartbeat,
            partial(self._show_tool, log),
            self._now_ms,
            self._provider.silence,
            partial(self._keep_words, log, [message.id for message in batch.messages if message.trigger]),
            asking.ask,
            saying.say,
        )

    def _retire_if_used_up(self) -> None:
        """Stop between two turns when a folder is full: earlier turns filled it, and a fresh container has room again."""
        full = self._used_up() if self._used_up is not None else None
        if full is not None and not self._stopping.requested:
            self._log.warning("container_used_up", folder=full)
            self.stop()

    async def _work(self, batch: Batch, progress: TurnProgress) -> Outcome | CannotStartError:
        turn = Turn(
            agent=self._identity.agent,
            session=self._identity.session,
            incarnation=self._identity.incarnation,
            messages=batch.messages,
            routing=batch.routing,
            destinations=batch.destinations,
            state=batch.state,
            schedules=batch.schedules,
            check=batch.check,
            in_folder=str(self._store.in_folder.absolute()),
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
        while not self._stopping.requested:
            await self._watch.wait()
            if self._stopping.requested:
                return
            try:
                batch = await self._look(run_in_thread, joins=True)  # in a worker thread, because the turn is running
            except SchemaTooNewError:
                return  # the main loop raises it after this turn
            # There is no await between the claim and the push, so no claimed message can be lost.
            if batch is not None:
                progress.follow_ups_inbox.push(batch.messages)

    async def _is_cancelled(self, message_ids: Sequence[str]) -> bool:
        """Return whether the host has cancelled one of these messages; False while its file cannot be read."""
        try:
            return bool(await run_in_thread(self._store.outbox.cancelled, message_ids))
        except ClawbusError as error:
            self._files.note_problem("cancel_unknown", error)
            return False

    async def _cut_off(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait_for_grace_end()
        scope.cancel()

    async def _end_leftovers(self, log: Logger) -> None:
        if self._children is None:
            return
        with anyio.CancelScope(shield=True):
            ended = await self._children.end_leftovers()
            if ended.count:
                level = log.warning if ended.remain else log.info
                level("leftovers_ended", programs=ended.names, count=ended.count, remain=ended.remain)

    async def _show_tool(self, log: Logger, tool: DeclaredTimeout | None, started_at: int) -> None:
        """Record the tool in outbound.db, where the host reads it, and in the log."""
        if tool is None or tool == self._provider.silence:
            log.info("tool_ended")
        else:
            log.info("tool_started", tool=tool.name[:200], timeout_s=tool.timeout_s)
        try:
            await run_in_thread(self._store.set_tool, tool, started_at)
        except ClawbusError as error:
            # The turn continues; at worst the host assumes a shorter timeout for the tool.
            self._log.warning("tool_state_failed", code=error.code, error=str(error))

    def _keep_words(self, log: Logger, messages: Sequence[str], kind: str, text: str) -> None:
        if self._words is not None:
            self._words.keep(log, messages, kind, text)
