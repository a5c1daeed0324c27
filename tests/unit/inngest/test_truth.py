"""The truth order: trace, terminal history, finish, list; and why a list entry is not believed."""

from dataclasses import replace

import pytest

from daemon.inngest.plan import DEFAULT_AGE_MS
from daemon.inngest.rows import Activity, Ending, Function, Listed, Run, RunSpan
from daemon.inngest.truth import Confidence, Source, judge, listed_running
from daemon.inngest.values import Status
from schema.ids import new_id

NOW = 1_772_652_583_000
HOUR = 3_600_000
START = NOW - 2 * HOUR
RUNNING = Run(
    new_id(START), Function("f", "f"), Listed(200, START, START, None), activity=Activity(last_at=START, steps=2)
)
DONE = Ending("FunctionCompleted", Status.COMPLETED, START + 5)


def span(status: Status) -> RunSpan:
    return RunSpan("d", status, START, None, {})


def verdict(run: Run) -> tuple[Status, Source, tuple[str, ...], Confidence]:
    found = judge(run, NOW, DEFAULT_AGE_MS)
    return found.status, found.source, found.reasons, found.confidence


def test_the_trace_comes_before_history_and_history_before_the_finish_and_the_list_last() -> None:
    run = replace(RUNNING, finish=Status.CANCELLED)
    assert verdict(run)[:2] == (Status.CANCELLED, Source.FINISH)
    run = replace(run, endings=(DONE,))
    assert verdict(run)[:2] == (Status.COMPLETED, Source.HISTORY)
    run = replace(run, spans=(span(Status.FAILED),))
    assert verdict(run)[:2] == (Status.FAILED, Source.TRACE)
    assert judge(run, NOW, DEFAULT_AGE_MS).conflict
    assert verdict(replace(RUNNING, listed=Listed(300, START, START, NOW)))[:2] == (Status.COMPLETED, Source.LIST)


def test_of_several_endings_the_newest_counts() -> None:
    run = replace(
        RUNNING, endings=(DONE, Ending("FunctionFailed", Status.FAILED, START + 9), replace(DONE, at=START + 1))
    )
    assert verdict(run)[0] is Status.FAILED


def test_a_detail_that_ended_makes_a_running_list_entry_certainly_stale() -> None:
    assert verdict(replace(RUNNING, endings=(DONE,)))[2:] == (("list_and_detail_disagree",), Confidence.CERTAIN)


def test_two_lists_that_disagree_are_told() -> None:
    found = judge(
        replace(RUNNING, listed=Listed(500, START, START, NOW), spans=(span(Status.RUNNING),)), NOW, DEFAULT_AGE_MS
    )
    assert found.reasons == ("lists_disagree",)
    assert found.status is Status.CANCELLED
    found = judge(replace(RUNNING, spans=(span(Status.COMPLETED),)), NOW, DEFAULT_AGE_MS)
    assert set(found.reasons) == {"list_and_detail_disagree", "lists_disagree"}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (replace(RUNNING, listed=Listed(200, START, START, START + 1001)), "ended_at_while_running"),
        (replace(RUNNING, activity=Activity(START, errors=("Unable to reach SDK URL",), steps=1)), "sdk_unreachable"),
        (
            replace(RUNNING, activity=Activity(START, errors=("x: EOF writing request to SDK",), steps=1)),
            "sdk_unreachable",
        ),
        (
            replace(RUNNING, activity=Activity(START, errors=("error finalizing run",))),
            "finalization_failed_without_execution",
        ),
    ],
)
def test_a_run_that_cannot_go_on_is_stale_with_high_confidence(run: Run, reason: str) -> None:
    assert verdict(run)[2:] == ((reason, "silent"), Confidence.HIGH)


def test_silence_alone_is_a_weaker_reason_and_a_sign_of_life_none() -> None:
    assert verdict(RUNNING)[2:] == (("silent",), Confidence.MEDIUM)
    assert verdict(replace(RUNNING, activity=Activity(NOW - 1)))[2:] == ((), Confidence.NONE)
    assert verdict(replace(RUNNING, activity=Activity(START, waits_until=NOW + 1)))[2:] == ((), Confidence.NONE)
    assert verdict(replace(RUNNING, activity=Activity(START, waits_until=NOW - 1)))[2] == ("silent",)


def test_finalization_that_failed_after_an_execution_is_not_that_reason() -> None:
    run = replace(RUNNING, activity=Activity(START, errors=("error finalizing run",), steps=1))
    assert verdict(run)[2] == ("silent",)


def test_either_list_shows_a_run_as_running() -> None:
    ended = replace(RUNNING, listed=Listed(300, START, START, NOW))
    assert listed_running(RUNNING)
    assert not listed_running(ended)
    assert listed_running(replace(ended, spans=(span(Status.RUNNING),)))
    assert listed_running(replace(RUNNING, listed=Listed(0, START, START, None)))


def test_a_run_starts_when_its_list_says_or_its_span_or_its_id() -> None:
    assert RUNNING.started_at == START
    assert replace(RUNNING, listed=Listed(200, START - 7, None, None)).started_at == START - 7
    assert (
        replace(RUNNING, listed=None, spans=(replace(span(Status.RUNNING), start_at=START - 9),)).started_at
        == START - 9
    )
    assert replace(RUNNING, listed=None).started_at == START
