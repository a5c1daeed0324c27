"""The sweep's decision, as tables: one named case for each rule of the contract, on observations made by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.lifecycle import (
    CEILING,
    CLAIM_OVERDUE,
    CLAIM_STUCK,
    UNCLAIMED,
    Action,
    Container,
    Fail,
    Kill,
    Observation,
    Policy,
    Release,
    Reset,
    Settle,
    Stop,
    Wake,
    decide,
    is_due,
    judge,
    reset_orphans,
)
from schema.instants import to_text
from schema.rows import Ack, AckStatus, MessageIn, MessageStatus, ToolInFlight

NOW = 1_795_219_200_000
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
POLICY = Policy()


def message(name: str = "m", **fields: Any) -> MessageIn:
    base = MessageIn(name, 2, "chat", "2026-11-21T00:00:00.000Z", MessageStatus.PENDING, "{}")
    return replace(base, **fields)


def claim(age: int | None, name: str = "m", by: str | None = "now") -> Ack:
    return Ack(name, AckStatus.PROCESSING, None if age is None else NOW - age, by)


def container(
    *, up: int = HOUR, beat: int | None = None, declared: int | None = None, active: int | None = None
) -> Container:
    """Running for `up` ms; its heartbeat and last activity so long ago; with a tool that declared so much silence."""
    return Container(
        incarnation="now",
        spawned_at=NOW - up,
        heartbeat_at=None if beat is None else NOW - beat,
        tool=None if declared is None else ToolInFlight("Bash", declared),
        last_activity=0 if active is None else NOW - active,
    )


@dataclass(frozen=True)
class Case:
    """A container and the claims seen; `kill` is the verdict's reason, or None for leave it alone."""

    container: Container
    claims: tuple[Ack, ...] = ()
    kill: str | None = None
    floor: int = 0


