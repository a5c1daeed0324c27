"""The even load and its account: when what is sent, and that nothing lost or doubled goes unnoticed."""

import json

import pytest

from bench.load import Account, answered, check, schedule
from bench.stage import BenchFailed


def test_every_session_is_asked_at_its_rate_and_they_take_turns() -> None:
    assert schedule(2, 1.0, 2.0) == [(0.0, 0), (0.5, 1), (1.0, 0), (1.5, 1)]
    plan = schedule(50, 1.0, 10)
    assert len(plan) == 500
    assert plan == sorted(plan)
    assert {session for _, session in plan} == set(range(50))
    assert len(schedule(3, 4.0, 2.0)) == 24


def account(due: dict[str, float], answers: dict[str, list[float]], refused: list[str] | None = None) -> Account:
    return Account(due, answers, refused or [])


def test_time_runs_from_when_a_message_was_due() -> None:
    found = account({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": [1.5], "b": [2.25, 9.0]})
    assert sorted(found.latencies()) == [250.0, 500.0]
    assert found.lost() == ["c"]
    assert found.doubled() == ["b"]


def test_an_answer_to_nobody_is_no_latency() -> None:
    assert account({}, {"stranger": [1.0]}).latencies() == []


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (account({"a": 0.0}, {}), "1 lost (a)"),
        (account({"a": 0.0}, {"a": [1.0, 2.0]}), "1 answered twice (a)"),
        (account({"a": 0.0}, {"a": [1.0]}, ["b: disk full"]), "1 refused (b: disk full)"),
    ],
)
def test_what_is_not_answered_exactly_once_breaks_the_benchmark(bad: Account, named: str) -> None:
    with pytest.raises(BenchFailed) as caught:
        check(bad, "load")
    assert named in str(caught.value)


def test_a_clean_account_passes() -> None:
    check(account({"a": 0.0}, {"a": [1.0]}), "load")


def test_an_answer_counts_for_every_message_that_it_names() -> None:
    assert answered("a", json.dumps({"text": "x"})) == {"a"}
    assert answered("a", json.dumps({"text": "x", "answers": ["a", "b"]})) == {"a", "b"}
    assert answered(None, json.dumps("text")) == set()
