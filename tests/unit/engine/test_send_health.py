"""Which places take nothing: when that is worth a word, and when it is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.core.delivery_plan import Candidate, Send
from daemon.engine.hand_over import Outcome
from daemon.engine.send_health import SendHealth
from schema.rows import Address, MessageOut
from tests.support.clock import START, MovedClock

SEND = Send(Candidate(MessageOut("o1", 1, "chat", "", "{}"), from_host=False, state=None), Address("web", "hook"))
FAILED = Outcome(SEND, sent=True, error_code="DELIVERY_TRANSIENT", error="hook (host): ConnectTimeout.")
FINE = Outcome(SEND, sent=True)
LANE = ("web", "hook")


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def health(clock: MovedClock) -> SendHealth:
    return SendHealth(clock, retry_max_s=3600, send_timeout_s=30)


def test_one_failure_is_no_news_and_five_in_a_row_name_place_cause_and_time(health: SendHealth) -> None:
    health.note(LANE, [FAILED])
    assert health.problems() == {}
    for _ in range(4):
        health.note(LANE, [FAILED])
    assert health.problems() == {"web": (START, "sends to hook fail (5 in a row): hook (host): ConnectTimeout")}


def test_two_failures_a_minute_apart_are_worth_a_word_too(health: SendHealth, clock: MovedClock) -> None:
    health.note(LANE, [FAILED])
    clock.advance(60)
    health.note(LANE, [FAILED])
    assert "2 in a row" in health.problems()["web"][1]


def test_a_success_at_the_place_ends_it_and_one_elsewhere_does_not(health: SendHealth) -> None:
    health.note(LANE, [FAILED] * 5)
    health.note(("web", "other"), [FINE])
    assert "web" in health.problems()
    health.note(LANE, [FINE])
    assert health.problems() == {}


def test_it_ends_when_nothing_is_tried_there_any_more_but_not_before_the_next_attempt(
    health: SendHealth, clock: MovedClock
) -> None:
    health.note(LANE, [FAILED] * 4 + [replace(FAILED, retry_after_s=50_000.0)])
    clock.advance(50_000)
    assert "web" in health.problems()
    clock.advance(100)
    assert health.problems() == {}


def test_what_a_receiver_refuses_for_good_is_a_dead_letter_and_no_trouble_of_the_channel(health: SendHealth) -> None:
    health.note(LANE, [replace(FAILED, permanent=True)] * 9)
    health.note(LANE, [Outcome(SEND, sent=False)] * 9)
    assert health.problems() == {}


def test_of_many_places_a_few_are_named(health: SendHealth) -> None:
    for number in range(6):
        health.note(("web", f"p{number}"), [FAILED] * 5)
    why = health.problems()["web"][1]
    assert "sends to p2 fail" in why
    assert why.endswith("and sends to 3 other places")


def test_it_ends_when_every_answer_that_failed_there_was_given_up(health: SendHealth) -> None:
    health.note(LANE, [FAILED] * 5, "a/one")
    health.note(LANE, [FAILED], "a/two")
    health.given_up("a/one", "another")
    health.given_up("a/one", "o1")
    assert "web" in health.problems(), "the other session's answer of the same id still fails"
    health.given_up("a/two", "o1")
    assert health.problems() == {}
    health.note(LANE, [FAILED], "a/one")
    assert health.problems() == {}, "what fails next is counted from the beginning"
