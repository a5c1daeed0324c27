"""Decides what to do with each outbound row. Pure: no I/O, no clock, no log; the caller executes the decisions.

Rules: a row goes only where its session may write; only the head of a destination is ever sent; a channel that does not
deduplicate gets one send at a time, so that a crash leaves at most one send in doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import StrEnum
from typing import Final

from daemon.core.sent_files import NONE, SentFiles
from schema.frozen import frozen
from schema.json_text import UnsendableError, check
from schema.questions import QuestionError, from_content, is_question
from schema.rows import Address, Cause, DeliveryState, Kind, MessageOut
from schema.schedule_requests import is_schedule_request

DELIVERABLE: Final = frozenset({Kind.CHAT.value, Kind.CHAT_SDK.value, Kind.TASK.value, Kind.WEBHOOK.value})


class Reason(StrEnum):
    """Why a row is not sent now. The dead letter's code."""

    UNKNOWN_KIND = "UNKNOWN_KIND"
    BAD_CONTENT = "BAD_CONTENT"
    NO_ROUTE = "NO_ROUTE"
    UNAUTHORISED = "UNAUTHORISED_DESTINATION"
    REVOKED = "DESTINATION_REVOKED"
    NO_CHANNEL = "NO_CHANNEL"
    ROW_GONE = "ROW_GONE"
    IN_DOUBT = "IN_DOUBT"
    TOO_FAR_AHEAD = "TOO_FAR_AHEAD"
    TOO_MANY_SCHEDULED = "TOO_MANY_SCHEDULED"
    BAD_QUESTION = "BAD_QUESTION"
    TOO_MANY_QUESTIONS = "TOO_MANY_QUESTIONS"


# What a container's own row is refused for. Each such row costs rows of the host's file; a channel's refusal is not its doing.
OF_CONTAINER: Final = frozenset(
    {
        Reason.UNKNOWN_KIND, Reason.BAD_CONTENT, Reason.NO_ROUTE, Reason.UNAUTHORISED, Reason.ROW_GONE,
        Reason.REVOKED, Reason.TOO_FAR_AHEAD, Reason.TOO_MANY_SCHEDULED, Reason.BAD_QUESTION, Reason.TOO_MANY_QUESTIONS,
    }
)  # fmt: skip


@frozen
class Candidate:
    """One outbound row with all that the decision needs. `state` None: not recorded yet."""

    row: MessageOut
    from_host: bool
    state: DeliveryState | None
    attempts: int = 0
    first_at: int = 0
    doubts: int = 0
    origin: Address | None = None
    gone: bool = False
    cause: Cause | None = None  # passed through; planning never looks at it
    files: SentFiles = NONE  # passed through as well


@frozen
class HeadRule:
    """For how long an answer that keeps failing holds back the later ones of its destination.

    Until it has failed `attempts` times, or for `seconds`. `seconds` None: for as long as it is retried (strict order).
    """

    attempts: int = 5
    seconds: float | None = 300.0

    def is_over(self, attempts: int, age_ms: int) -> bool:
        """Return whether a later answer may be tried."""
        return self.seconds is not None and (attempts >= self.attempts or age_ms >= self.seconds * 1000)


@frozen
class ChannelRules:
    """How the plan treats a channel: what the channel can do, and what the operator has set for it."""

    deduplicates: bool
    hold_in_doubt: bool
    head: HeadRule = field(default_factory=HeadRule)


@frozen
class Rules:
    """What the session may do and the channels can.

    `held`: destinations with a send under way or a failed head. `full`: (channel, place) to which the session may
    begin no send now. `probing`: destinations whose head has failed for so long that one later row is tried, to find
    out whether the receiver or the head is at fault. `scheduled_room`: how many more rows may wait for a time of
    their own, which may be `max_ahead_ms` away. `question_room`: how many more questions may be open. `revoked`: places
    that the session was once allowed to write to and no longer is.
    """

    now: int
    routing: Address | None
    allowed: frozenset[tuple[str, str]]
    channels: Mapping[str, ChannelRules]
    held: frozenset[str]
    max_content_bytes: int
    full: frozenset[tuple[str, str]] = frozenset()
    probing: frozenset[str] = frozenset()
    scheduled_room: int = 1000
    max_ahead_ms: int = 366 * 86_400_000
    question_room: int = 20
    revoked: frozenset[tuple[str, str]] = frozenset()


