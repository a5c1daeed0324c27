"""Gives a deploy access to the running bus, through the bus's parts."""

from __future__ import annotations

from collections import deque
from typing import Final

from daemon.app.bus import Bus
from daemon.core.bake import Health
from daemon.core.deploy_pace import ACCEPTANCE, ROUND_TRIP, WINDOW_MS, Pace, pace_of
from daemon.core.errors import EngineChangedError, RuntimeUnavailableError
from daemon.core.events import (
    AnswerDeadLettered,
    AnswersDelivered,
    ContainerExited,
    ContainerSpawned,
    ContainerStuck,
    DeployEnded,
    MessageAccepted,
    MessageDeadLettered,
    SessionQuarantined,
    SpawnFailed,
)
from daemon.core.slots import Deploy, SlotState
from daemon.engine.supervisor.slots import Phase
from schema.errors import FileBusyError, HostTroubleError, StorageError

_MAX_SAMPLES: Final = 2000
_HOST_CODES: Final = frozenset(
    error.code for error in (RuntimeUnavailableError, EngineChangedError, StorageError, HostTroubleError, FileBusyError)
)


class Samples:
    """How long the latest pieces of one kind of work took: pairs of when, and milliseconds."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, int]] = deque(maxlen=_MAX_SAMPLES)

    def add(self, at: int, took_ms: int) -> None:
        """Keep one duration. `at` is when the work ended, in epoch milliseconds."""
        self._kept.append((at, max(0, took_ms)))

    def pace(self, now: int) -> Pace:
        """Return the pace of the last hour."""
        return pace_of([took for at, took in self._kept if now - at <= WINDOW_MS])


class BusEngine:
    """The running bus as a deploy sees it. Counts what went wrong, and times what was done, since it was built."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stuck = 0
        self._spawned: set[tuple[str, str]] = set()  # sessions whose living agent this release started
        self._accepted, self._delivered = Samples(), Samples()
        self._since = bus.clock.now_ms()
        bus.events.subscribe(ContainerSpawned, self._started)
        bus.events.subscribe(ContainerExited, self._exited)
        bus.events.subscribe(ContainerStuck, self._stuck_one)
        bus.events.subscribe(MessageAccepted, self._accept)
        bus.events.subscribe(AnswersDelivered, self._deliver)
        self._dead_letters = self._quarantined = self._spawn_failures = 0
        bus.events.subscribe(MessageDeadLettered, self._dead)
        bus.events.subscribe(AnswerDeadLettered, self._dead)
        bus.events.subscribe(SessionQuarantined, self._quarantine)
        bus.events.subscribe(SpawnFailed, self._spawn)

    def hold(self) -> None:
        """Start no container and no send until `resume`."""
        self._bus.supervisor.hold()
        self._bus.delivery.hold()

    def resume(self) -> None:
        """End the hold. Every active session is polled again."""
        self._bus.supervisor.resume()
        self._bus.delivery.resume()
        for session in self._bus.sessions:
            self._bus.delivery.poke(session)
            self._bus.schedule.now(session.key)

    def in_flight(self) -> dict[str, int]:
        """Return the sends, polls and container starts under way."""
        slots = self._bus.supervisor.slots()
        return {
            "sends": self._bus.delivery.senders,
            "polls": self._bus.delivery.polls,
            "spawns": sum(slot.phase is Phase.STARTING for slot in slots),
        }

    def carried(self) -> int:
        """Return how many agents run."""
        return len(self._bus.supervisor.alive())

    def health(self) -> Health:
        """Return what went wrong so far, and what is wrong now."""
        return Health(
            self._dead_letters,
            self._quarantined,
            self._spawn_failures,
            {str(one["what"]): str(one["why"]) for one in self._bus.problems.degraded()},
            tuple(one.name for one in self._bus.pulse.stale()),
            self._stuck,
            self._pace(),
        )

    def _pace(self) -> dict[str, Pace]:
        now = self._bus.clock.now_ms()
        return {ACCEPTANCE: self._accepted.pace(now), ROUND_TRIP: self._delivered.pace(now)}

    def report(self, deploy: Deploy, at: int) -> None:
        """Publish a deploy that is over."""
        self._bus.events.publish(DeployEnded(at, deploy))

    def seen(self, state: SlotState) -> None:
        """Keep the state, which the metrics report."""
        self._bus.slots = state

    def _dead(self, _: object) -> None:
        self._dead_letters += 1

    def _quarantine(self, _: object) -> None:
        self._quarantined += 1

    def _spawn(self, event: SpawnFailed) -> None:
        """Count only the first of a session's failures in a row, as the others may have begun before.

        Do not count the host's failures.
        """
        self._spawn_failures += event.failures == 1 and event.code not in _HOST_CODES

    def _started(self, event: ContainerSpawned) -> None:
        self._spawned.add((event.agent, event.session))

    def _exited(self, event: ContainerExited) -> None:
        self._spawned.discard((event.agent, event.session))

    def _stuck_one(self, event: ContainerStuck) -> None:
        """Count the event if this release started the agent. An adopted agent is the prior release's."""
        self._stuck += (event.agent, event.session) in self._spawned

    def _accept(self, event: MessageAccepted) -> None:
        self._accepted.add(event.at, event.at - event.span.at)

    def _deliver(self, event: AnswersDelivered) -> None:
        for answer in event.answers:
            due = answer.cause.due_at if answer.cause is not None else None
            # What was due before this daemon began waited for the cutover, which is not the release's pace.
            if due is not None and due >= self._since and answer.attempt == 1:
                self._delivered.add(event.at, event.at - due)
