"""When each session is looked at: by the wall clock, even if somebody sets it back or forward."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.session_key import SessionKey
from daemon.engine import sweep_schedule
from daemon.engine.sweep_schedule import Schedule

A, B, C = SessionKey("g", "a"), SessionKey("g", "b"), SessionKey("g", "c")


@dataclass
class MovedClock:
    """A clock that stands until a test moves it."""

    now: int = 1_000_000

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000

    def slept_s(self) -> float:
        return 0.0


def make() -> tuple[Schedule, MovedClock]:
    clock = MovedClock()
    return Schedule(clock), clock


def test_a_session_is_due_at_its_instant_and_once() -> None:
    schedule, clock = make()
    schedule.at(A, clock.now + 10)
    assert schedule.pop_due() == []
    clock.now += 9
    assert schedule.pop_due() == []
    clock.now += 1
    assert schedule.pop_due() == [A]
    assert schedule.pop_due() == []
    assert len(schedule) == 0


def test_the_earliest_wish_counts_and_a_later_one_changes_nothing() -> None:
    schedule, clock = make()
    start = clock.now
    for when in (50, 20, 80, 20):
        schedule.at(A, start + when)
    clock.now = start + 20
    assert schedule.pop_due() == [A]
    clock.now = start + 1000
    assert schedule.pop_due() == [], "the earlier wishes are gone"


def test_a_far_time_that_is_named_again_and_again_costs_no_memory() -> None:
    schedule, clock = make()
    far = clock.now + 10**10
    for _ in range(1000):
        for one in (A, B):
            schedule.at(one, far)
            schedule.now(one)
        assert sorted(schedule.pop_due()) == [A, B]
    schedule.at(A, far)
    assert len(schedule._heap) < 100
    clock.now = far
    assert schedule.pop_due() == [A]


def test_sessions_come_in_the_order_of_their_instants() -> None:
    schedule, clock = make()
    for key, when in ((A, 30), (B, 10), (C, 20)):
        schedule.at(key, clock.now + when)
    clock.now += 60_000
    assert schedule.pop_due() == [B, C, A]


def test_after_its_turn_a_session_may_be_scheduled_for_an_earlier_time() -> None:
    schedule, clock = make()
    schedule.at(A, clock.now)
    assert schedule.pop_due() == [A]
    schedule.at(A, clock.now - 500)
    assert schedule.pop_due() == [A]


def test_a_clock_that_jumps_back_delays_and_loses_nothing() -> None:
    schedule, clock = make()
    schedule.at(A, clock.now + 10)
    clock.now -= 3_600_000
    assert schedule.pop_due() == []
    clock.now += 3_600_010
    assert schedule.pop_due() == [A]


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(-50, 50), st.integers(0, 30)), max_size=60))
def test_whoever_is_scheduled_is_told_once_at_or_after_the_earliest_wish(
    steps: list[tuple[SessionKey, int, int]],
) -> None:
    schedule, clock = make()
    wanted: dict[SessionKey, int] = {}
    for key, ahead, wait in steps:
        schedule.at(key, clock.now + ahead)
        wanted[key] = min(wanted.get(key, clock.now + ahead), clock.now + ahead)
        clock.now += wait
        expected = sorted(other for other, when in wanted.items() if when <= clock.now)
        assert sorted(schedule.pop_due()) == expected
        for other in expected:
            del wanted[other]
        assert len(schedule) == len(wanted)


@pytest.mark.anyio
async def test_the_loop_tells_at_once_what_is_due_and_is_woken_by_an_earlier_wish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep_schedule, "_LONGEST_SLEEP_S", 3600.0)  # so it must be woken
    clock, due = MovedClock(), list[SessionKey]()
    told = anyio.Event()

    def on_due(key: SessionKey) -> None:
        due.append(key)
        told.set()

    schedule = Schedule(clock)
    schedule.at(A, clock.now + 3_600_000)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(schedule.run, on_due)
            await anyio.wait_all_tasks_blocked()
            assert due == []
            schedule.at(B, clock.now)
            await told.wait()
            tasks.cancel_scope.cancel()
    assert due == [B]
    assert len(schedule) == 1
