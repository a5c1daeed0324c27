"""Which runs a sweep would end and what forbids it."""

from dataclasses import replace

import pytest

from daemon.inngest.plan import (
    DEFAULT_AGE_MS,
    MIN_AGE_MS,
    Held,
    Scope,
    check_scope,
    in_scope,
    make_plan,
    refusal,
)
from daemon.inngest.rows import Activity, Ending, Function, Listed, Registered, Run, RunSpan
from daemon.inngest.values import Status
from schema.errors import ClawbusError
from schema.ids import new_id

NOW = 1_772_652_583_000
MINUTE = 60_000
TRIAGE = Function("f-1", "check/o11y-triage", "bus-check-o11y-triage", "bus")
DEPLOY = Function("f-2", "deploy/site", "bus-deploy-site", "bus")


def run(age: int = 60 * MINUTE, function: Function = TRIAGE, last: int | None = None) -> Run:
    start = NOW - age
    return Run(
        new_id(start),
        function,
        Listed(200, start, start, None),
        Registered(b"", "", "f-1", 1, b"", None),
        activity=Activity(last_at=last if last is not None else start),
    )


def held(one: Run, scope: Scope | None = None) -> Held | None:
    plan = make_plan([one], scope or Scope(), NOW)
    return plan.held[0][1] if plan.held else None


def test_an_old_silent_run_is_a_candidate_and_a_young_an_active_and_a_waiting_one_are_not() -> None:
    assert held(run()) is None
    assert held(run(29 * MINUTE)) is Held.YOUNG
    assert held(run(60 * MINUTE, last=NOW - 29 * MINUTE)) is Held.ACTIVE
    assert held(replace(run(), activity=Activity(NOW - 50 * MINUTE, waits_until=NOW + 1))) is Held.WAITING
    assert held(replace(run(), activity=Activity(NOW - 50 * MINUTE, waits_until=NOW - 1))) is None


def test_a_wait_does_not_hold_a_run_that_is_known_to_have_ended() -> None:
    waiting = replace(run(), activity=Activity(NOW - 50 * MINUTE, waits_until=NOW + 1))
    assert held(replace(waiting, finish=Status.FAILED)) is None


def test_scope_and_exclusion_are_asked_first() -> None:
    one = run(function=DEPLOY)
    assert held(one, Scope(functions=("check/*",))) is Held.OUT_OF_SCOPE
    assert held(one, Scope(exclude=(one.key.lower(),))) is Held.EXCLUDED


def test_a_run_that_no_list_shows_as_running_is_passed_over() -> None:
    plan = make_plan([replace(run(), listed=Listed(300, 1, 1, 1))], Scope(), NOW)
    assert (plan.candidates, plan.held) == ((), ())


@pytest.mark.parametrize(
    "name", ["check/o11y-triage", "bus-check-o11y-triage", "check-o11y-triage", "f-1", "check/*", "*"]
)
def test_a_function_is_meant_by_any_of_its_names(name: str) -> None:
    assert in_scope(Scope(functions=(name,)), TRIAGE)
    assert not in_scope(Scope(functions=("other", "check")), TRIAGE)


@pytest.mark.parametrize(
    ("evidence", "status", "history", "finish"),
    [
        ({}, Status.CANCELLED, True, True),
        (
            {"endings": (Ending("FunctionCompleted", Status.COMPLETED, NOW - 50 * MINUTE),)},
            Status.COMPLETED,
            False,
            True,
        ),
        (
            {"endings": (Ending("FunctionFailed", Status.FAILED, 1),), "finish": Status.FAILED},
            Status.FAILED,
            False,
            False,
        ),
        ({"finish": Status.COMPLETED}, Status.COMPLETED, True, False),
        ({"spans": (RunSpan("d", Status.FAILED, 1, None, {}),)}, Status.FAILED, True, True),
        ({"finish": Status.OVERFLOWED}, Status.FAILED, True, False),
    ],
)
def test_what_is_missing_is_added_and_the_status_is_the_evidence_s(
    evidence: dict[str, object], status: Status, history: bool, finish: bool
) -> None:
    (candidate,) = make_plan([replace(run(), **evidence)], Scope(), NOW).candidates
    assert (candidate.status, candidate.add_history, candidate.add_finish) == (status, history, finish)
    assert candidate.set_listed


def test_a_list_that_is_right_already_is_not_touched_and_an_open_span_is_ended() -> None:
    spans = (RunSpan("a", Status.RUNNING, 1, None, {}), RunSpan("b", Status.FAILED, 1, None, {}))
    one = replace(run(), listed=Listed(400, NOW - 60 * MINUTE, NOW - 60 * MINUTE, NOW), spans=spans)
    (candidate,) = make_plan([one], Scope(), NOW).candidates
    assert not candidate.set_listed
    assert candidate.extend == spans[:1]


def code(scope: Scope, *, apply: bool = True) -> str | None:
    try:
        check_scope(scope, [TRIAGE, DEPLOY], apply=apply)
    except ClawbusError as error:
        return error.code
    return None


def test_a_scope_that_is_wrong_in_itself_is_refused() -> None:
    good = Scope(functions=("check/*",))
    assert code(good) is None
    assert code(replace(good, older_than_ms=MIN_AGE_MS - 1)) == "SWEEP_AGE_TOO_YOUNG"
    assert code(replace(good, older_than_ms=MIN_AGE_MS)) is None
    assert code(replace(good, exclude=("nonsense",))) == "INVALID_SWEEP_SCOPE"
    assert code(Scope(functions=("check/*", "chek"))) == "INVALID_SWEEP_SCOPE"
    assert code(Scope(functions=("nothing*",)), apply=False) == "INVALID_SWEEP_SCOPE"


def test_a_sweep_must_name_its_functions_and_a_pattern_may_not_mean_all_of_them() -> None:
    assert code(Scope()) == "INVALID_SWEEP_SCOPE"
    assert code(Scope(), apply=False) is None
    assert code(Scope(functions=("*",))) == "SWEEP_SCOPE_TOO_BROAD"
    assert code(Scope(functions=("check/*", "d*"))) == "SWEEP_SCOPE_TOO_BROAD"
    assert code(Scope(functions=("*",)), apply=False) is None
    assert code(Scope(functions=("check/o11y-triage", "deploy/site"))) is None, "each by its name"
    check_scope(Scope(functions=("*",)), [TRIAGE], apply=True)  # the only one there is


def test_a_candidate_without_a_function_run_and_too_many_candidates_are_refused() -> None:
    runs = [run(), run(61 * MINUTE)]
    scope = Scope(older_than_ms=DEFAULT_AGE_MS, max_runs=2)
    assert refusal(make_plan(runs, scope, NOW), scope) is None
    narrow = replace(scope, max_runs=1)
    assert getattr(refusal(make_plan(runs, narrow, NOW), narrow), "code", None) == "SWEEP_SCOPE_TOO_BROAD"
    odd = replace(run(), registered=None)
    error = refusal(make_plan([*runs, odd], narrow, NOW), narrow)
    assert error is not None
    assert error.code == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    assert f"--exclude {odd.key}" in error.hint
