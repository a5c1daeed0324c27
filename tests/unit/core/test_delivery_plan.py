"""Every decision about an outbound row, by table: where it may go, when, and what becomes of one that may not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.delivery_plan import (
    Candidate,
    ChannelRules,
    DeadLetterDecision,
    Decision,
    Defer,
    Queue,
    Reason,
    Rules,
    Send,
    plan,
    retry_at,
)
from schema.rows import Address, DeliveryState, MessageOut

NOW = 1_795_219_200_000
HOME, AWAY, ELSEWHERE = Address("dedup", "home"), Address("resend", "away"), Address("hold", "elsewhere")
CHANNELS = MappingProxyType(
    {
        "dedup": ChannelRules(deduplicates=True, hold_in_doubt=False),
        "resend": ChannelRules(deduplicates=False, hold_in_doubt=False),
        "hold": ChannelRules(deduplicates=False, hold_in_doubt=True),
        "both": ChannelRules(deduplicates=True, hold_in_doubt=True),
    }
)
RULES = Rules(NOW, routing=HOME, allowed=frozenset(), channels=CHANNELS, held=frozenset(), max_content_bytes=1000)


def row(seq: int = 1, to: Address | None = None, **fields: Any) -> MessageOut:
    made = MessageOut(f"o{seq}", seq, "chat", "2026-11-21T00:00:00.000Z", '{"text":"hi"}')
    if to is not None:
        made = replace(made, channel_type=to.channel_type, platform_id=to.platform_id, thread_id=to.thread_id)
    return replace(made, **fields)


def new(item: MessageOut, **fields: Any) -> Candidate:
    return replace(Candidate(item, from_host=False, state=None, first_at=NOW), **fields)


@dataclass(frozen=True)
class Case:
    """One candidate under some rules; the decision's type, and its address or reason."""

    candidate: Candidate
    expected: type[Decision]
    address: Address | None = None
    reason: str | None = None
    rules: dict[str, Any] = field(default_factory=dict[str, Any])
    in_doubt: bool = False


