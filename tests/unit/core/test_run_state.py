"""How a run is judged: which source decides, when it is stale, what its record lacks, and how sure the verdict is."""

from dataclasses import replace
from typing import Final

import pytest

from daemon.core.run_state import (
    SETTLING_MS,
    Answer,
    Confidence,
    Ending,
    Life,
    RunEvidence,
    RunStatus,
    Source,
    judge,
)
from schema.rows import AckStatus, MessageStatus

NOW: Final = 10_000_000
OLD: Final = NOW - SETTLING_MS - 1
ANSWER: Final = Answer("a1", OLD)
ERROR: Final = Answer("a1", OLD, "it broke")

# A run on which its container works; all sources agree.
RUNNING: Final = RunEvidence(
    "m1",
    "I1",
    NOW,
    MessageStatus.PENDING,
    life=Life.ALIVE,
    claimed_at=OLD,
    claimed=True,
    attempted=True,
    ack=AckStatus.PROCESSING,
    ack_at=OLD,
)
# A run that ended well; all sources agree.
DONE: Final = replace(
    RUNNING,
    listed=MessageStatus.COMPLETED,
    life=Life.GONE,
    answers=(ANSWER,),
    endings=(Ending(RunStatus.COMPLETED, OLD),),
    outcome=RunStatus.COMPLETED,
    ended_at=OLD,
    ack=AckStatus.COMPLETED,
)


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        (RUNNING, RunStatus.RUNNING),
        (DONE, RunStatus.COMPLETED),
        (RunEvidence("m1", None, NOW, MessageStatus.PENDING), RunStatus.WAITING),
        (replace(DONE, ack=None), RunStatus.COMPLETED),
        (replace(RUNNING, answers=(ANSWER,)), RunStatus.RUNNING),  # an interim answer
        (
            replace(
                RUNNING,
                latest=False,
                life=Life.GONE,
                ack=None,
                outcome=RunStatus.ORPHANED,
                endings=(Ending(RunStatus.ORPHANED, OLD),),
            ),
            RunStatus.ORPHANED,
        ),
    ],
)
def test_what_every_source_agrees_on_is_so_and_not_stale(seen: RunEvidence, status: RunStatus) -> None:
    verdict = judge(seen)
    assert (verdict.status, verdict.listed, verdict.stale) == (status, status, False)
    assert (verdict.reasons, verdict.lacks, verdict.confidence) == ((), (), Confidence.HIGH)


def test_an_answer_and_ack_that_nobody_settled_are_the_truth() -> None:
    seen = replace(RUNNING, life=Life.GONE, ack=AckStatus.COMPLETED, answers=(ANSWER,))
    verdict = judge(seen)
    assert (verdict.status, verdict.listed, verdict.stale) == (RunStatus.COMPLETED, RunStatus.RUNNING, True)
    assert verdict.decided_by is Source.TRACE
    assert verdict.lacks == (Source.HISTORY, Source.FINISH, Source.LIST)
    assert [reason.code for reason in verdict.reasons] == ["ACK_NOT_SETTLED"]
    assert verdict.confidence is Confidence.HIGH


def test_an_ack_without_an_answer_is_a_finish() -> None:
    verdict = judge(replace(RUNNING, ack=AckStatus.COMPLETED))
    assert (verdict.status, verdict.decided_by) == (RunStatus.COMPLETED, Source.FINISH)


def test_a_young_ack_is_settling_only_while_somebody_settles_it() -> None:
    young = replace(RUNNING, ack=AckStatus.COMPLETED, ack_at=NOW - 100, answers=(replace(ANSWER, at=NOW - 100),))
    verdict = judge(young)
    assert not verdict.stale
    assert verdict.reasons[-1].code == "SETTLING"
    assert judge(replace(young, synced=False)).stale


def test_a_claim_whose_container_is_gone_is_orphaned() -> None:
    verdict = judge(replace(RUNNING, life=Life.GONE))
    assert (verdict.status, verdict.listed, verdict.stale) == (RunStatus.ORPHANED, RunStatus.RUNNING, True)
    assert verdict.reasons[0].code == "CONTAINER_GONE"
    assert Source.LIST not in verdict.lacks  # the list is right: its message is tried again


