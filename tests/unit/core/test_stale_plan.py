"""Which runs may be swept and as what, and which scopes no sweep may have: the gates alone, without a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from daemon.core.repair_errors import (
    StaleAliveError,
    StaleInconsistentError,
    StaleScopeEmptyError,
    StaleScopeInvalidError,
    StaleScopeTooBroadError,
    StaleTooYoungError,
)
from daemon.core.run_state import Confidence, Life, Reason, RunEvidence, RunStatus, Source, Verdict
from daemon.core.stale_plan import Scope, Seen, SkipReason, check_plan, check_scope, in_scope, plan
from schema.errors import InvalidNameError
from schema.rows import MessageStatus

NOW: Final = 10_000_000_000
EVIDENCE: Final = RunEvidence(
    "m", "I1", NOW, MessageStatus.PENDING, life=Life.GONE, claimed=True, attempted=True, claimed_at=NOW - 3_600_000
)
GHOST: Final = Verdict(
    RunStatus.ORPHANED, RunStatus.RUNNING, True, (Reason("CONTAINER_GONE", "gone"),), Confidence.HIGH, Source.TRACE,
    lacks=(Source.HISTORY, Source.FINISH), since=NOW - 1000,
)  # fmt: skip
DONE: Final = replace(
    GHOST, status=RunStatus.COMPLETED, decided_by=Source.FINISH, lacks=(Source.HISTORY, Source.FINISH, Source.LIST)
)
SCOPE: Final = Scope(agent="echo")


def seen(verdict: Verdict = GHOST, **evidence: object) -> Seen:
    return Seen("echo", "s", replace(EVIDENCE, **evidence), verdict)


@pytest.mark.parametrize(
    ("run", "gate"),
    [
        (seen(life=Life.ALIVE), SkipReason.ALIVE),
        (replace(seen(), session_alive=True), SkipReason.ALIVE),
        (seen(life=Life.UNKNOWN), SkipReason.UNKNOWN),
        (seen(replace(GHOST, inconsistent=True)), SkipReason.INCONSISTENT),
        (seen(replace(DONE, inconsistent=True)), SkipReason.INCONSISTENT),
        (seen(replace(DONE, confidence=Confidence.LOW)), SkipReason.DOUBTFUL),
        (seen(replace(GHOST, confidence=Confidence.LOW), unreadable=frozenset({Source.TRACE})), SkipReason.DOUBTFUL),
        (seen(claimed_at=NOW - 60_000), SkipReason.YOUNG),
        (seen(claimed_at=NOW + 60_000), SkipReason.YOUNG),
        (seen(claimed_at=None), SkipReason.YOUNG),
    ],
)
def test_each_gate_holds(run: Seen, gate: SkipReason) -> None:
    found = plan([run], SCOPE)
    assert found.endings == ()
    assert [one.gate for one in found.left] == [gate]
    if gate is SkipReason.YOUNG:
        check_plan(found, SCOPE)
        return
    with pytest.raises(
        StaleInconsistentError if gate in (SkipReason.INCONSISTENT, SkipReason.DOUBTFUL) else StaleAliveError
    ):
        check_plan(found, SCOPE)


@pytest.mark.parametrize(
    ("run", "status", "outcome", "in_history"),
    [
        (seen(), MessageStatus.CANCELLED, "orphaned", False),
        (seen(DONE), MessageStatus.COMPLETED, "completed", False),
        (seen(DONE, claimed_at=NOW), MessageStatus.COMPLETED, "completed", False),  # its age says nothing
        (seen(DONE, life=Life.ALIVE), MessageStatus.COMPLETED, "completed", False),
        (seen(replace(DONE, status=RunStatus.FAILED)), MessageStatus.FAILED, "failed", False),
        (seen(replace(DONE, lacks=(Source.LIST,))), MessageStatus.COMPLETED, None, True),
        (seen(replace(GHOST, lacks=(Source.FINISH,)), latest=False), None, "orphaned", False),
        (replace(seen(DONE), message=MessageStatus.COMPLETED), None, "completed", False),
    ],
)
def test_what_is_written(run: Seen, status: MessageStatus | None, outcome: str | None, in_history: bool) -> None:
    (ending,) = plan([run], SCOPE).endings
    assert (ending.status, ending.outcome, ending.in_history) == (status, outcome, in_history)


def test_what_is_not_stale_is_no_candidate() -> None:
    assert plan([seen(replace(GHOST, stale=False))], SCOPE) == plan([], SCOPE)


def test_the_cap_counts_what_would_be_ended() -> None:
    found = plan([seen(message_id=str(number)) for number in range(3)], SCOPE)
    check_plan(found, replace(SCOPE, max_runs=3))
    with pytest.raises(StaleScopeTooBroadError):
        check_plan(found, replace(SCOPE, max_runs=2))


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        (Scope(), StaleScopeInvalidError),
        (Scope(match="*"), StaleScopeTooBroadError),
        (Scope(match="*/*"), StaleScopeTooBroadError),
        (Scope(agent="echo", older_than_ms=299_999), StaleTooYoungError),
        (Scope(agent="echo", max_runs=0), StaleScopeInvalidError),
        (Scope(agent="../echo"), InvalidNameError),
        (Scope(session=("echo", "a/../b")), InvalidNameError),
    ],
)
def test_a_scope_that_no_sweep_may_have(scope: Scope, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_scope(scope, apply=True)


def test_a_preview_may_look_at_everything() -> None:
    check_scope(Scope(), apply=False)
    assert in_scope(Scope(), [("b", "s"), ("a", "s")]) == [("a", "s"), ("b", "s")]


def test_a_scope_takes_what_it_says_and_refuses_nothing_at_all() -> None:
    there = [("echo", "a"), ("echo", "b"), ("prog", "a")]
    assert in_scope(Scope(agent="echo"), there) == there[:2]
    assert in_scope(Scope(session=("prog", "a")), there) == there[2:]
    assert in_scope(Scope(match="*/a"), there) == [there[0], there[2]]
    assert in_scope(Scope(agent="echo", match="*/a"), there) == there[:1]
    with pytest.raises(StaleScopeEmptyError):
        in_scope(Scope(agent="nobody"), there)
