"""Concurrency limits for sends, per channel, per place and per session, and the order in which free slots are granted.

A row is intended only when its send has a slot, so a row that waits for a slot is never in doubt. A freed slot is granted to
the session that has waited longest, at once and under the same lock, so that a later session cannot take it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from schema.frozen import frozen

_S = TypeVar("_S")

Lane = tuple[str, str]  # channel and place, for example webhook and a hook's name
SLOW_S: Final = 1.0  # seconds; a failure that took longer than this occupies slots that others need
_REMEMBERED: Final = 1000  # number of idle lanes whose last failure is remembered


@frozen
class SlotLimits:
    """The most sends under way over one channel, to one place, and from one session to one place."""

    channel: int = 100
    place: int = 16
    session: int = 8


@dataclass(slots=True)
class _Lane(Generic[_S]):
    in_use: int = 0  # slots that are taken or granted
    slow: bool = False  # the last send failed slowly: allow one send at a time until one succeeds
    of: Counter[_S] = field(default_factory=Counter[_S])
    granted: Counter[_S] = field(default_factory=Counter[_S])
    waiting: dict[_S, None] = field(default_factory=dict[_S, None])  # in the order of arrival


class SendSlots(Generic[_S]):
    """Thread-safe. `_S` is a session; methods that free a slot return the sessions that were granted one."""

    def __init__(self, limits: SlotLimits) -> None:
        self._limits = limits
        self._gate = threading.Lock()
        self._lanes: dict[Lane, _Lane[_S]] = {}

    def take(self, session: _S, lane: Lane) -> bool:
        """Take a slot, preferably one already granted, and return True. If none is free, queue the session and return False."""
        with self._gate:
            state = self._lanes.setdefault(lane, _Lane[_S]())
            if state.granted[session] > 0:
                _less(state.granted, session)
                return True
            if self._free(lane, state, session):
                state.in_use += 1
                state.of[session] += 1
                return True
            state.waiting[session] = None
            return False

    def wait(self, session: _S, lane: Lane) -> list[_S]:
        """Queue for a slot in a lane that was full a moment ago. If one is free by now, grant it at once."""
        with self._gate:
            self._lanes.setdefault(lane, _Lane[_S]()).waiting[session] = None
            return self._grant(lane[0])

    def full(self, session: _S) -> frozenset[Lane]:
        """Return the lanes in which `take` would fail now."""
        with self._gate:
            return frozenset(
                lane for lane, state in self._lanes.items()
                if state.granted[session] <= 0 and not self._free(lane, state, session)
            )  # fmt: skip

    def give_back(self, session: _S, lane: Lane, *, slow: bool | None = None) -> list[_S]:
        """Free a slot. `slow`: True after a slow failure, False after a success, None otherwise."""
        with self._gate:
            state = self._lanes[lane]
            state.in_use -= 1
            _less(state.of, session)
            if slow is not None:
                state.slow = slow
            return self._grant(lane[0])

    def forgo(self, session: _S) -> list[_S]:
        """Give up the slots that were granted to this session but not taken: it has nothing to send, or may not send."""
        woken: list[_S] = []
        with self._gate:
            for lane, state in tuple(self._lanes.items()):
                if (unused := state.granted[session]) > 0:
                    _less(state.granted, session, unused)
                    _less(state.of, session, unused)
                    state.in_use -= unused
                    woken += self._grant(lane[0])
        return woken

    def in_use(self, channel: str) -> int:
        """Return how many slots of this channel are taken or granted."""
        with self._gate:
            return self._used(channel)

    def _grant(self, channel: str) -> list[_S]:
        """Grant free slots to the waiting sessions, one each in turn, until no more can be granted."""
        woken: list[_S] = []
        for lane, state in tuple(self._lanes.items()):
            if lane[0] != channel:
                continue
            granted = False
            while (session := next(self._entitled(lane, state), None)) is not None:
                del state.waiting[session]
                state.in_use += 1
                state.of[session] += 1
                state.granted[session] += 1
                woken.append(session)
                granted = True
            if not state.in_use and not state.waiting and (not state.slow or len(self._lanes) > _REMEMBERED):
                del self._lanes[lane]
            elif granted:
                self._lanes[lane] = self._lanes.pop(
                    lane
                )  # move it to the end, so that another lane comes first next time
        return woken

    def _entitled(self, lane: Lane, state: _Lane[_S]) -> Iterator[_S]:
        return (session for session in state.waiting if self._free(lane, state, session))

    def _free(self, lane: Lane, state: _Lane[_S], session: _S) -> bool:
        """Return whether this session may have one more slot in this lane."""
        limits, used = self._limits, self._used(lane[0])
        if state.in_use >= (1 if state.slow else limits.place) or state.of[session] >= limits.session:
            return False
        if state.in_use and used >= max(1, limits.channel * 3 // 4):
            return False  # the last quarter is reserved for places without a send under way
        if state.slow and self._used_by_slow(lane[0]) >= max(1, limits.channel // 2):
            return False  # slow places may use at most half of the channel's slots
        return used < limits.channel

    def _used(self, channel: str) -> int:
        return sum(state.in_use for lane, state in self._lanes.items() if lane[0] == channel)

    def _used_by_slow(self, channel: str) -> int:
        return sum(state.in_use for lane, state in self._lanes.items() if lane[0] == channel and state.slow)


def _less(counter: Counter[_S], session: _S, by: int = 1) -> None:
    """Count down, and forget a session at zero: a lane may outlive it."""
    counter[session] -= by
    if counter[session] <= 0:
        del counter[session]