def test_a_container_whose_life_is_not_known_is_believed_and_doubted() -> None:
    verdict = judge(replace(RUNNING, life=Life.UNKNOWN))
    assert (verdict.status, verdict.stale, verdict.confidence) == (RunStatus.RUNNING, False, Confidence.LOW)
    assert verdict.reasons[0].code == "LIFE_UNKNOWN"


def test_the_history_comes_before_the_list() -> None:
    verdict = judge(replace(DONE, listed=MessageStatus.PENDING, outcome=None, ack=None, answers=()))
    assert (verdict.status, verdict.listed) == (RunStatus.COMPLETED, RunStatus.RUNNING)
    assert verdict.decided_by is Source.HISTORY
    assert verdict.lacks == (Source.FINISH, Source.LIST)


def test_a_status_that_the_history_does_not_know_is_stale() -> None:
    verdict = judge(replace(DONE, endings=()))
    assert verdict.stale
    assert verdict.lacks == (Source.HISTORY,)
    assert verdict.reasons[0].code == "HISTORY_MISSING"


def test_a_finished_message_with_an_open_attempt_is_stale() -> None:
    verdict = judge(replace(DONE, outcome=None))
    assert verdict.lacks == (Source.FINISH,)
    assert verdict.reasons[0].code == "FINISH_MISSING"


@pytest.mark.parametrize(("life", "lacks"), [(Life.GONE, (Source.FINISH,)), (Life.ALIVE, ()), (Life.UNKNOWN, ())])
def test_a_cancelled_message_is_swept_only_once_its_container_is_known_to_be_gone(
    life: Life, lacks: tuple[Source, ...]
) -> None:
    ended = (Ending(RunStatus.CANCELLED, OLD),)
    verdict = judge(replace(RUNNING, listed=MessageStatus.CANCELLED, endings=ended, life=life))
    assert (verdict.status, verdict.lacks) == (RunStatus.CANCELLED, lacks)


def test_an_error_is_the_trace_before_the_history() -> None:
    seen = replace(DONE, answers=(ERROR,), ack=AckStatus.FAILED, outcome=None, listed=MessageStatus.PENDING)
    verdict = judge(seen)
    assert verdict.status is RunStatus.FAILED
    assert verdict.inconsistent
    assert verdict.confidence is Confidence.LOW
    assert verdict.reasons[0].code == "CONTRADICTION"


def test_an_agent_that_writes_error_beside_completed_has_completed() -> None:
    assert judge(replace(DONE, answers=(ERROR,))).status is RunStatus.COMPLETED


def test_a_cancelled_message_whose_agent_finished_stays_cancelled_and_contradicts_nothing() -> None:
    seen = replace(DONE, listed=MessageStatus.CANCELLED, endings=(Ending(RunStatus.CANCELLED, OLD),))
    verdict = judge(seen)
    assert (verdict.status, verdict.inconsistent, verdict.stale) == (RunStatus.CANCELLED, False, False)


def test_a_source_that_could_not_be_read_lowers_the_confidence() -> None:
    blind = replace(DONE, answers=(), ack=None, unreadable=frozenset({Source.TRACE}))
    verdict = judge(blind)
    assert verdict.status is RunStatus.COMPLETED
    assert verdict.confidence is Confidence.LOW
    assert [reason.code for reason in verdict.reasons] == ["UNREADABLE"]


def test_an_earlier_run_of_a_finished_message_keeps_its_own_end() -> None:
    first = replace(DONE, latest=False, outcome=RunStatus.RELEASED, endings=(Ending(RunStatus.RELEASED, OLD),))
    verdict = judge(replace(first, answers=(), ack=None))
    assert (verdict.status, verdict.listed, verdict.stale) == (RunStatus.RELEASED, RunStatus.RELEASED, False)


def test_an_answer_beside_an_open_claim_of_a_dead_container_is_doubted() -> None:
    verdict = judge(replace(RUNNING, life=Life.GONE, answers=(ANSWER,)))
    assert (verdict.status, verdict.confidence) == (RunStatus.COMPLETED, Confidence.LOW)
