"""A clock that stands still until the test moves it."""

from __future__ import annotations

from typing import Final

START: Final = 1_800_000_000_000


class MovedClock:
    """`advance` lets time pass; `jump` sets the wall clock alone, as an operator does; `sleep` is a suspended machine."""

    def __init__(self, now_ms: int = START, *, up_s: float = 1000.0) -> None:
        self._now_ms = now_ms
        self._monotonic = up_s
        self._slept = 0.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now_ms += int(seconds * 1000)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        self._now_ms += int(seconds * 1000)

    def slept_s(self) -> float:
        return self._slept

    def sleep(self, seconds: float) -> None:
        self._now_ms += int(seconds * 1000)
        self._slept += seconds