@frozen
class Send:
    """Record the intent, then send."""

    candidate: Candidate
    address: Address
    in_doubt: bool = False


@frozen
class Queue:
    """Record it; its turn comes later. `not_before` is epoch ms or None. `blocked`: it waits for a send's slot."""

    candidate: Candidate
    address: Address
    not_before: int | None
    blocked: bool = False


@frozen
class Defer:
    """Nothing can take it now; count it as a failed attempt and retry."""

    candidate: Candidate
    address: Address
    reason: Reason
    error: str


@frozen
class DeadLetterDecision:
    """A dead letter at once. `reason` is its code: one of Reason, or the channel's own."""

    candidate: Candidate
    reason: str
    error: str
    address: Address | None = None


@frozen
class CarryOut:
    """The row is a request about the agent's schedules: the host carries it out, and sends nothing."""

    candidate: Candidate
    address: Address


Decision = Send | Queue | Defer | DeadLetterDecision | CarryOut


def plan(candidates: Iterable[Candidate], rules: Rules) -> list[Decision]:
    """Return a decision for each candidate, in seq order. `candidates` may come in any order."""
    held = set(rules.held)
    room, questions = rules.scheduled_room, rules.question_room
    found: list[tuple[int, Decision]] = []
    for candidate in sorted(candidates, key=lambda item: _turn(item, rules)):
        decision = _decide(candidate, rules, held)
        if isinstance(decision, Queue) and candidate.state is None and decision.not_before is not None:
            room -= 1
            if room < 0:
                error = "too many answers of this session wait for a time of their own (delivery.max_scheduled_answers)"
                decision = DeadLetterDecision(candidate, Reason.TOO_MANY_SCHEDULED, error, decision.address)
        elif candidate.state is None and is_question(candidate.row.kind, candidate.row.content):
            questions -= not isinstance(decision, DeadLetterDecision)
            if questions < 0:
                error = "too many questions of this session are open"
                decision = DeadLetterDecision(candidate, Reason.TOO_MANY_QUESTIONS, error)
        found.append((candidate.row.seq, decision))
        if isinstance(decision, Defer) or (isinstance(decision, Send) and not _batches(decision.address, rules)):
            held.add(decision.address.key)
    return [decision for _, decision in sorted(found, key=lambda one: one[0])]


def _turn(candidate: Candidate, rules: Rules) -> tuple[int, int]:
    """Return the order of arrival, but a row in doubt first: an earlier one whose time has come since waits for it.

    Otherwise a second crash would leave two in doubt at one destination. Where one later row is tried, the first untried
    one comes first.
    """
    if candidate.state is DeliveryState.INTENDED:
        return -1, candidate.row.seq
    if not rules.probing or candidate.state is not DeliveryState.QUEUED or not candidate.attempts:
        return 0, candidate.row.seq
    address = _address(candidate, rules)
    return int(isinstance(address, Address) and address.key in rules.probing), candidate.row.seq


def _decide(candidate: Candidate, rules: Rules, held: set[str]) -> Decision:
    if candidate.gone:
        return DeadLetterDecision(candidate, Reason.ROW_GONE, "the row is no longer in outbound.db")
    refused = _refuse_row(candidate, rules)
    if refused is not None:
        return refused
    address = _address(candidate, rules)
    if isinstance(address, DeadLetterDecision):
        return address
    row = candidate.row
    if is_schedule_request(row.kind, row.content):
        return CarryOut(candidate, address)
    if candidate.state is None and row.deliver_after is not None and row.deliver_after > rules.now:
        if row.deliver_after - rules.now > rules.max_ahead_ms:
            days = rules.max_ahead_ms / 86_400_000
            error = f"deliver_after is more than {days:g} days away (delivery.max_ahead_s)"
            return DeadLetterDecision(candidate, Reason.TOO_FAR_AHEAD, error, address)
        return Queue(candidate, address, row.deliver_after)
    if address.key in held:
        return Queue(candidate, address, None)
    if (address.channel_type, address.platform_id) in rules.full:
        return Queue(candidate, address, None, blocked=True)
    traits = rules.channels.get(address.channel_type)
    if traits is None:
        known = ", ".join(sorted(rules.channels)) or "none"
        return Defer(candidate, address, Reason.NO_CHANNEL,
                     f"no channel {address.channel_type!r} is configured (known: {known})")  # fmt: skip
    in_doubt = candidate.state is DeliveryState.INTENDED
    if in_doubt and not traits.deduplicates and traits.hold_in_doubt:
        error = "a crash left it unknown whether this was sent, and the channel's policy is to hold"
        return DeadLetterDecision(candidate, Reason.IN_DOUBT, error, address)
    return Send(candidate, address, in_doubt=in_doubt)


