"""Tracks the places to which sends fail at present, and why. `status` (`degraded`), doctor and readiness report it.

A place is well again after a successful send, after the operator has dropped every answer that failed there, or after a time
without attempts that is longer than any retry waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.core.clock import Clock
from daemon.engine.hand_over import Outcome
from daemon.engine.send_slots import Lane

_MANY = 5  # failures in a row before they are reported
_LONG_MS = 60_000  # so are two or more that lie this far apart
_NAMED = 3  # places named in one report; the others are counted
_PLACES = 1000  # troubled places remembered; a further one is not tracked
_ANSWERS = 1000  # failed answers remembered for one place; beyond that, only a success or silence ends its trouble


@dataclass(slots=True)
class _Trouble:
    since: int
    failures: int = 0
    last: int = 0
    until: int = 0
    error: str = ""
    answers: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    @property
    def lasting(self) -> bool:
        return self.failures >= _MANY or (self.failures > 1 and self.last - self.since >= _LONG_MS)


class SendHealth:
    """Tracks every place's failures. Call it only in the event loop. `retry_max_s` and `send_timeout_s` are as configured."""

    def __init__(self, clock: Clock, retry_max_s: float, send_timeout_s: float) -> None:
        self._clock = clock
        self._silence_ms = int((retry_max_s * 1.25 + send_timeout_s) * 1000) + _LONG_MS
        self._troubles: dict[Lane, _Trouble] = {}

    def note(self, lane: Lane, outcomes: Sequence[Outcome], owner: str = "") -> None:
        """Record the outcomes of a session's sends to one place. `owner` is the session.

        A permanent refusal becomes a dead letter and says nothing about the next send.
        """
        if any(one.sent and one.error is None for one in outcomes):
            self._troubles.pop(lane, None)
        failed = [one for one in outcomes if one.error is not None and not one.permanent and not one.paced]
        if not failed or (lane not in self._troubles and len(self._troubles) >= _PLACES):
            return
        now = self._clock.now_ms()
        trouble = self._troubles.setdefault(lane, _Trouble(now))
        trouble.failures += len(failed)
        trouble.last, trouble.error = now, failed[-1].error or ""
        wait_ms = int(min(max((one.retry_after_s or 0.0 for one in failed), default=0.0), 86_400.0) * 1000)
        trouble.until = now + max(self._silence_ms, wait_ms + _LONG_MS)
        if len(trouble.answers) <= _ANSWERS:
            trouble.answers.update((owner, one.send.candidate.row.id) for one in failed)

    def given_up(self, owner: str, answer_id: str) -> None:
        """Record that an operator gave this answer up. A place with no other failed answer is no longer in trouble."""
        for lane, trouble in list(self._troubles.items()):
            if (owner, answer_id) not in trouble.answers or len(trouble.answers) > _ANSWERS:
                continue
            trouble.answers.discard((owner, answer_id))
            if not trouble.answers:
                del self._troubles[lane]

    def problems(self) -> dict[str, tuple[int, str]]:
        """Return, for each troubled channel, since when (epoch milliseconds) and why."""
        now = self._clock.now_ms()
        self._troubles = {lane: one for lane, one in self._troubles.items() if now < one.until}
        found: dict[str, list[tuple[Lane, _Trouble]]] = {}
        for lane, one in self._troubles.items():
            if one.lasting:
                found.setdefault(lane[0], []).append((lane, one))
        return {channel: (min(one.since for _, one in those), _why(those)) for channel, those in found.items()}


def _why(troubles: Sequence[tuple[Lane, _Trouble]]) -> str:
    told = [
        f"sends to {place[:64]} fail ({one.failures} in a row): {one.error.rstrip('.')}"
        for (_, place), one in troubles[:_NAMED]
    ]
    if len(troubles) > _NAMED:
        told.append(f"and sends to {len(troubles) - _NAMED} other places")
    return "; ".join(told)