INTENDED, QUEUED, RETRYING = DeliveryState.INTENDED, DeliveryState.QUEUED, DeliveryState.RETRYING
CASES = {
    # where to
    "no destination: where what it answers came from": Case(new(row(), origin=AWAY), Send, AWAY),
    "no destination, nothing answered: the session's route": Case(new(row()), Send, HOME),
    "no destination and no route": Case(new(row()), DeadLetterDecision, None, Reason.NO_ROUTE, {"routing": None}),
    "half a destination is none": Case(new(row(channel_type="resend")), Send, HOME),
    "the other half is none either": Case(new(row(platform_id="away")), Send, HOME),
    "its own thread on the default route": Case(new(row(thread_id="t")), Send, replace(HOME, thread_id="t")),
    "the default route's thread": Case(
        new(row()), Send, replace(HOME, thread_id="r"), rules={"routing": replace(HOME, thread_id="r")}),
    "explicit, allowed by a destination": Case(
        new(row(to=AWAY)), Send, AWAY, rules={"allowed": frozenset({("resend", "away")})}),
    "explicit, allowed by origin": Case(new(row(to=AWAY), origin=AWAY), Send, AWAY),
    "explicit, allowed by origin in another thread": Case(
        new(row(to=replace(AWAY, thread_id="t")), origin=AWAY), Send, replace(AWAY, thread_id="t")),
    "explicit, allowed by routing": Case(new(row(to=HOME)), Send, HOME),
    "explicit, allowed by routing in another thread": Case(
        new(row(to=replace(HOME, thread_id="x"))), Send, replace(HOME, thread_id="x")),
    "explicit, by the host itself": Case(new(row(to=AWAY), from_host=True), Send, AWAY),
    "taken away since": Case(
        new(row(to=AWAY)), DeadLetterDecision, AWAY, Reason.REVOKED,
        {"revoked": frozenset({(AWAY.channel_type, AWAY.platform_id)})}),
    "unauthorised": Case(new(row(to=AWAY)), DeadLetterDecision, AWAY, Reason.UNAUTHORISED),
    "unauthorised: the right channel, another place": Case(
        new(row(to=Address("dedup", "other"))), DeadLetterDecision, Address("dedup", "other"), Reason.UNAUTHORISED),
    "unauthorised: the right place, another channel": Case(
        new(row(to=Address("resend", "home"))), DeadLetterDecision, Address("resend", "home"), Reason.UNAUTHORISED),
    "unauthorised is told before there being no channel": Case(
        new(row(to=Address("gone", "x"))), DeadLetterDecision, Address("gone", "x"), Reason.UNAUTHORISED),
    # what
    "unknown kind": Case(new(row(kind="telepathy")), DeadLetterDecision, None, Reason.UNKNOWN_KIND),
    "system rows are nobody's business outside": Case(new(row(kind="system")), DeadLetterDecision, None, Reason.UNKNOWN_KIND),
    "no kind": Case(new(row(kind="")), DeadLetterDecision, None, Reason.UNKNOWN_KIND),
    "not JSON": Case(new(row(content="hi")), DeadLetterDecision, None, Reason.BAD_CONTENT),
    "empty": Case(new(row(content="")), DeadLetterDecision, None, Reason.BAD_CONTENT),
    "nested beyond reason": Case(
        new(row(content="[" * 100_000)), DeadLetterDecision, None, Reason.BAD_CONTENT, {"max_content_bytes": 10**6}),
    "over the limit": Case(new(row(content=json.dumps("x" * 999))), DeadLetterDecision, None, Reason.BAD_CONTENT),
    "exactly at the limit": Case(new(row(content=json.dumps("x" * 998))), Send, HOME),
    "the limit counts bytes": Case(new(row(content=json.dumps("ä" * 500, ensure_ascii=False))), DeadLetterDecision, None, Reason.BAD_CONTENT),
    "half a surrogate pair": Case(new(row(content='"\ud800"')), Send, HOME),
    "gone": Case(new(row(), state=QUEUED, gone=True), DeadLetterDecision, None, Reason.ROW_GONE),
    "gone while in doubt": Case(new(row(), state=INTENDED, gone=True), DeadLetterDecision, None, Reason.ROW_GONE),
    # when
    "due later": Case(new(row(deliver_after=NOW + 1)), Queue, HOME),
    "due now": Case(new(row(deliver_after=NOW)), Send, HOME),
    "due since long": Case(new(row(deliver_after=0)), Send, HOME),
    "its time came, as the tracking says": Case(new(row(deliver_after=NOW + 1), state=QUEUED), Send, HOME),
    "its destination is held": Case(new(row()), Queue, HOME, rules={"held": frozenset({HOME.key})}),
    "another destination is held": Case(new(row()), Send, HOME, rules={"held": frozenset({AWAY.key})}),
    "another thread is held": Case(
        new(row()), Send, HOME, rules={"held": frozenset({replace(HOME, thread_id="t").key})}),
    "held and without a channel": Case(
        new(row(to=Address("gone", "x")), from_host=True), Queue, Address("gone", "x"),
        rules={"held": frozenset({Address("gone", "x").key})}),
    "unauthorised though held": Case(
        new(row(to=AWAY)), DeadLetterDecision, AWAY, Reason.UNAUTHORISED, {"held": frozenset({AWAY.key})}),
    # by which channel
    "no channel": Case(new(row(to=Address("gone", "x")), from_host=True), Defer, Address("gone", "x"), Reason.NO_CHANNEL),
    "no channel at all": Case(new(row()), Defer, HOME, Reason.NO_CHANNEL, {"channels": {}}),
    # in doubt
    "in doubt where the channel deduplicates": Case(new(row(), state=INTENDED, attempts=1), Send, HOME, in_doubt=True),
    "in doubt where the policy is to resend": Case(
        new(row(to=AWAY), state=INTENDED, attempts=1, origin=AWAY), Send, AWAY, in_doubt=True),
    "in doubt where the policy is to hold": Case(
        new(row(to=ELSEWHERE), state=INTENDED, attempts=1, origin=ELSEWHERE), DeadLetterDecision, ELSEWHERE, Reason.IN_DOUBT),
    "in doubt, deduplicating and asked to hold": Case(
        new(row(to=Address("both", "x")), state=INTENDED, from_host=True), Send, Address("both", "x"), in_doubt=True),
    "in doubt and held": Case(
        new(row(), state=INTENDED), Queue, HOME, rules={"held": frozenset({HOME.key})}),
    "retrying where the policy is to hold is no doubt": Case(
        new(row(to=ELSEWHERE), state=RETRYING, attempts=3, origin=ELSEWHERE), Send, ELSEWHERE),
    "in doubt and no longer allowed": Case(new(row(to=AWAY), state=INTENDED), DeadLetterDecision, AWAY, Reason.UNAUTHORISED),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_decision(name: str) -> None:
    case = CASES[name]
    (decision,) = plan([case.candidate], replace(RULES, **case.rules))
    assert type(decision) is case.expected
    assert decision.candidate is case.candidate
    assert decision.address == case.address
    if isinstance(decision, DeadLetterDecision | Defer):
        assert decision.reason == case.reason
        assert decision.error
    if isinstance(decision, Send):
        assert decision.in_doubt is case.in_doubt
    if isinstance(decision, Queue):
        assert decision.not_before == (case.candidate.row.deliver_after if "held" not in case.rules else None)


def summary(decisions: list[Decision]) -> list[tuple[str, str]]:
    return [(decision.candidate.row.id, type(decision).__name__) for decision in decisions]


def test_rows_go_by_seq_however_they_come() -> None:
    candidates = [new(row(seq)) for seq in (9, 1, 5, 3, 7)]
    assert summary(plan(candidates, RULES)) == [(f"o{seq}", "Send") for seq in (1, 3, 5, 7, 9)]


def test_a_channel_that_does_not_deduplicate_gets_one_send_at_a_time() -> None:
    candidates = [
        new(row(seq, to), from_host=True) for seq, to in ((1, AWAY), (3, AWAY), (5, HOME), (7, AWAY), (9, HOME))
    ]
    assert summary(plan(candidates, RULES)) == [
        ("o1", "Send"), ("o3", "Queue"), ("o5", "Send"), ("o7", "Queue"), ("o9", "Send")]  # fmt: skip


def test_other_threads_and_places_of_such_a_channel_are_their_own() -> None:
    places = [AWAY, replace(AWAY, thread_id="t"), Address("resend", "b"), AWAY]
    candidates = [new(row(2 * n + 1, to), from_host=True) for n, to in enumerate(places)]
    assert [kind for _, kind in summary(plan(candidates, RULES))] == ["Send", "Send", "Send", "Queue"]


def test_a_row_for_later_holds_nobody_back() -> None:
    candidates = [new(row(1, deliver_after=NOW + 60_000)), new(row(3)), new(row(5, AWAY), from_host=True)]
    assert summary(plan(candidates, RULES)) == [("o1", "Queue"), ("o3", "Send"), ("o5", "Send")]


def test_a_dead_letter_holds_nobody_back() -> None:
    candidates = [new(row(1, kind="telepathy")), new(row(3, AWAY)), new(row(5))]
    assert summary(plan(candidates, RULES)) == [
        ("o1", "DeadLetterDecision"),
        ("o3", "DeadLetterDecision"),
        ("o5", "Send"),
    ]


def test_a_deferred_head_holds_its_own_destination_and_no_other() -> None:
    gone = Address("gone", "x")
    candidates = [new(row(1, gone), from_host=True), new(row(3, gone), from_host=True), new(row(5))]
    assert summary(plan(candidates, RULES)) == [("o1", "Defer"), ("o3", "Queue"), ("o5", "Send")]


def test_a_held_in_doubt_row_does_not_hold_the_next() -> None:
    candidates = [new(row(1, ELSEWHERE), state=INTENDED, from_host=True), new(row(3, ELSEWHERE), from_host=True)]
    assert summary(plan(candidates, RULES)) == [("o1", "DeadLetterDecision"), ("o3", "Send")]


def test_the_key_of_a_destination_cannot_be_confused() -> None:
    """A channel, a place and a thread that only look alike when joined are different destinations."""
    assert (
        len({Address("a", "b", "c").key, Address("a", "b:c").key, Address("a:b", "c").key, Address("ab", "c").key}) == 4
    )


ADDRESSES = st.builds(Address, st.sampled_from(["dedup", "resend", "hold", "gone"]), st.sampled_from(["a", "b"]),
                      st.sampled_from([None, "t"]))  # fmt: skip


@given(
    st.lists(
        st.tuples(st.integers(1, 400), ADDRESSES, st.sampled_from([None, QUEUED, INTENDED, RETRYING]), st.booleans()),
        max_size=25, unique_by=lambda item: item[0]),
    st.sets(ADDRESSES, max_size=3),
)  # fmt: skip
def test_the_plan_is_fifo_per_destination(
    rows: list[tuple[int, Address, DeliveryState | None, bool]], held: set[Address]
) -> None:
    candidates = [
        new(row(seq, to, deliver_after=NOW + 1 if late else None), from_host=True, state=state)
        for seq, to, state, late in rows
    ]
    rules = replace(RULES, held=frozenset(address.key for address in held))
    decisions = plan(candidates, rules)
    assert [decision.candidate.row.seq for decision in decisions] == sorted(seq for seq, *_ in rows)
    stopped: set[str] = set(rules.held)
    for decision in decisions:
        assert decision.address is not None
        key = decision.address.key
        if isinstance(decision, Send):
            assert key not in stopped
            if not CHANNELS[decision.address.channel_type].deduplicates:
                stopped.add(key)
        elif isinstance(decision, Defer):
            stopped.add(key)


RETRY = {
    # attempts, retry_after_s, jitter, expected wait in ms with base 5 s and at most 60 s
    "first": (1, None, 0.5, 5_000),
    "second doubles": (2, None, 0.5, 10_000),
    "fourth": (4, None, 0.5, 40_000),
    "capped": (5, None, 0.5, 60_000),
    "capped forever": (10_000, None, 0.5, 60_000),
    "least jitter": (1, None, 0.0, 3_750),
    "most jitter": (1, None, 1.0, 6_250),
    "jitter spreads the cap too": (50, None, 1.0, 75_000),
    "Retry-After later than ours": (1, 30.0, 0.5, 30_000),
    "Retry-After earlier than ours": (4, 1.0, 0.5, 40_000),
    "Retry-After of zero": (1, 0.0, 0.5, 5_000),
    "Retry-After beyond our own cap is honoured": (1, 7200.0, 0.5, 7_200_000),
    "Retry-After beyond a day is not": (1, 10.0**9, 0.5, 86_400_000),
    "Retry-After below zero": (1, -50.0, 0.5, 5_000),
    "nothing failed yet": (0, None, 0.5, 5_000),
}


@pytest.mark.parametrize("name", RETRY)
def test_retry_at(name: str) -> None:
    attempts, retry_after, jitter, wait = RETRY[name]
    assert retry_at(NOW, attempts, base_s=5, max_s=60, retry_after_s=retry_after, jitter=jitter) == NOW + wait


@given(st.integers(0, 100), st.one_of(st.none(), st.floats(allow_nan=False)), st.floats(0, 1))
def test_a_retry_is_never_at_once_and_never_beyond_a_day(
    attempts: int, retry_after: float | None, jitter: float
) -> None:
    wait = retry_at(0, attempts, base_s=5, max_s=3600, retry_after_s=retry_after, jitter=jitter)
    assert 3_750 <= wait <= 86_400_000
