"""The engine's events: one frozen dataclass for each kind. Pure.

The engine publishes an event after the commit that made it true, so a crash never undoes what a subscriber saw. An event
carries facts only, never a live object. Every time is in epoch milliseconds; `at` is when the engine learned of it.
The file is long because it is a catalogue, in sections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from daemon.core.attempt_end import AttemptEnd
from daemon.core.egress_usage import Usage
from daemon.core.slots import Deploy
from daemon.core.trace import SpanStart
from schema.frozen import frozen
from schema.rows import Address, Cause, TurnUsage


@frozen
class Event:
    """Something that happened."""

    at: int


@frozen
class SessionEvent(Event):
    """Something that happened in one session."""

    agent: str
    session: str


# --- messages come in


@frozen
class MessageAccepted(SessionEvent):
    """A message is stored, or was stored before (`duplicate`). If it was requeued, `message_id` is the requeued message.

    `pending`: it is not finished, so its session may have to wake.
    """

    message_id: str
    seq: int
    kind: str
    channel: str | None
    trigger: bool
    duplicate: bool
    pending: bool
    process_after: int | None
    not_after: int | None
    span: SpanStart


@frozen
class MessageRequeued(SessionEvent):
    """A dead letter was sent again as message `requeued_as`, because `by` asked for it."""

    message_id: str
    requeued_as: str
    by: str
    reason: str | None


@frozen
class MessageRefused(Event):
    """A message was refused with this error code; nothing was stored."""

    code: str


@frozen
class EventRefused(Event):
    """Events of a place did not reach an agent, or none. `times` counts them since this was last published."""

    channel: str
    place: str
    sender: str
    agent: str
    route: str
    reason: str
    why: str
    times: int


# --- attempts


@frozen
class MessageClaimed(SessionEvent):
    """The live incarnation has started to work on a message. `address` is where its answer goes, if it names a place."""

    message_id: str
    incarnation: str | None
    address: Address | None = None


@frozen
class TurnsBegun(SessionEvent):
    """The host learned that the session's agent began turns. Some of them may have ended already."""

    turns: int


@frozen
class TurnStopped(SessionEvent):
    """The turn of a cancelled message has stopped. It used `usage`."""

    message_id: str
    incarnation: str | None
    usage: TurnUsage | None


@frozen
class BudgetUsedUp(Event):
    """An agent has used up its daily budget. `spent` says of what, such as `20 of 20 turns`. Its messages wait until `until`."""

    agent: str
    spent: str
    until: int


@frozen
class MessageSettled(SessionEvent):
    """A turn ended and its message has its final status: completed, or failed because the agent answered with an error."""

    message_id: str
    incarnation: str | None
    completed: bool
    attempt: AttemptEnd | None
    usage: TurnUsage | None = None


@frozen
class MessageRetried(SessionEvent):
    """An attempt ended with its container; the message is due again at `process_after`. `tries` counts this attempt."""

    message_id: str
    incarnation: str | None
    tries: int
    process_after: int
    exit_code: int | None
    attempt: AttemptEnd | None


@frozen
class MessageDeadLettered(SessionEvent):
    """A message was given up, with this code. Fields that do not apply to the code are None."""

    message_id: str
    code: str
    tries: int | None = None
    exit_code: int | None = None
    reason: str | None = None
    attempt: AttemptEnd | None = None


@frozen
class MessageDeferred(SessionEvent):
    """The agent asked for the message to be tried again later, for the `times`th time; it is due at `until`."""

    message_id: str
    until: int
    reason: str | None
    times: int


@frozen
class MessageExpired(SessionEvent):
    """A message expired before a turn began with it, and is cancelled."""

    message_id: str


@frozen
class AckVoided(SessionEvent):
    """A final ack does not count: it is older than its message, or the daemon was ending the container."""

    message_id: str
    incarnation: str | None


@frozen
class ScheduleFired(SessionEvent):
    """A schedule sent its message `message_id`. `series_id` is `schedule:KEY`."""

    message_id: str
    series_id: str


@frozen
class SchedulePaused(SessionEvent):
    """The schedule `schedule` was paused: its messages failed `failures` times in a row."""

    schedule: str
    failures: int


@frozen
class SeriesRearmed(SessionEvent):
    """A repeating message got its next occurrence: message `message_id`, due at `process_after`."""

    message_id: str
    series_id: str | None
    process_after: int | None


# --- questions


@frozen
class QuestionAsked(SessionEvent):
    """An agent asks a person; the answer is due at `deadline`. Its turn works on `message_id`."""

    question_id: str
    message_id: str | None
    deadline: int


@frozen
class QuestionDecided(SessionEvent):
    """A question ended: answered, declined, timeout or cancelled. `notify`: the agent gets a message about it."""

    question_id: str
    message_id: str | None
    outcome: str
    by: str | None
    notify: bool


# --- answers go out


@frozen
class DeliveredAnswer:
    """One answer with a receipt. `span` begins with its send, which ended at `ended_at`; `cause` is the message it answers."""

    message_out_id: str
    in_reply_to: str | None
    channel: str
    attempt: int
    cause: Cause | None
    span: SpanStart | None
    ended_at: int


