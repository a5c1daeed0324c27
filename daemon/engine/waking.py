"""Makes sure that an accepted message is worked on: wakes its session at once, or schedules it for when the message is due.

The same for a question: its deadline is scheduled, and an answer that no turn waits for wakes the agent.
"""

from __future__ import annotations

from functools import partial

from daemon.core.clock import Clock
from daemon.core.events import MessageAccepted, QuestionAsked, QuestionDecided, Subscriptions
from daemon.core.message_fate import EXPIRY_GRACE
from daemon.core.session_key import SessionKey
from daemon.engine.background import Background
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweep_schedule import Schedule


class Waking:
    """Subscribes to accepted messages. The sweep repairs a wake that was lost in a crash."""

    def __init__(
        self, sessions: Sessions, supervisor: Supervisor, schedule: Schedule, background: Background, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._supervisor = supervisor
        self._schedule = schedule
        self._background = background
        self._clock = clock

    def subscribe(self, events: Subscriptions) -> None:
        """Subscribe to accepted messages and to questions."""
        events.subscribe(MessageAccepted, self._accepted)
        events.subscribe(QuestionAsked, self._asked)
        events.subscribe(QuestionDecided, self._decided)

    def _asked(self, event: QuestionAsked) -> None:
        self._schedule.at(SessionKey(event.agent, event.session), event.deadline)

    def _decided(self, event: QuestionDecided) -> None:
        if event.notify:
            self._schedule.now(SessionKey(event.agent, event.session))

    def _accepted(self, event: MessageAccepted) -> None:
        session = self._sessions.known(SessionKey(event.agent, event.session))
        if not event.pending or session is None:
            return
        if event.not_after is not None:
            self._schedule.at(session.key, event.not_after + EXPIRY_GRACE)
        if event.process_after is not None and event.process_after > self._clock.now_ms():
            self._schedule.at(session.key, event.process_after)
        elif event.trigger and self._supervisor.slot(session.key) is None:
            self._background.later(partial(self._supervisor.wake, session))
