"""Gives a deploy access to the running bus, through the bus's parts."""

from __future__ import annotations

from daemon.app.bus import Bus
from daemon.core.events import AnswerDeadLettered, DeployEnded, MessageDeadLettered, SessionQuarantined, SpawnFailed
from daemon.core.slots import Deploy, Health, SlotState
from daemon.engine.supervisor.slots import Phase


class BusEngine:
    """The running bus as a deploy sees it. Counts what went wrong since it was built."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
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
        )

    def report(self, deploy: Deploy, at: int) -> None:
        """Publish a deploy that is over."""
        self._bus.events.publish(DeployEnded(at, deploy))

    def seen(self, state: SlotState) -> None:
        """Keep the state for whoever scrapes the metrics."""
        self._bus.slots = state

    def _dead(self, _: object) -> None:
        self._dead_letters += 1

    def _quarantine(self, _: object) -> None:
        self._quarantined += 1

    def _spawn(self, _: object) -> None:
        self._spawn_failures += 1