def _refuse_row(candidate: Candidate, rules: Rules) -> DeadLetterDecision | None:
    row = candidate.row
    asks = is_question(row.kind, row.content)
    if row.kind not in DELIVERABLE and not asks and not is_schedule_request(row.kind, row.content):
        return DeadLetterDecision(candidate, Reason.UNKNOWN_KIND, f"nothing delivers rows of kind {row.kind!r}")
    if len(row.content.encode("utf-8", "surrogatepass")) > rules.max_content_bytes:
        return DeadLetterDecision(candidate, Reason.BAD_CONTENT, f"content is over {rules.max_content_bytes} bytes")
    try:
        check(row.content)
    except UnsendableError as error:
        return DeadLetterDecision(candidate, Reason.BAD_CONTENT, f"content {error}")
    except ValueError:
        return DeadLetterDecision(candidate, Reason.BAD_CONTENT, "content is not JSON")
    if asks:
        try:
            from_content(row.id, row.content)
        except QuestionError as error:
            return DeadLetterDecision(candidate, Reason.BAD_QUESTION, f"the question {error}")
    return None


def _address(candidate: Candidate, rules: Rules) -> Address | DeadLetterDecision:
    """Return the row's address: its own, else that of the message it answers, else the session's route."""
    row = candidate.row
    if row.channel_type is None or row.platform_id is None:
        default = candidate.origin or rules.routing
        if default is None:
            return DeadLetterDecision(
                candidate, Reason.NO_ROUTE, "it names no destination and the session has no route"
            )
        return Address(default.channel_type, default.platform_id, row.thread_id or default.thread_id)
    wanted = Address(row.channel_type, row.platform_id, row.thread_id)
    place = (wanted.channel_type, wanted.platform_id)
    if candidate.from_host or place in rules.allowed or _is_at(candidate.origin, place) or _is_at(rules.routing, place):
        return wanted
    if place in rules.revoked:
        error = (
            f"{wanted.channel_type}:{wanted.platform_id} is no longer a destination of this agent:"
            " its route or table was removed after the container had started"
        )
        return DeadLetterDecision(candidate, Reason.REVOKED, error, wanted)
    error = f"the session may not write to {wanted.channel_type}:{wanted.platform_id}"
    return DeadLetterDecision(candidate, Reason.UNAUTHORISED, error, wanted)


def _is_at(address: Address | None, place: tuple[str, str]) -> bool:
    return address is not None and (address.channel_type, address.platform_id) == place


def _batches(address: Address, rules: Rules) -> bool:
    traits = rules.channels.get(address.channel_type)
    return traits is not None and traits.deduplicates and address.key not in rules.probing


def retry_at(
    now: int, attempts: int, *, base_s: float, max_s: float, retry_after_s: float | None, jitter: float
) -> int:
    """Return the time of the next attempt after `attempts` failed ones, in epoch ms. `jitter` (0..1) varies it by up to a quarter.

    A receiver's Retry-After is honoured when it is later than our own back-off, up to a day.
    """
    backoff = min(base_s * 2 ** min(max(attempts - 1, 0), 30), max_s) * (0.75 + 0.5 * jitter)
    if retry_after_s is not None:
        backoff = max(backoff, min(retry_after_s, 86_400.0))
    return now + int(backoff * 1000)
