"""Concurrency limits of sends: who gets a slot, who waits, and that no slot is ever lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from daemon.engine.send_slots import SendSlots, SlotLimits

A, B = ("web", "a"), ("web", "b")


def slots(channel: int = 100, place: int = 4, session: int = 2) -> SendSlots[str]:
    return SendSlots(SlotLimits(channel, place, session))


def test_a_session_a_place_and_a_channel_have_a_limit_each() -> None:
    made = slots(channel=8)
    assert [made.take("s", A) for _ in range(3)] == [True, True, False]
    assert [made.take("t", A) for _ in range(2)] == [True, True]
    assert not made.take("u", A)
    assert made.full("u") == {A}
    assert made.take("u", B)
    assert made.in_use("web") == 5


def test_a_freed_slot_goes_to_who_has_waited_longest_and_to_nobody_who_came_later() -> None:
    made = slots(place=1)
    assert made.take("s", A)
    assert not made.take("t", A)
    assert not made.take("u", A)
    assert not made.take("s", A)
    assert made.give_back("s", A) == ["t"]
    assert not made.take("s", A)
    assert made.take("t", A)
    assert made.give_back("t", A) == ["u"]


def test_a_session_at_its_own_limit_lets_the_next_one_have_the_slot() -> None:
    made = slots(place=3, session=2)
    assert made.take("s", A)
    assert made.take("s", A)
    assert made.take("t", A)
    assert not made.take("s", A)
    assert not made.take("u", A)
    assert made.give_back("t", A) == ["u"]


def test_what_was_granted_and_not_taken_goes_on_to_the_next() -> None:
    made = slots(place=1)
    assert made.take("s", A)
    assert not made.take("t", A)
    assert not made.take("u", A)
    assert made.give_back("s", A) == ["t"]
    assert made.forgo("t") == ["u"]
    assert made.take("u", A)
    assert made.give_back("u", A) == []
    assert made.in_use("web") == 0


def test_who_waits_for_a_place_that_has_room_by_now_is_granted_it_at_once() -> None:
    made = slots(place=1)
    assert made.take("s", A)
    assert made.full("t") == {A}
    assert made.give_back("s", A) == []
    assert made.wait("t", A) == ["t"]
    assert made.take("t", A)


def test_the_last_quarter_of_a_channel_is_for_places_without_a_send() -> None:
    made = slots(channel=8, place=100, session=100)
    assert [made.take("s", A) for _ in range(7)] == [True] * 6 + [False]
    assert made.take("t", B)
    assert not made.take("t", B)
    assert made.take("u", ("web", "c"))


def test_a_place_that_failed_slowly_gets_one_send_at_a_time_until_one_succeeds() -> None:
    made = slots(place=4, session=4)
    assert all(made.take("s", A) for _ in range(4))
    for _ in range(4):
        made.give_back("s", A, slow=True)
    assert made.take("s", A)
    assert not made.take("s", A)
    assert not made.take("t", A)
    assert made.give_back("s", A, slow=False) == ["s", "t"]
    assert made.take("s", A)
    assert made.take("t", A)
    assert made.take("t", A)


def test_however_many_places_hang_half_of_the_channel_is_for_the_others() -> None:
    made = slots(channel=8, place=4, session=4)
    places = [("web", str(number)) for number in range(20)]
    for place in places:
        assert made.take("s", place)
        made.give_back("s", place, slow=True)
    assert sum(made.take("s", place) for place in places) == 4
    assert made.take("t", A)
    assert made.take("t", B)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_in_whatever_order_no_slot_is_lost_and_nobody_who_can_be_served_waits(seed: int) -> None:
    rng = random.Random(seed)
    limits = SlotLimits(channel=rng.randint(1, 9), place=rng.randint(1, 5), session=rng.randint(1, 3))
    made: SendSlots[str] = SendSlots(limits)
    held: list[tuple[str, tuple[str, str]]] = []
    sessions, lanes = [f"s{n}" for n in range(5)], [("web", f"p{n}") for n in range(4)]
    woken: list[str] = []
    for _ in range(3000):
        session, lane = rng.choice(sessions), rng.choice(lanes)
        match rng.randrange(4):
            case 0 | 1:
                if made.take(session, lane):
                    held.append((session, lane))
            case 2 if held:
                mine = held.pop(rng.randrange(len(held)))
                woken += made.give_back(*mine, slow=rng.choice([None, True, False]))
            case _:
                woken += made.forgo(session)
        assert made.in_use("web") <= limits.channel
        by_place = Counter(one for _, one in held)
        assert all(count <= limits.place for count in by_place.values())
        assert all(count <= limits.session for count in Counter(held).values())
    while held:
        made.give_back(*held.pop(), slow=False)
    for session in sessions:
        made.forgo(session)
    for _ in range(len(sessions) * len(lanes)):
        for session in sessions:
            made.forgo(session)
    assert made.in_use("web") == 0