STUCK = {
    # the semantics of NanoClaw
    "fresh heartbeat and no claim": Case(container(beat=5 * SECOND)),
    "heartbeat over 30 min": Case(container(beat=30 * MINUTE + 1), (claim(31 * MINUTE),), CEILING),
    "heartbeat of exactly 30 min": Case(container(beat=30 * MINUTE), (claim(31 * MINUTE),)),
    "silent for a day with nothing to do": Case(container(up=30 * HOUR, beat=24 * HOUR)),
    "silent for a day beside a predecessor's claim": Case(
        container(up=30 * HOUR, beat=24 * HOUR), (claim(24 * HOUR, by="before"),)),
    "Bash declared 2 h and silent 45 min": Case(container(beat=45 * MINUTE, declared=2 * HOUR), (claim(50 * MINUTE),)),
    "claim over 60 s and heartbeat not moved since": Case(container(beat=90 * SECOND), (claim(61 * SECOND),), CLAIM_STUCK),
    "claim of exactly 60 s": Case(container(beat=90 * SECOND), (claim(60 * SECOND),)),
    "heartbeat touched since the claim": Case(container(beat=61 * SECOND), (claim(5 * MINUTE),)),
    "heartbeat at the instant of the claim is not since": Case(
        container(beat=2 * MINUTE), (claim(2 * MINUTE),), CLAIM_STUCK),
    "claim 5 s old and stale heartbeat": Case(container(beat=10 * MINUTE), (claim(5 * SECOND),)),
    "Bash declared 10 min and claim 5 min old": Case(container(beat=6 * MINUTE, declared=10 * MINUTE), (claim(5 * MINUTE),)),
    "Bash declared 10 min and claim 11 min old": Case(
        container(beat=12 * MINUTE, declared=10 * MINUTE), (claim(11 * MINUTE),), CLAIM_STUCK),
    "undatable claim": Case(container(beat=20 * MINUTE), (claim(None),)),
    # no heartbeat yet
    "no heartbeat counts from spawn": Case(container(up=31 * MINUTE), (claim(5 * SECOND),), CEILING),
    "no heartbeat, and young": Case(container(up=29 * MINUTE), (claim(5 * SECOND),)),
    "no heartbeat and a claim": Case(container(up=10 * MINUTE), (claim(61 * SECOND),), CLAIM_STUCK),
    "no heartbeat and a fresh claim": Case(container(up=10 * MINUTE), (claim(59 * SECOND),)),
    "neither heartbeat nor claim, just spawned": Case(container(up=0)),
    # evidence older than the incarnation is not about it
    "heartbeat of a predecessor, and young": Case(container(up=5 * SECOND, beat=HOUR)),
    "heartbeat of a predecessor counts from spawn": Case(
        container(up=31 * MINUTE, beat=HOUR), (claim(5 * SECOND),), CEILING),
    "heartbeat of a predecessor hides no stuck claim": Case(
        container(up=2 * MINUTE, beat=3 * MINUTE), (claim(100 * SECOND),), CLAIM_STUCK),
    "claim of another incarnation": Case(container(up=2 * HOUR, beat=20 * MINUTE), (claim(HOUR, by="before"),)),
    "claim of another incarnation beside a stuck one": Case(
        container(beat=20 * MINUTE), (claim(HOUR, "x", by="before"), claim(20 * MINUTE, "m")), CLAIM_STUCK),
    "unstamped claim since the spawn": Case(container(up=HOUR, beat=20 * MINUTE), (claim(10 * MINUTE, by=None),), CLAIM_STUCK),
    "unstamped claim older than the spawn": Case(container(up=5 * MINUTE, beat=2 * MINUTE), (claim(10 * MINUTE, by=None),)),
    "unstamped and undatable claim": Case(container(beat=20 * MINUTE), (claim(None, by=None),)),
    # declared silence
    "declared silence over the most that is believed": Case(
        container(up=8 * HOUR, beat=6 * HOUR + 1, declared=1000 * HOUR), (claim(6 * HOUR + 2),), CEILING),
    "declared silence within the most that is believed": Case(
        container(up=8 * HOUR, beat=6 * HOUR, declared=1000 * HOUR), (claim(6 * HOUR),)),
    "a short declared silence narrows nothing": Case(container(beat=29 * MINUTE, declared=5 * SECOND), (claim(59 * SECOND),)),
    "a tool without a declared silence widens nothing": Case(
        replace(container(beat=2 * MINUTE), tool=ToolInFlight("Bash", None)), (claim(61 * SECOND),), CLAIM_STUCK),
    # the wall clock jumped
    "everything is dated before a jump": Case(container(up=9 * HOUR, beat=8 * HOUR), (claim(8 * HOUR),), floor=NOW),
    "a claim from before a jump counts from it": Case(
        container(up=9 * HOUR, beat=8 * HOUR), (claim(8 * HOUR),), CLAIM_STUCK, floor=NOW - 61 * SECOND),
    "silence since a jump counts from it": Case(
        container(up=9 * HOUR, beat=8 * HOUR), (claim(8 * HOUR),), CEILING, floor=NOW - 31 * MINUTE),
    "a claim from the future": Case(container(beat=2 * MINUTE), (claim(-HOUR),)),
    # A container dates its heartbeat as it likes; its silence is judged without it.
    "a heartbeat from the future": Case(container(beat=-HOUR), (claim(HOUR),), kill=CEILING),
    "a heartbeat 50 s ahead": Case(container(beat=-50 * SECOND), (claim(HOUR),), kill=CEILING),
    "a heartbeat ahead by the grain of a file's time": Case(container(beat=-2 * SECOND), (claim(HOUR),)),
}  # fmt: skip


@pytest.mark.parametrize("name", STUCK)
def test_stuck(name: str) -> None:
    case = STUCK[name]
    seen = Observation(now=NOW, container=case.container, claims=case.claims, evidence_floor=case.floor,
                       pending=tuple(message(item.message_id, process_after=NOW + HOUR) for item in case.claims))  # fmt: skip
    verdict = judge(case.container, seen, POLICY)
    assert (verdict and verdict.reason) == case.kill
    kills = [action for action in decide(seen, POLICY) if isinstance(action, Kill)]
    assert [action.reason for action in kills] == ([] if case.kill is None else [case.kill])
    if verdict is not None:
        assert verdict.silent_ms > verdict.allowed_ms
        assert verdict.message_id == (case.claims[-1].message_id if case.kill == CLAIM_STUCK else None)


