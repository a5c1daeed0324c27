"""Sends one destination's rows in order and records the outcomes. Only a channel's receipt counts as success."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio
import structlog

from daemon.core.clock import Clock
from daemon.core.delivery_plan import Send
from daemon.engine.events import Events
from daemon.engine.hand_over import HandOver, Outcome
from daemon.engine.message_events import send_events
from daemon.engine.outcome_steps import record_outcomes
from daemon.engine.outcomes import by_destination
from daemon.engine.poll_contexts import PollContexts
from daemon.engine.read_trouble import ReadTrouble
from daemon.engine.send_health import SendHealth
from daemon.engine.send_slots import SLOW_S
from daemon.engine.sender import Sender
from daemon.engine.session import Session
from daemon.engine.troubles import RECORD
from schema.errors import FileBusyError, ReadDeadlineError, StorageError, UnusableFileError
from schema.frozen import frozen


@frozen
class Sent:
    """The outcomes of a destination's rows. `slow`: whether the place holds slots without accepting; None when unknown."""

    outcomes: Sequence[Outcome]
    slow: bool | None = None

    @property
    def failed(self) -> bool:
        """Whether a row was refused or the receiver could not be reached."""
        return any(outcome.error is not None for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        """Whether every row was sent."""
        return not any(outcome.error or not outcome.sent for outcome in self.outcomes)


class DestinationSends:
    """Sends and records. While `paused` returns True, it begins no send."""

    def __init__(
        self,
        sender: Sender,
        contexts: PollContexts,
        clock: Clock,
        read_trouble: ReadTrouble,
        health: SendHealth,
        events: Events,
        paused: Callable[[], bool],
    ) -> None:
        self._sender = sender
        self._contexts = contexts
        self._clock = clock
        self._read_trouble = read_trouble
        self._troubles = read_trouble.troubles
        self._health = health
        self._events = events
        self._paused = paused
        self._log = structlog.get_logger("delivery")

    async def send(self, session: Session, sends: list[Send]) -> Sent:
        """Send one destination's rows in order, up to the first failure, and record the outcomes."""
        began = self._clock.monotonic()
        outcomes = await self._send_in_order(session, sends)
        return Sent(outcomes, _slow(outcomes, self._clock.monotonic() - began))

    async def _send_in_order(self, session: Session, sends: list[Send]) -> list[Outcome]:
        """Send the rows in order, record the outcomes and return them.

        On shutdown the outcomes so far are recorded too; the row whose send was interrupted stays in doubt.
        """
        outcomes: list[Outcome] = []
        begun = 0
        try:
            together = self._sender.takes_many(sends)
            if together and not self._paused():
                begun = len(sends)
                outcomes += await self._sender.many(session, sends)
                begun = len(outcomes)
            for send in sends[begun:] if not together else ():
                if self._paused() or (outcomes and outcomes[-1].error is not None):
                    break
                begun += 1
                outcomes.append(await self._sender.one(session, send))
        finally:
            outcomes += [Outcome(send, sent=False) for send in sends[begun:]]
            if outcomes:
                await self.record(session, HandOver(outcomes))
        return outcomes

    async def record(self, session: Session, done: HandOver) -> None:
        """Record the outcomes, retrying until it works: an answer whose receipt is lost would be sent again."""
        means, wait = self._contexts.of(session, [], []), 0.1
        # A shutdown must not separate a receipt from its send, so each try is shielded. `close` waits only a bounded time.
        with anyio.CancelScope() as scope:
            while True:
                try:
                    scope.shield = True
                    now = self._clock.now_ms()
                    done.dead = await session.call(partial(record_outcomes, session.files, done.outcomes, means, now))
                    break
                except UnusableFileError as error:
                    # The file to record in is unusable. The sent rows are in doubt once it is restored.
                    self._read_trouble.handle(session, error, "record")
                    return
                except (FileBusyError, StorageError, ReadDeadlineError) as error:
                    self._log.warning("receipt_not_recorded", agent=session.key.agent, session=session.key.session,
                                      error=str(error), retry_s=wait)  # fmt: skip
                    self._troubles.failed(session.key, RECORD, error, self._clock.now_ms())
                scope.shield = False
                await anyio.sleep(wait)
                wait = min(wait * 2, 5.0)
            self._troubles.healed(session.key, RECORD)
            self.recorded(session, done)

    def recorded(self, session: Session, done: HandOver) -> None:
        """Publish a hand-over's outcomes, now that they are recorded, and update the receiver's health."""
        now = self._clock.now_ms()
        self._events.publish_all(send_events(session.key, done.outcomes, done.dead or (), now))
        self._health.note(done.lane, done.outcomes, str(session.key))


def claim_destinations(
    session: Session, sends: Sequence[Send], handed: Mapping[str, HandOver]
) -> list[tuple[str, list[Send]]]:
    """Mark the destinations that have something left to send or record as under way. Return their sends, grouped."""
    done = {key for key, one in handed.items() if one.dead is not None}
    groups = {key: members for key, members in by_destination(sends).items() if key not in done}
    for key, members in groups.items():
        session.sending[key] = frozenset(member.candidate.row.id for member in members)
    return list(groups.items())


def _slow(outcomes: Sequence[Outcome], seconds: float) -> bool | None:
    """Return whether a place holds slots without accepting anything; None when that is unknown."""
    if any(outcome.error is not None for outcome in outcomes):
        return True if seconds > SLOW_S else None
    return False if any(outcome.sent for outcome in outcomes) else None
