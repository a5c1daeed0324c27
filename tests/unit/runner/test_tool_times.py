"""When a turn's tools began and ended."""

from dataclasses import dataclass

from container_runner.tool_times import MAX_CALLS, ToolTimes, calls_text
from schema.rows import ToolCall


@dataclass
class Clock:
    now: int = 0

    def __call__(self) -> int:
        self.now += 10
        return self.now


def test_one_tool_ends_when_the_next_begins_and_the_last_with_the_turn() -> None:
    times = ToolTimes(lambda: clock.now)
    clock = Clock()
    for name, at in (("search", 10), ("read", 20), (None, 35), ("write", 40)):
        clock.now = at
        times.one(name)
    clock.now = 50
    assert times.calls() == (ToolCall("search", 10, 20), ToolCall("read", 20, 35), ToolCall("write", 40, 50))


def test_calls_with_ids_overlap_and_take_the_place_of_the_declared_tool() -> None:
    clock = Clock()
    times = ToolTimes(lambda: clock.now)
    clock.now = 10
    times.several({"a": "search"})
    times.one("search")
    clock.now = 20
    times.several({"a": "search", "b": "search"})
    clock.now = 30
    times.several({"b": "search"})
    times.one(None)
    clock.now = 40
    times.several({})
    assert times.calls() == (ToolCall("search", 10, 30), ToolCall("search", 20, 40))


def test_a_clock_that_is_set_back_makes_no_negative_time() -> None:
    clock = Clock(100)
    times = ToolTimes(lambda: clock.now)
    times.one("search")
    clock.now = 50
    assert times.calls() == (ToolCall("search", 100, 100),)


def test_the_first_hundred_are_kept() -> None:
    times = ToolTimes(Clock())
    for number in range(3 * MAX_CALLS):
        times.one(f"tool {number}")
    calls = times.calls()
    assert [call.name for call in calls] == [f"tool {number}" for number in range(MAX_CALLS)]


def test_the_text_is_small_and_can_be_stored_whatever_the_names_are() -> None:
    assert calls_text(()) is None
    assert calls_text([ToolCall("\ud800" + "x" * 500, 1, 2)]) == f'[["\\ufffd{"x" * 99}", 1, 2]]'