# (container, claim's age by its own date, how long ago the host first saw it, due again, verdict)
SEEN = {
    "its clock is an hour behind, and it has just begun": (container(up=9 * HOUR), HOUR, SECOND, None, None),
    "its clock is an hour behind, and it beats by it": (container(up=9 * HOUR, beat=HOUR), HOUR, SECOND, None, None),
    "its clock is an hour behind, and it does nothing": (container(up=9 * HOUR), HOUR, 61 * SECOND, None, CLAIM_STUCK),
    "its clock is an hour ahead, and it has just begun": (container(up=9 * HOUR, beat=-HOUR), -HOUR, SECOND, None, None),
    "its clock is an hour ahead, and it does nothing": (
        container(up=9 * HOUR, beat=-HOUR), -HOUR, 31 * MINUTE, None, CEILING),
    "it never beats, is old, and has just begun": (container(up=9 * HOUR), SECOND, SECOND, None, None),
    "it beat in its last turn alone": (container(up=9 * HOUR, beat=HOUR), SECOND, SECOND, None, None),
    "it never beats, and its turn is long": (
        container(up=9 * HOUR, declared=30 * MINUTE), 31 * MINUTE, 31 * MINUTE, None, CEILING),
    "given back, and claimed again a moment ago": (container(up=9 * HOUR), SECOND, HOUR, SECOND, None),
    "given back, and claimed again long ago": (container(up=9 * HOUR), HOUR, HOUR, 31 * MINUTE, CEILING),
    "seen before the clock was set back": (container(up=9 * HOUR, beat=MINUTE), HOUR, -HOUR, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_a_turn_is_judged_by_when_the_host_saw_it_begin(name: str) -> None:
    runs, dated, noted, after, reason = SEEN[name]
    seen = Observation(
        now=NOW, pending=(message(process_after=None if after is None else NOW - after),), claims=(claim(dated),),
        container=runs, noted={"m": NOW - noted},
    )  # fmt: skip
    assert [one.reason for one in decide(seen, POLICY) if isinstance(one, Kill)] == ([reason] if reason else [])


@dataclass(frozen=True)
class Held:
    """A container that beats all the time, and whether its claim has lasted too long. `noted`: how long ago the host saw it."""

    noted: int | None
    dated: int = 0
    kill: bool = False
    moved: int = 10 * HOUR
    declared: int | None = None
    contended: bool = False
    after: int | None = None
    floor: int = 0


HELD = {
    "as long as a claim may last": Held(5 * HOUR),
    "longer": Held(5 * HOUR + 1, kill=True),
    "longer, and it answers all the time": Held(5 * HOUR + 1, kill=True, moved=SECOND),
    "longer, with a tool that declared more": Held(5 * HOUR + 1, kill=True, declared=6 * HOUR),
    "longer by the container's date alone": Held(None, dated=5 * HOUR + 1, kill=True),
    "dated again and again": Held(5 * HOUR + 1, dated=SECOND, kill=True),
    "given back, due again a minute ago, claimed again": Held(5 * HOUR + 1, after=MINUTE),
    "the clock jumped just now": Held(5 * HOUR + 1, floor=NOW),
    "somebody waits, within its turn": Held(20 * MINUTE, contended=True),
    "somebody waits, and its turn is over": Held(20 * MINUTE + 1, contended=True, kill=True),
    "somebody waits, and it moved lately": Held(HOUR, moved=20 * MINUTE, contended=True),
    "somebody waits, and it moved long ago": Held(HOUR, moved=20 * MINUTE + 1, contended=True, kill=True),
    "somebody waits, and a tool declared an hour": Held(HOUR, declared=HOUR, contended=True),
    "nobody waits": Held(HOUR),
}


@pytest.mark.parametrize("name", HELD)
def test_a_beat_is_no_work(name: str) -> None:
    case = HELD[name]
    policy = replace(POLICY, claim_max=5 * HOUR, turn=20 * MINUTE, contended=case.contended)
    runs = replace(container(up=9 * HOUR, beat=0, declared=case.declared), moved_at=NOW - case.moved)
    held = message(process_after=None if case.after is None else NOW - case.after)
    seen = Observation(
        now=NOW, pending=(held,), claims=(claim(case.dated),), container=runs, evidence_floor=case.floor,
        noted={} if case.noted is None else {"m": NOW - case.noted},
    )  # fmt: skip
    assert [action.reason for action in decide(seen, policy) if isinstance(action, Kill)] == (
        [CLAIM_OVERDUE] if case.kill else []
    )


@pytest.mark.parametrize(
    ("asked", "contended", "moved", "stops"),
    [
        (NOW, True, 20 * MINUTE + 1, True),
        (NOW, True, 20 * MINUTE, False),
        (NOW, True, SECOND, False),  # it has just asked
        (NOW, False, HOUR, False),
        (NOW - 1, True, HOUR, False),  # the answer has come
    ],
)
def test_a_turn_that_waits_for_a_person_makes_room_for_others_and_loses_no_try(
    asked: int, contended: bool, moved: int, stops: bool
) -> None:
    policy = replace(POLICY, claim_max=5 * HOUR, turn=20 * MINUTE, contended=contended)
    runs = replace(container(up=9 * HOUR, beat=HOUR), moved_at=NOW - moved)
    seen = Observation(
        now=NOW,
        pending=(message(),),
        claims=(claim(HOUR),),
        container=runs,
        noted={"m": NOW - HOUR},
        excused={"m": asked},
    )
    assert decide(seen, policy) == ([Stop(moved)] if stops else [])
    asks_again = replace(seen, container=replace(runs, moved_at=NOW - SECOND), noted={"m": NOW - 5 * HOUR - 1})
    assert decide(asks_again, policy) == ([Stop(SECOND)] if contended and asked == NOW else [])


ENDED_QUESTIONS = {
    "open": (NOW, HOUR, None),
    "ended a moment ago, and not yet read": (NOW - MINUTE, HOUR, None),
    "ended, and not read for longer than a claim may be stuck": (NOW - MINUTE - 1, HOUR, CLAIM_STUCK),
    "ended, and read": (NOW - 10 * MINUTE, 10 * MINUTE, None),
    "ended before the clock was set back": (NOW + HOUR, HOUR, None),
}


@pytest.mark.parametrize("name", ENDED_QUESTIONS)
def test_a_question_excuses_silence_for_as_long_as_it_is_open_and_not_for_as_long_again(name: str) -> None:
    ended, beat, reason = ENDED_QUESTIONS[name]
    runs = replace(container(up=9 * HOUR, beat=beat), tool=ToolInFlight("question", 6 * HOUR))
    seen = Observation(now=NOW, pending=(message(),), claims=(claim(2 * HOUR),), container=runs, excused={"m": ended})
    assert [one.reason for one in decide(seen, POLICY) if isinstance(one, Kill)] == ([reason] if reason else [])
    another = replace(seen, container=replace(runs, tool=ToolInFlight("Bash", 6 * HOUR)))
    assert decide(another, POLICY) == [], "a tool that the agent declared counts"


def test_a_question_that_ended_before_the_clock_was_set_back_excuses_nothing() -> None:
    runs = container(up=9 * HOUR, beat=HOUR)
    seen = Observation(
        now=NOW, pending=(message(),), claims=(claim(2 * HOUR),), container=runs, excused={"m": NOW + HOUR},
        evidence_floor=NOW - MINUTE - 1,
    )  # fmt: skip
    assert [one.reason for one in decide(seen, POLICY) if isinstance(one, Kill)] == [CLAIM_STUCK]


def test_a_container_is_not_blamed_for_what_an_earlier_message_held_back() -> None:
    """The moment the first one is due again the others are, too, though they came an hour ago."""
    old = to_text(NOW - HOUR)
    holder = message("a", seq=2, timestamp=old, holds=True, tries=1, process_after=NOW)
    behind = message("b", seq=4, timestamp=old)
    runs = replace(container(up=HOUR, beat=0), moved_at=NOW - HOUR)
    seen = Observation(now=NOW, pending=(holder, behind), container=runs)
    assert decide(seen, POLICY) == []
    freed = replace(seen, pending=(behind,))  # an operator has cancelled the first one
    assert [type(action) for action in decide(freed, POLICY)] == [Kill]
    assert decide(replace(freed, container=replace(runs, held_at=NOW - SECOND)), POLICY) == []


UNTOUCHED = {
    "for as long as it may": (HOUR, HOUR, HOUR, 60 * SECOND, False),
    "for longer": (HOUR, HOUR, HOUR, 61 * SECOND, True),
    "that came due a while ago": (61 * SECOND, HOUR, HOUR, HOUR, True),
    "by a young container": (HOUR, 59 * SECOND, HOUR, HOUR, False),
    "between two turns": (HOUR, HOUR, SECOND, HOUR, False),
    "due again only now": (SECOND, HOUR, HOUR, HOUR, False),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_due_messages_that_a_container_leaves_untouched_end_it(name: str) -> None:
    due, up, moved, accepted, ended = UNTOUCHED[name]
    waits = message(process_after=NOW - due, timestamp=to_text(NOW - accepted))
    runs = replace(container(up=up, beat=0), moved_at=NOW - moved)
    seen = Observation(now=NOW, pending=(waits,), container=runs)
    kills = [action.reason for action in decide(seen, POLICY) if isinstance(action, Kill)]
    assert kills == ([UNCLAIMED] if ended else [])
    first_poll = replace(seen, pending=(replace(waits, on_wake=True),))
    assert [type(action) for action in decide(first_poll, POLICY)] in ([], [Stop]), "it is not for this container"
    assert decide(replace(seen, claims=(claim(SECOND),)), POLICY) == []


def test_the_ceiling_is_told_before_a_stuck_claim() -> None:
    seen = Observation(now=NOW, pending=(message(),), claims=(claim(HOUR),), container=container(beat=HOUR))
    (verdict,) = decide(seen, POLICY)
    assert verdict == Kill(CEILING, HOUR, 30 * MINUTE)


@dataclass(frozen=True)
class Orphan:
    """A message whose claim's container is gone, and what becomes of it."""

    message: MessageIn
    claim: Ack
    expected: tuple[Action, ...]
    charged: frozenset[tuple[str, str]] = frozenset()


ORPHANS = {
    "first try": Orphan(message(), claim(HOUR, by="i"), (Reset("m", "i", 1, NOW + 5 * SECOND),)),
    "second try": Orphan(message(tries=1), claim(HOUR, by="i"), (Reset("m", "i", 2, NOW + 10 * SECOND),)),
    "fourth try": Orphan(message(tries=3), claim(HOUR, by="i"), (Reset("m", "i", 4, NOW + 40 * SECOND),)),
    "the last try fails": Orphan(message(tries=4), claim(HOUR, by="i"), (Fail("m", "i", 5),)),
    "beyond the last try fails": Orphan(message(tries=7), claim(HOUR, by="i"), (Fail("m", "i", 8),)),
    "scheduled for the future: tries unchanged": Orphan(message(tries=1, process_after=NOW + MINUTE), claim(HOUR, by="i"), (Release("m", "i"),)),
    "scheduled for the past is due": Orphan(
        message(process_after=NOW - 1), claim(HOUR, by="i"), (Reset("m", "i", 1, NOW + 5 * SECOND),)),
    "scheduled for this instant is due": Orphan(
        message(process_after=NOW), claim(HOUR, by="i"), (Reset("m", "i", 1, NOW + 5 * SECOND),)),
    "charged already": Orphan(message(tries=1), claim(HOUR, by="i"), (), frozenset({("m", "i")})),
    "another incarnation was charged": Orphan(
        message(tries=1), claim(HOUR, by="j"), (Reset("m", "j", 2, NOW + 10 * SECOND),), frozenset({("m", "i")})),
    "another message was charged": Orphan(
        message(), claim(HOUR, by="i"), (Reset("m", "i", 1, NOW + 5 * SECOND),), frozenset({("n", "i")})),
    "undatable, but stamped": Orphan(message(), claim(None, by="i"), (Reset("m", "i", 1, NOW + 5 * SECOND),)),
    "no stamp: nobody to charge": Orphan(message(), claim(HOUR, by=None), ()),
    "of a message that is not pending": Orphan(message("other"), claim(HOUR, "m", by="i"), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", ORPHANS)
def test_reset(name: str) -> None:
    case = ORPHANS[name]
    seen = Observation(now=NOW, pending=(case.message,), claims=(case.claim,), charged=case.charged)
    assert tuple(reset_orphans(seen, POLICY)) == case.expected


def test_a_message_that_was_never_claimed_loses_no_try() -> None:
    assert reset_orphans(Observation(now=NOW, pending=(message(tries=2),)), POLICY) == []


def test_wake_comes_before_reset_and_suppresses_it_in_that_tick() -> None:
    seen = Observation(now=NOW, pending=(message(),), claims=(claim(HOUR, by="before"),))
    assert decide(seen, POLICY) == [Wake(1)]
    # Had the reset come first, the message would lie in the future and nothing would ever be woken for it.
    assert reset_orphans(seen, POLICY)


def test_without_anything_due_orphans_are_reset() -> None:
    context = message(trigger=False)
    seen = Observation(now=NOW, pending=(context,), claims=(claim(HOUR, by="before"),))
    assert decide(seen, POLICY) == [Reset("m", "before", 1, NOW + 5 * SECOND)]


def test_occupied_means_neither_wake_nor_reset_nor_judgement() -> None:
    seen = Observation(now=NOW, pending=(message(), message("c", trigger=False)), claims=(claim(HOUR, "c", by="b"),),
                       occupied=True)  # fmt: skip
    assert decide(seen, POLICY) == []
    assert decide(replace(seen, container=container(up=9 * HOUR)), POLICY) == []


def test_while_a_container_runs_nothing_is_woken_or_reset() -> None:
    seen = Observation(
        now=NOW,
        pending=(message(timestamp=to_text(NOW)),),
        claims=(claim(HOUR, by="before"),),
        container=container(beat=SECOND),
    )
    assert decide(seen, POLICY) == []


DUE = {
    "no time": (message(), True),
    "past": (message(process_after=NOW - 1), True),
    "this instant": (message(process_after=NOW), True),
    "one millisecond to go": (message(process_after=NOW + 1), False),
    "the epoch": (message(process_after=0), True),
    "context": (message(trigger=False), False),
    "late context": (message(trigger=False, process_after=NOW - HOUR), False),
}


@pytest.mark.parametrize("name", DUE)
def test_due(name: str) -> None:
    item, due = DUE[name]
    assert is_due(item, NOW) is due
    assert decide(Observation(now=NOW, pending=(item,)), POLICY) == ([Wake(1)] if due else [])


def test_wake_counts_what_is_due_and_only_that() -> None:
    pending = (message("a"), message("b", process_after=NOW + 1), message("c", trigger=False), message("d"))
    acks = {"d": Ack("d", AckStatus.COMPLETED, NOW, "i")}
    assert decide(Observation(now=NOW, pending=pending, acks=acks), POLICY) == [
        Settle("d", AckStatus.COMPLETED, "i"),
        Wake(1),
    ]


def test_the_order_of_actions() -> None:
    """Settle first, then judge or wake, then reset."""
    acks = {"done": Ack("done", AckStatus.FAILED, NOW, "i")}
    pending = (message("done"), message("m", process_after=NOW + 1))
    seen = Observation(now=NOW, pending=pending, acks=acks, claims=(claim(HOUR, by="i"),))
    assert decide(seen, POLICY) == [Settle("done", AckStatus.FAILED, "i"), Release("m", "i")]
    stuck = replace(seen, claims=(claim(HOUR),), container=container(beat=HOUR))
    assert [type(action) for action in decide(stuck, POLICY)] == [Settle, Kill]


def test_a_claim_is_not_a_final_ack() -> None:
    held = claim(SECOND)
    seen = Observation(now=NOW, pending=(message(),), acks={"m": held}, claims=(held,), container=container(beat=0))
    assert decide(seen, POLICY) == []


@dataclass(frozen=True)
class Quiet:
    """A container with nothing to kill it for; whether it is stopped for being idle."""

    container: Container
    stop: bool
    pending: tuple[MessageIn, ...] = ()
    claims: tuple[Ack, ...] = ()
    floor: int = 0


IDLE = {
    "quiet for 15 min": Quiet(container(active=15 * MINUTE), stop=True),
    "a moment less": Quiet(container(active=15 * MINUTE - 1), stop=False),
    "it beats, and did nothing for 15 min": Quiet(container(beat=0, active=15 * MINUTE), stop=True),
    "it beats ahead of the clock": Quiet(container(beat=-50 * SECOND, active=15 * MINUTE), stop=True),
    "never did anything": Quiet(container(up=15 * MINUTE), stop=True),
    "answered lately": Quiet(container(beat=20 * MINUTE, active=MINUTE), stop=False),
    "something is due": Quiet(container(beat=20 * MINUTE), stop=False, pending=(message(timestamp=to_text(NOW)),)),
    "something is due later": Quiet(container(beat=20 * MINUTE), stop=True, pending=(message(process_after=NOW + 1),)),
    "a first poll's row waits": Quiet(container(beat=20 * MINUTE), stop=True, pending=(message(on_wake=True),)),
    "context waits": Quiet(container(beat=20 * MINUTE), stop=True, pending=(message(trigger=False),)),
    "it works, silently": Quiet(container(beat=20 * MINUTE, declared=HOUR), stop=False,
                                pending=(message(process_after=NOW + 1),), claims=(claim(19 * MINUTE),)),
    "a predecessor's claim": Quiet(container(beat=20 * MINUTE), stop=True, claims=(claim(19 * MINUTE, by="before"),)),
    "the clock jumped just now": Quiet(container(beat=20 * MINUTE), stop=False, floor=NOW),
    "a predecessor's heartbeat": Quiet(container(up=MINUTE, beat=20 * MINUTE), stop=False),
}  # fmt: skip


@pytest.mark.parametrize("name", IDLE)
def test_idle(name: str) -> None:
    case = IDLE[name]
    seen = Observation(
        now=NOW, container=case.container, pending=case.pending, claims=case.claims, evidence_floor=case.floor
    )
    assert any(isinstance(action, Stop) for action in decide(seen, POLICY)) is case.stop


@given(ticks=st.integers(min_value=1, max_value=30), gap=st.integers(min_value=1, max_value=HOUR))
def test_one_incarnation_is_charged_once_over_many_ticks(ticks: int, gap: int) -> None:
    """However often the orphan is seen, and however long nothing can be spawned."""
    now, item, charged = NOW, message(trigger=False), frozenset[tuple[str, str]]()
    for _ in range(ticks):
        seen = Observation(now=now, pending=(item,), claims=(claim(HOUR, by="i"),), charged=charged)
        for action in decide(seen, POLICY):
            assert isinstance(action, Reset)
            item = replace(item, tries=action.tries, process_after=action.process_after)
            charged |= {(action.message_id, action.incarnation)}
        now += gap
    assert item.tries == 1


@given(tries=st.integers(min_value=0, max_value=200), limit=st.integers(min_value=1, max_value=100))
def test_a_message_ends_after_its_last_try_and_never_before(tries: int, limit: int) -> None:
    (action,) = reset_orphans(
        Observation(now=NOW, pending=(message(tries=tries),), claims=(claim(0, by="i"),)),
        replace(POLICY, max_tries=limit),
    )
    assert isinstance(action, Fail) is (tries + 1 >= limit)
    assert isinstance(action, Fail | Reset)
    assert action.tries == tries + 1
    if isinstance(action, Reset):
        assert action.process_after == NOW + min(5 * SECOND * 2**tries, 24 * HOUR)
        to_text(action.process_after)  # it can be written down


TIMES = st.one_of(st.none(), st.integers(min_value=-2 * HOUR, max_value=48 * HOUR))
CLAIMS = st.lists(
    st.tuples(TIMES, st.sampled_from(["a", "b", "c"]), st.sampled_from(["now", "before", None])), max_size=4
)


@given(
    up=st.integers(min_value=0, max_value=48 * HOUR), beat=TIMES, declared=TIMES, claims=CLAIMS, running=st.booleans(),
    occupied=st.booleans(), floor=st.integers(min_value=0, max_value=HOUR), due=st.booleans(),
)  # fmt: skip
def test_whatever_is_seen_the_actions_are_consistent(
    up: int, beat: int | None, declared: int | None, claims: list[tuple[int | None, str, str | None]], running: bool,
    occupied: bool, floor: int, due: bool,
) -> None:  # fmt: skip
    pending = tuple(message(name, process_after=None if due else NOW + 1) for name in "abc")
    seen = Observation(
        now=NOW, pending=pending, claims=tuple(claim(age, name, by) for age, name, by in claims), occupied=occupied,
        container=container(up=up, beat=beat, declared=declared) if running else None, evidence_floor=NOW - floor,
    )  # fmt: skip
    actions = decide(seen, POLICY)
    kinds = {type(action) for action in actions}
    assert not (occupied and actions)
    assert not (running and kinds & {Wake, Reset, Release, Fail})
    assert not (not running and kinds & {Kill, Stop})
    assert not (Wake in kinds and kinds & {Reset, Release, Fail})
    assert len([action for action in actions if isinstance(action, Kill | Stop | Wake)]) <= 1
    for action in actions:
        if isinstance(action, Kill):
            # Nothing is ever held against a container from before it was born or before the clock jumped.
            assert action.silent_ms <= max(min(up, floor), 0) or action.reason == CLAIM_STUCK
            assert action.silent_ms <= floor
