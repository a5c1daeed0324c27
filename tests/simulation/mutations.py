"""Takes one protection out of the product at a time and counts the seeds until the simulation notices: is it still awake?

    .venv/bin/python -m tests.simulation.mutations [NAME ...]

A mutation that no seed notices within the limit means a blind spot of the checks (or a protection that nothing needs).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final
from unittest import mock

import anyio

import container_runner.due_messages
import container_runner.store
import container_runner.turn_end
import daemon.core.delivery_plan
import daemon.engine.decision_steps
import daemon.engine.delivery_steps
import daemon.engine.destination_sends
import daemon.engine.ingress
import daemon.engine.inline_delivery
import daemon.engine.poll_contexts
import daemon.engine.sender
import daemon.engine.session_sweep
import daemon.engine.settle_steps
import daemon.engine.sweep_steps
import daemon.store.messages
import daemon.store.session_files
import daemon.store.transitions
from daemon.channels.protocol import Incoming
from daemon.core.delivery_plan import Send
from daemon.engine.hand_over import Outcome
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.terminator import Terminator
from daemon.runtimes.protocol import Exit
from daemon.store import deliveries, messages
from daemon.store.registry import Registry
from schema.rows import MessageIn
from tests.simulation import mutations_operator, mutations_retention, mutations_schedules, mutations_talk
from tests.simulation.run import SCOPES, run_seed
from tests.simulation.world import Faults

LIMIT: Final = 600
# What Python says of a patch whose place in the product has changed: that it broke a run proves nothing.
_NO_PROOF: Final = ("TypeError: ", "AttributeError: ", "NameError: ")
Patch = Callable[[], contextlib.AbstractContextManager[Any]]


def _charge_again() -> contextlib.AbstractContextManager[Any]:
    """An attempt that has ended can end, and cost, once more."""

    def end(db: Any, message_id: str, incarnation: str, at: int, outcome: str) -> bool:
        db.execute(
            "INSERT INTO attempts(message_id, incarnation, claimed_at, ended_at, outcome) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT(message_id, incarnation) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome",
            (message_id, incarnation, at, at, outcome),
        )
        return True

    return _all(
        mock.patch.object(messages, "end_attempt", end),
        mock.patch.object(messages, "charged", lambda _, __: frozenset()),
    )


def _cursor_apart() -> contextlib.AbstractContextManager[Any]:
    """The cursor moves in a transaction of its own, before the intents."""
    real = daemon.engine.delivery_steps.read_batch

    def look(db: Any, *arguments: Any) -> Any:
        batch = real(db, *arguments)
        if batch.top_seq is not None:
            with db.transaction():
                _advance(db, batch)
        return batch

    return mock.patch.object(daemon.engine.delivery_steps, "read_batch", look)


def _advance(db: Any, batch: Any) -> None:
    deliveries.advance(db, batch.top_seq, *([batch.file_id] if hasattr(batch, "file_id") else []))


def _recover_early() -> contextlib.AbstractContextManager[Any]:
    """A sweep recovers the journal whatever runs."""
    real = daemon.engine.sweep_steps.sweep_files

    def sweep(files: Any, *arguments: Any, **options: Any) -> Any:
        if files.has_journal():
            files.recover()
        return real(files, *arguments, **options)

    return mock.patch.object(daemon.engine.session_sweep, "sweep_files", sweep)


def _send_before_intent() -> contextlib.AbstractContextManager[Any]:
    """Rows are sent that are only queued on disk."""
    return _all(
        mock.patch.object(deliveries, "intend", lambda *_: None),
        mock.patch.object(
            daemon.engine.decision_steps, "_track_new", _tracking_all_as_queued(daemon.engine.decision_steps._track_new)
        ),
    )


def _tracking_all_as_queued(real: Callable[..., None]) -> Callable[..., None]:
    def track(db: Any, decision: Any, now: int) -> None:
        real(db, decision, now)
        if isinstance(decision, Send):
            db.execute(
                "UPDATE delivery_attempts SET state = 'queued' WHERE message_out_id = ?", (decision.candidate.row.id,)
            )

    return track


def _end_before_exit_is_settled() -> contextlib.AbstractContextManager[Any]:
    """The incarnation is recorded as ended before its exit's work is done in the files."""
    real = Terminator._ended

    async def ended(self: Terminator, slot: Any, exit_: Exit) -> None:
        now = self._state.clock.now_ms()
        await self._state.record(lambda registry: registry.end_incarnation(slot.incarnation, now, exit_.code, "early"))
        await real(self, slot, exit_)

    return mock.patch.object(Terminator, "_ended", ended)