@frozen
class AnswersDelivered(SessionEvent):
    """The receipts of these answers were committed, in one transaction."""

    answers: tuple[DeliveredAnswer, ...]


@frozen
class AgentSaid(SessionEvent):
    """An agent said something in the middle of a turn, and it is being sent. `edits` is the earlier message that it replaces."""

    message_out_id: str
    in_reply_to: str | None
    text: str
    edits: str | None


@frozen
class AgentWrote(SessionEvent):
    """An agent wrote a line of `progress` or `stderr` (`kind`) while it worked on these messages. It is not an answer.

    The daemon reads such lines only while somebody watches. The container may write anything there: never act on it.
    """

    messages: tuple[str, ...]
    kind: str
    text: str


@frozen
class AnswerNotWanted(SessionEvent):
    """The configuration asks for no answers at this destination, so this one is finished without being sent."""

    message_out_id: str
    in_reply_to: str | None
    channel: str


@frozen
class SendFailed(SessionEvent):
    """A send failed. `final`: the answer is a dead letter now; otherwise it is sent again.

    `in_doubt`: it may have arrived nevertheless.
    """

    message_out_id: str
    channel: str
    attempt: int
    cause: Cause | None
    code: str
    error: str
    in_doubt: bool
    final: bool
    span: SpanStart | None
    ended_at: int


@frozen
class SendInDoubt(SessionEvent):
    """An earlier send has no receipt and may have arrived; the answer is sent again, as this attempt."""

    message_out_id: str
    channel: str
    attempt: int


@frozen
class AnswerDeferred(SessionEvent):
    """The channel could not take the answer now; it is sent later."""

    message_out_id: str
    channel: str
    code: str
    error: str


@frozen
class AnswerDeadLettered(SessionEvent):
    """An answer was given up."""

    message_out_id: str
    cause: Cause | None
    code: str
    error: str


@frozen
class AnswerDropped(SessionEvent):
    """An operator dropped an answer."""

    message_out_id: str


# --- containers


@frozen
class ContainerSpawned(SessionEvent):
    """A container that was asked for at `asked_at` has started."""

    incarnation: str
    container_id: str
    runtime: str
    asked_at: int


@frozen
class ContainerAdopted(SessionEvent):
    """The daemon now supervises a container that was running already."""

    incarnation: str
    container_id: str
    asked_at: int
    started_at: int


@frozen
class SpawnFailed(SessionEvent):
    """A container could not be started, or (`started`) ended by itself before it did anything.

    The daemon may try again in `retry_s` seconds; `failures` counts the failures in a row.
    """

    code: str
    error: str
    hint: str
    failures: int
    retry_s: float
    started: bool


@frozen
class ContainerExited(SessionEvent):
    """A container's exit is confirmed, and not yet settled."""

    incarnation: str
    reason: str
    exit_code: int | None
    out_of_memory: bool


@frozen
class ExitSettled(SessionEvent):
    """A confirmed exit is settled in the session's files."""

    incarnation: str
    reason: str


@frozen
class ContainerStuck(SessionEvent):
    """A container made no progress for `silent_ms`, longer than the `allowed_ms`; the daemon ends it."""

    reason: str
    silent_ms: int
    allowed_ms: int
    message_id: str | None


@frozen
class ContainerIdle(SessionEvent):
    """A container has had nothing to do for `quiet_ms`; the daemon stops it."""

    quiet_ms: int


# --- repair


@frozen
class JournalRecovered(SessionEvent):
    """The half-written commit that a container left behind was rolled back."""


@frozen
class SessionQuarantined(SessionEvent):
    """A session is out of service until an operator releases it."""

    reason: str


@frozen
class FilesLocked(SessionEvent):
    """Another process locked a session's files for too long; `error` says which file."""

    error: str


@frozen
class SweepFinished(Event):
    """A pass over the active sessions is over: `duration_s` seconds, without the pauses between them."""

    sessions: int
    errors: int
    duration_s: float


# --- deploys


@frozen
class DeployEnded(Event):
    """A deploy is over, whatever its result. The daemon that serves afterwards publishes this."""

    deploy: Deploy


# --- the gate

EGRESS_CLIENT_GONE: Final = "EGRESS_CLIENT_GONE"  # the container closed the connection; the gate refused nothing


@frozen
class EgressRequest(SessionEvent):
    """A container's request at the gate is over.

    `name` is the route or the table of hosts that allowed it, None if nothing did. `target` has no query. `code` is None if
    the target answered in full. So that a container cannot fill the disk, logs show only some requests: `unlogged` is None
    for one that they leave out, else the number left out since the last one shown.
    """

    name: str | None
    method: str
    target: str
    status: int
    code: str | None
    error: str
    bytes_up: int
    bytes_down: int
    duration_ms: int
    unlogged: int | None
    usage: Usage


E = TypeVar("E", bound=Event)


class Subscriptions(Protocol):
    """The registration of subscribers."""

    def subscribe(self, kind: type[E], handler: Callable[[E], None]) -> None:
        """Call `handler` with every event of exactly this class, in the event loop."""
        ...
