"""5,000 schedules through a year: three zones with both changes of the clock, two weeks of sleep, and a clock that is set back.

Each is compared with its own undisturbed year, which test_schedules.py compares with the calendar.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from daemon.core import schedules
from daemon.core.schedules import MISSED_MS, CatchUp, Times, fire, local_instant, next_after

DAY, HOUR, MINUTE = 86_400_000, 3_600_000, 60_000
BEGIN, END = local_instant("2026-01-01", "UTC"), local_instant("2027-01-01", "UTC")
ZONES = ("Europe/Vienna", "America/New_York", "Australia/Lord_Howe")
DAILY = ("30 2 * * *", "0 9 * * 1-5", "45 1 * * *")
# The machine sleeps from, to: over the change of Vienna's clock in March, and over Lord Howe's in October.
SLEEP = tuple(
    (local_instant(text, "UTC"), local_instant(text, "UTC") + 7 * DAY + 2 * MINUTE)
    for text in ("2026-03-25T12:00", "2026-09-30T01:31")
)
# When the clock is set back, and by how much.
SET_BACK = tuple((local_instant(f"2026-{month}-15T10:00", "UTC"), HOUR) for month in ("02", "05", "08", "11"))


@dataclass
class Watched:
    """A schedule, what it has fired, and whether it is over."""

    times: Times
    next_at: int | None
    fired: list[int] = field(default_factory=list[int])


def made(number: int, dice: random.Random) -> Times:
    rule = dice.choice(tuple(CatchUp))
    if number % 50 == 0:
        cron, zone = dice.choice(DAILY), dice.choice(ZONES)
        return Times(cron=cron, timezone=zone, catch_up=rule)
    if number % 7 == 0:
        return Times(at=dice.randrange(BEGIN + 1, END), catch_up=rule)
    count = dice.choice((None, None, dice.randrange(1, 8)))
    until = dice.choice((None, None, dice.randrange(BEGIN + 70 * DAY, END)))
    every = dice.randrange(10 * DAY, 60 * DAY)
    return Times(every_ms=every, start=BEGIN - dice.randrange(DAY), catch_up=rule, count=count, until=until)


def undisturbed(times: Times) -> list[int]:
    """Return every instant of the year."""
    found, at = list[int](), next_after(times, BEGIN)
    while at is not None and at < END:
        found.append(at)
        at = next_after(times, at)
    return found


def live(watched: list[Watched]) -> None:
    """Run the year as the daemon does: whoever is due is asked at its instant, or when the machine wakes up."""
    due = [(one.next_at, number) for number, one in enumerate(watched) if one.next_at is not None]
    heapq.heapify(due)
    steps_back = list(SET_BACK)
    while due and due[0][0] < END:
        now = next((wakes for sleeps, wakes in SLEEP if sleeps <= due[0][0] < wakes), due[0][0])
        if steps_back and now >= steps_back[0][0]:
            _, back = steps_back.pop(0)
            asked = [number for _, number in due]
            ask(watched, asked, now, due_before=now + 1)
            ask(watched, asked, now - back, due_before=0)  # everybody is asked again, and nobody fires
            due = [(at, number) for number in asked if (at := watched[number].next_at) is not None]
            heapq.heapify(due)
            continue
        _, number = heapq.heappop(due)
        one = watched[number]
        ask(watched, [number], now, due_before=now + 1)
        if one.next_at is not None:
            heapq.heappush(due, (one.next_at, number))


def ask(watched: list[Watched], numbers: list[int], now: int, *, due_before: int) -> None:
    for number in numbers:
        one = watched[number]
        if one.next_at is None:
            continue
        firing = fire(one.times, one.next_at, now, len(one.fired))
        assert firing.due == () or one.next_at < due_before, "nothing fires before its time"
        one.fired += firing.due
        one.next_at = firing.next_at


def expected(times: Times) -> Iterator[int]:
    """Yield what the catch-up rule leaves of the undisturbed year."""
    left = times.count
    instants = undisturbed(replace(times, count=None))
    for number, at in enumerate(instants):
        wakes = next((wakes for sleeps, wakes in SLEEP if sleeps <= at < wakes), at)
        following = instants[number + 1] if number + 1 < len(instants) else None
        is_last = following is None or following > wakes
        wanted = (
            times.catch_up is CatchUp.ALL or wakes == at
            or (is_last and (times.catch_up is CatchUp.LATEST or wakes - at <= MISSED_MS))
        )  # fmt: skip
        if wanted and (left is None or left > 0):
            left = None if left is None else left - 1
            yield at


def test_none_comes_twice_and_none_is_lost_beyond_its_catch_up_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    # The search for a cron expression's next time is pure, and many schedules here share theirs.
    monkeypatch.setattr(schedules, "_cron", functools.cache(schedules._cron))
    dice = random.Random(20260101)
    watched = [Watched(times, next_after(times, BEGIN)) for times in (made(number, dice) for number in range(5000))]
    live(watched)
    for one in watched:
        assert one.fired == list(expected(one.times)), one.times
    missed = sum(len(undisturbed(replace(one.times, count=None))) - len(one.fired) for one in watched)
    assert missed > 100, "the year had something to miss"


def test_ten_thousand_that_are_due_in_one_second_each_fire_once() -> None:
    crons = (Times(cron="* * * * *"), Times(cron="0 12 * * *", timezone="Europe/Vienna"))
    noon = local_instant("2026-07-01T12:00", "Europe/Vienna")
    all_ = [Times(at=noon), Times(every_ms=HOUR, start=noon - HOUR), *crons]
    found = [fire(all_[number % 4], noon, noon + number % 1000, 0) for number in range(10_000)]
    assert all(one.due == (noon,) for one in found)
    assert all(one.next_at is None or one.next_at > noon + 999 for one in found)