def _retire_without_lock() -> contextlib.AbstractContextManager[Any]:
    """A session is forgotten some time after the look that found it idle."""
    real = Sessions.retire

    async def late(self: Sessions, *arguments: Any) -> None:
        await anyio.sleep(0.05)
        await real(self, *arguments)

    async def retire(self: Sessions, *arguments: Any) -> None:
        asyncio.get_running_loop().create_task(late(self, *arguments))

    return mock.patch.object(Sessions, "retire", retire)


def _insert_before_activate() -> contextlib.AbstractContextManager[Any]:
    """The registry learns that a session has work only after the work was written."""
    real = Sessions.activate

    async def late(self: Sessions, session: Any) -> None:
        await anyio.sleep(0.05)
        await real(self, session)

    async def activate(self: Sessions, session: Any) -> None:
        self._table[session.key] = session
        if not session.active:
            asyncio.get_running_loop().create_task(late(self, session))

    return mock.patch.object(Sessions, "activate", activate)


def _no_dedupe() -> contextlib.AbstractContextManager[Any]:
    """A message id that is known is stored under another one."""
    real = daemon.engine.ingress.check

    def check(incoming: Incoming, now: int, limit: int) -> MessageIn:
        return replace(real(incoming, now, limit), id=f"{incoming.message_id}-{now}")

    return mock.patch.object(daemon.engine.ingress, "check", check)


def _wait_guesses() -> contextlib.AbstractContextManager[Any]:
    """A signal that was sent counts as an exit."""
    real = Terminator._signal

    async def signal(self: Terminator, slot: Any, send: Any) -> bool:
        sent = await real(self, slot, send)
        if sent and not slot.exited.is_set() and self._state.tasks is not None:
            self._state.tasks.start_soon(self._ended, slot, Exit(None))
        return sent

    return mock.patch.object(Terminator, "_signal", signal)


def _no_incarnation_fence() -> contextlib.AbstractContextManager[Any]:
    """Nothing is recorded before a container is asked for."""
    return mock.patch.object(Registry, "begin_incarnation", lambda *_: True)


def _ack_apart() -> contextlib.AbstractContextManager[Any]:
    """The runner commits its acks first, and its answer after."""
    store = container_runner.store.Store
    real = store.finish

    def finish(self: Any, rows: Any, acked: Any, status: Any, **options: Any) -> None:
        real(self, (), acked, status, **options)
        with self._both() as db, db.transaction():
            self._insert_rows(db, rows)

    return mock.patch.object(store, "finish", finish)


def _stale_claims_stay() -> contextlib.AbstractContextManager[Any]:
    """A runner begins without dropping its predecessors' claims."""
    return mock.patch.object(container_runner.store.Store, "start", lambda _: 0)


def _status_without_history() -> contextlib.AbstractContextManager[Any]:
    """A status changes and nobody writes it down."""

    def change(db: Any, message_id: str, target: Any, *_: Any, **__: Any) -> bool:
        return bool(db.execute("UPDATE messages_in SET status = ? WHERE id = ?", (target.value, message_id)))

    return _all(
        mock.patch.object(daemon.engine.settle_steps, "change_status", change),
        mock.patch.object(daemon.engine.sweep_steps, "change_status", change),
    )


