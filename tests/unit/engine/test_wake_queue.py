"""Who gets the next container: round robin between groups, first come first served within one, nobody twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.wake_queue import WakeQueue


def drain(queue: WakeQueue) -> list[str]:
    found: list[str] = []
    while (key := queue.pop()) is not None:
        found.append(str(key))
    return found


def test_an_empty_queue_has_nobody() -> None:
    queue = WakeQueue()
    assert queue.pop() is None
    assert (len(queue), queue.keys()) == (0, ())
    queue.discard(SessionKey("a", "s"))


def test_a_busy_group_does_not_starve_another() -> None:
    queue = WakeQueue()
    for number in range(100):
        queue.add(SessionKey("busy", f"s{number}"))
    queue.add(SessionKey("quiet", "s"))
    assert drain(queue)[:3] == ["busy/s0", "quiet/s", "busy/s1"]


def test_within_a_group_it_is_first_come_first_served() -> None:
    queue = WakeQueue()
    for name in ("c", "a", "b"):
        queue.add(SessionKey("g", name))
    assert drain(queue) == ["g/c", "g/a", "g/b"]


def test_a_session_waits_once_and_keeps_its_place() -> None:
    queue = WakeQueue()
    assert queue.add(SessionKey("g", "a"))
    assert queue.add(SessionKey("g", "b"))
    assert not queue.add(SessionKey("g", "a"))
    assert len(queue) == 2
    assert drain(queue) == ["g/a", "g/b"]
    assert queue.add(SessionKey("g", "a")), "it left, so it may come again"


def test_a_session_that_leaves_is_not_served() -> None:
    queue = WakeQueue()
    for name in ("a", "b"):
        queue.add(SessionKey("g", name))
    queue.discard(SessionKey("g", "a"))
    queue.discard(SessionKey("g", "a"))
    assert SessionKey("g", "a") not in queue
    assert SessionKey("g", "b") in queue
    queue.discard(SessionKey("g", "b"))
    assert queue.pop() is None


def test_a_group_that_just_had_its_turn_goes_behind_one_that_waits() -> None:
    queue = WakeQueue()
    queue.add(SessionKey("x", "1"))
    queue.add(SessionKey("x", "2"))
    queue.add(SessionKey("y", "1"))
    assert str(queue.pop()) == "x/1"
    queue.add(SessionKey("x", "3"))
    assert drain(queue) == ["y/1", "x/2", "x/3"]


KEYS = st.builds(SessionKey, st.sampled_from("abcd"), st.sampled_from("123456"))
STEPS = st.lists(st.one_of(st.tuples(st.just("add"), KEYS), st.tuples(st.just("discard"), KEYS), st.tuples(st.just("pop"), KEYS)),
                 max_size=80)  # fmt: skip


@given(STEPS)
def test_between_two_turns_of_a_group_no_waiting_group_is_passed_over_twice(
    steps: list[tuple[str, SessionKey]],
) -> None:
    queue, waiting, passed = WakeQueue(), dict[SessionKey, None](), Counter[str]()
    for action, key in steps:
        if action == "add":
            assert queue.add(key) is (key not in waiting)
            waiting[key] = None
        elif action == "discard":
            queue.discard(key)
            waiting.pop(key, None)
            if not any(other.agent == key.agent for other in waiting):
                passed.clear()  # its turn is over; the others' bounds begin anew
        else:
            got = queue.pop()
            assert (got is None) is (not waiting)
            if got is None:
                continue
            first = next(other for other in waiting if other.agent == got.agent)
            assert got == first, "within its group, the one that came first"
            del waiting[got]
            passed[got.agent] = 0
            groups = {other.agent for other in waiting} - {got.agent}
            passed.update(groups)
            assert all(passed[group] <= 4 for group in groups), "four groups: at most all others come before one"
        assert set(queue.keys()) == set(waiting)
        assert len(queue) == len(waiting)
        assert all(key in queue for key in waiting)


def test_a_group_that_may_not_start_keeps_its_place_and_holds_up_nobody() -> None:
    queue = WakeQueue()
    for agent, session in (("a", "1"), ("a", "2"), ("b", "1")):
        queue.add(SessionKey(agent, session))
    assert queue.pop(lambda agent: agent != "a") == SessionKey("b", "1")
    assert queue.pop(lambda agent: agent != "a") is None
    assert queue.groups() == ("a",)
    assert queue.pop() == SessionKey("a", "1")