def _timeout_is_success() -> contextlib.AbstractContextManager[Any]:
    """A send that failed gets a receipt all the same."""
    real = daemon.engine.sender.Sender.one

    async def send(self: Any, *arguments: Any) -> Outcome:
        return replace(await real(self, *arguments), error=None, error_code=None, permanent=False)

    return mock.patch.object(daemon.engine.sender.Sender, "one", send)


def _no_destination_order() -> contextlib.AbstractContextManager[Any]:
    """A failing head no longer holds back the rows behind it."""
    return mock.patch.object(deliveries, "retrying_destinations", lambda *_: frozenset())


def _hold_is_resent() -> contextlib.AbstractContextManager[Any]:
    """In doubt, a channel that asked to hold is sent to again."""
    traits = daemon.engine.poll_contexts.ChannelRules
    return mock.patch.object(
        daemon.engine.poll_contexts, "ChannelRules", lambda dedup, _, head: traits(dedup, False, head)
    )


def _undeclared() -> contextlib.AbstractContextManager[Any]:
    """What a crash left in doubt is sent again without a word."""
    return mock.patch.object(deliveries, "resend", lambda *_, **__: None)


def _no_withdrawal() -> contextlib.AbstractContextManager[Any]:
    """After a lost spawn only what is listed counts: what starts later is nobody's."""
    from tests.simulation.host import SimRuntime  # noqa: PLC0415

    async def find(self: SimRuntime, incarnation: str) -> Any:
        return next((item for item in await self.list_running() if item.incarnation == incarnation), None)

    return mock.patch.object(SimRuntime, "find_or_cancel_spawn", find)


def _no_claim_stuck() -> contextlib.AbstractContextManager[Any]:
    """Nobody judges a container that runs. Agents go wrong often: one that hangs is rare otherwise."""
    drawn = Faults.drawn
    return _all(
        mock.patch("daemon.core.lifecycle.judge", lambda *_: None),
        mock.patch.object(Faults, "drawn", lambda rng: replace(drawn(rng), agent=0.7)),
    )


def _no_recovery() -> contextlib.AbstractContextManager[Any]:
    """A dead container's journal stays where it is."""
    return mock.patch.object(daemon.store.session_files.SessionFiles, "recover", lambda _: False)


def _lost_receipt_write() -> contextlib.AbstractContextManager[Any]:
    """A receipt that cannot be written at once is forgotten."""
    real = daemon.engine.destination_sends.record_outcomes

    def record(files: Any, *arguments: Any) -> Any:
        try:
            return real(files, *arguments)
        except Exception:
            return []

    return _all(
        mock.patch.object(daemon.engine.destination_sends, "record_outcomes", record),
        mock.patch.object(daemon.engine.inline_delivery, "record_outcomes", record),
    )


def _handed_over_is_taken() -> contextlib.AbstractContextManager[Any]:
    """What was handed over in the look's thread gets its receipt, whatever the channel said of it."""
    real = daemon.engine.inline_delivery.InlineDelivery._hand_over

    def hand_over(self: Any, *arguments: Any) -> list[Outcome]:
        return [replace(one, sent=True, error=None, error_code=None) for one in real(self, *arguments)]

    return mock.patch.object(daemon.engine.inline_delivery.InlineDelivery, "_hand_over", hand_over)


@contextlib.contextmanager
def _all(*patches: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _failed_turn_is_final() -> contextlib.AbstractContextManager[Any]:
    """One bad message fails all of its turn."""
    return mock.patch.object(container_runner.turn_end, "_is_shared", lambda _: False)


def _nobody_is_alone() -> contextlib.AbstractContextManager[Any]:
    """A message that killed its container is given to the next one together with others."""
    return mock.patch.object(container_runner.due_messages.DueMessages, "_needs_own_turn", lambda *_: False)


def _no_order_across_retries() -> contextlib.AbstractContextManager[Any]:
    """Later messages pass one that waits for its next try."""

    def look(self: Any) -> None:
        self._named["held_from"] = container_runner.due_messages._NO_SEQ

    return mock.patch.object(container_runner.due_messages.DueMessages, "_find_first_held", look)


def _seq_of_the_copy() -> contextlib.AbstractContextManager[Any]:
    """The yes for an id that failed names the seq of the message that does the work again."""
    real = daemon.engine.ingress.store

    def store(*arguments: Any) -> Any:
        kept = real(*arguments)
        return replace(kept, known=replace(kept.known, seq=kept.effective.seq))

    return mock.patch.object(daemon.engine.ingress, "store", store)


def _yes_without_requeue() -> contextlib.AbstractContextManager[Any]:
    """The yes for an id that failed names a message that was never stored."""
    return mock.patch.object(
        daemon.engine.ingress, "requeue_message", lambda _db, message, *_, **__: replace(message, id=f"{message.id}+r1")
    )


MUTATIONS: Final[Mapping[str, Patch]] = MappingProxyType(
    {
        "an ended attempt costs again": _charge_again,
        "the cursor in a transaction of its own": _cursor_apart,
        "recovery while something runs": _recover_early,
        "send before the intent": _send_before_intent,
        "end_incarnation before on_exit": _end_before_exit_is_settled,
        "retire outside the lock": _retire_without_lock,
        "insert before activate": _insert_before_activate,
        "no dedupe of message ids": _no_dedupe,
        "a signal counts as an exit": _wait_guesses,
        "no incarnation before the spawn": _no_incarnation_fence,
        "acks before the answer": _ack_apart,
        "stale claims stay": _stale_claims_stay,
        "status without history": _status_without_history,
        "a failed send gets a receipt": _timeout_is_success,
        "what is handed over counts as taken": _handed_over_is_taken,
        "no order per destination": _no_destination_order,
        "hold is sent again": _hold_is_resent,
        "a send in doubt is declared nowhere": _undeclared,
        "a late start is not withdrawn": _no_withdrawal,
        "no ceiling, no claim-stuck": _no_claim_stuck,
        "no journal recovery": _no_recovery,
        "a receipt is written once or never": _lost_receipt_write,
        "a failed turn of several is final": _failed_turn_is_final,
        "what is retried shares its turn": _nobody_is_alone,
        "no order across retries": _no_order_across_retries,
        "a requeue is accepted with its copy's seq": _seq_of_the_copy,
        "a requeue is accepted and not stored": _yes_without_requeue,
        **mutations_operator.MUTATIONS,
        **mutations_retention.MUTATIONS,
        **mutations_schedules.MUTATIONS,
        **mutations_talk.MUTATIONS,
    }
)


def seeds_until_noticed(patch: Patch, first: int, limit: int) -> tuple[int, str] | None:
    """(how many seeds it took, what was found), or None. Raises RuntimeError when the patch no longer fits the product."""
    with patch():
        for number in range(limit):
            result = run_seed(first + number)
            if result.findings:
                if any(sign in result.findings[0] for sign in _NO_PROOF):
                    raise RuntimeError(f"the patch fits nothing any more: {result.findings[0]}")
                return number + 1, f"seed {result.seed}: {result.findings[0]}"
    return None


def main() -> int:
    """The exit code: 0 when every mutation was noticed."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.mutations", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; none: all")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--limit", type=int, default=LIMIT)
    arguments = parser.parse_args()
    SCOPES.install()
    gc.collect()
    gc.freeze()
    unnoticed = 0
    for name, patch in MUTATIONS.items():
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        found = partial(seeds_until_noticed, patch, arguments.first, arguments.limit)()
        unnoticed += found is None
        told = "NOT NOTICED" if found is None else f"{found[0]:>4} seeds  {found[1][:160]}"
        print(f"{name:<42} {told}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
