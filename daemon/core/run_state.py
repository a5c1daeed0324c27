"""Decides the actual state of one run when its sources disagree. Pure: no I/O, no clock; it repairs nothing.

A run is one message in one incarnation. The truth order: the trace and its errors (the answer that was committed, the
container that lives or is gone), then the terminal history, then the finishes (acks and ended attempts), and last
the status that a list shows. A source counts only where those before it are silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from schema.frozen import frozen
from schema.rows import AckStatus, MessageStatus

# An ack, its answer and an exit are settled within moments; a disagreement younger than this is work under way.
SETTLING_MS: Final = 10_000


class RunStatus(StrEnum):
    """What a run is. The last two ended without finishing their message, which is tried again or was given up."""

    WAITING = "waiting"  # no container has claimed it
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ORPHANED = "orphaned"  # its container ended before the work was done; that cost a try
    RELEASED = "released"  # its container gave it back; that cost none


# What files call a run that its agent put off: its container gave it back, and that cost no try.
DEFERRED: Final = "deferred"


def outcome_of(name: object) -> RunStatus | None:
    """Return the status behind an attempt's outcome, or behind the event that ended it; None for any other word."""
    try:
        return RunStatus.RELEASED if name == DEFERRED else RunStatus(str(name))
    except ValueError:
        return None


FINISHED: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})
ENDED: Final = frozenset({*FINISHED, RunStatus.ORPHANED, RunStatus.RELEASED})


class Source(StrEnum):
    """The source of a statement about a run, in the order of truth."""

    TRACE = "trace"  # the answer in outbound.db, and whether the container lives
    HISTORY = "history"  # message_history
    FINISH = "finish"  # processing_ack and attempts
    LIST = "list"  # messages_in.status


class Life(StrEnum):
    """Whether the container of an incarnation lives: the runtime's word, not our record's."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"  # the runtime could not be asked


class Confidence(StrEnum):
    """How far a verdict can be acted upon."""

    HIGH = "high"  # every source that matters was read, and none that is final contradicts
    MEDIUM = "medium"  # one source that matters is silent where it should speak
    LOW = "low"  # final sources contradict each other, or one that matters could not be read


@frozen
class Answer:
    """An answer to the message, as committed in outbound.db. `error`: the agent's own, when the answer is one."""

    message_out_id: str
    at: int | None
    error: str | None = None


@frozen
class Ending:
    """A history row that ends the run."""

    status: RunStatus
    at: int
    reason: str | None = None


@frozen
class RunEvidence:
    """Everything that the sources say about one run. Times are epoch milliseconds.

    `incarnation` None: the message is unclaimed. `latest`: the message has no later run, so that its status is
    this run's. `claimed`: an attempt is recorded or the container says that it works on it. `synced`: a daemon runs that
    settles what the container writes. `unreadable`: sources that could not be read.
    """

    message_id: str
    incarnation: str | None
    now: int
    listed: MessageStatus
    latest: bool = True
    answers: tuple[Answer, ...] = ()
    life: Life = Life.UNKNOWN
    gone_at: int | None = None
    endings: tuple[Ending, ...] = ()
    claimed_at: int | None = None
    claimed: bool = False
    attempted: bool = False
    outcome: RunStatus | None = None
    ended_at: int | None = None
    ack: AckStatus | None = None
    ack_at: int | None = None
    synced: bool = True
    unreadable: frozenset[Source] = field(default_factory=frozenset[Source])


@frozen
class Reason:
    """Why a run is stale or its verdict doubtful. `code` is stable, `text` is a sentence."""

    code: str
    text: str


@frozen
class Verdict:
    """The truth about one run.

    `status` is the truth, `listed` what a list shows; `stale` when they differ and nothing is about to correct it.
    `inconsistent`: two final sources contradict each other, so no repair may choose between them. `lacks`: what the host's
    file does not say yet and must, in the order it has to be written: history, finish, list. `since` is epoch ms.
    """

    status: RunStatus
    listed: RunStatus
    stale: bool
    reasons: tuple[Reason, ...]
    confidence: Confidence
    decided_by: Source
    inconsistent: bool = False
    lacks: tuple[Source, ...] = ()
    since: int | None = None


_OF_MESSAGE: Final[Mapping[MessageStatus, RunStatus]] = MappingProxyType(
    {
        MessageStatus.COMPLETED: RunStatus.COMPLETED,
        MessageStatus.FAILED: RunStatus.FAILED,
        MessageStatus.CANCELLED: RunStatus.CANCELLED,
    }
)
_OF_ACK: Final[Mapping[AckStatus, RunStatus]] = MappingProxyType(
    {AckStatus.COMPLETED: RunStatus.COMPLETED, AckStatus.FAILED: RunStatus.FAILED}
)


def judge(seen: RunEvidence) -> Verdict:
    """Judge one run."""
    words = {
        Source.TRACE: _trace(seen),
        Source.HISTORY: _history(seen),
        Source.FINISH: _finish(seen),
        Source.LIST: _listed(seen),
    }
    status, source = _truth(seen, words)
    listed = words[Source.LIST] or RunStatus.WAITING
    finals = {
        word for place, word in words.items() if word is not None and word in FINISHED and _counts(place, seen, words)
    }
    inconsistent = len(finals) > 1
    reasons = _reasons(seen, words, status, listed, finals)
    differs = status is not listed or inconsistent
    lacks = _lacks(seen, words, status)
    stale = (differs or bool(lacks)) and not _settling(seen)
    if not stale and (differs or lacks):
        reasons = (*reasons, Reason("SETTLING", "This has only just happened; the daemon is about to record it."))
    return Verdict(
        status=status,
        listed=listed,
        stale=stale,
        reasons=reasons,
        confidence=_confidence(seen, status, source, inconsistent=inconsistent),
        decided_by=source,
        inconsistent=inconsistent,
        lacks=lacks,
        since=_since(seen, status),
    )


# --- what each source says


def _trace(seen: RunEvidence) -> RunStatus | None:
    """Read the answer and the container. An answer is interim while its claim is open and its container lives."""
    working = seen.ack is AckStatus.PROCESSING or (seen.claimed and seen.ack is None and seen.outcome is None)
    if working and seen.life is Life.ALIVE:
        return RunStatus.RUNNING
    if seen.answers:
        # The runner writes answer and ack together, so an `error` beside a 'completed' is text of the agent.
        failed = any(answer.error is not None for answer in seen.answers) and seen.ack is not AckStatus.COMPLETED
        return RunStatus.FAILED if failed else RunStatus.COMPLETED
    return None


def _history(seen: RunEvidence) -> RunStatus | None:
    """Read the last history row that ends the run; a finish wins over an interruption."""
    words = [ending.status for ending in seen.endings]
    return next((word for word in reversed(words) if word in FINISHED), words[-1] if words else None)


def _finish(seen: RunEvidence) -> RunStatus | None:
    if seen.ack is not None and seen.ack in _OF_ACK:
        return _OF_ACK[seen.ack]
    return seen.outcome


def _listed(seen: RunEvidence) -> RunStatus:
    if seen.latest and seen.listed in _OF_MESSAGE:
        return _OF_MESSAGE[seen.listed]
    if seen.latest and seen.outcome in FINISHED:
        return RunStatus.WAITING  # the attempt has ended, and its message is still pending
    if seen.outcome is not None:
        return seen.outcome
    return RunStatus.RUNNING if seen.claimed else RunStatus.WAITING


# --- the judgement


def _truth(seen: RunEvidence, words: Mapping[Source, RunStatus | None]) -> tuple[RunStatus, Source]:
    if words[Source.HISTORY] is RunStatus.CANCELLED:
        return (
            RunStatus.CANCELLED,
            Source.HISTORY,
        )  # somebody decided that; an answer that came all the same changes nothing
    for source in (Source.TRACE, Source.HISTORY, Source.FINISH):
        word = words[source]
        if word is not None:
            return word, source
    if seen.claimed and seen.life is Life.GONE and words[Source.LIST] not in FINISHED:
        return RunStatus.ORPHANED, Source.TRACE
    return words[Source.LIST] or RunStatus.WAITING, Source.LIST


def _counts(place: Source, seen: RunEvidence, words: Mapping[Source, RunStatus | None]) -> bool:
    """Return whether a final source may contradict others. A cancelled message whose agent continued contradicts nothing."""
    cancelled = RunStatus.CANCELLED in (words[Source.HISTORY], words[Source.LIST])
    return not (cancelled and place in (Source.TRACE, Source.FINISH)) and (seen.latest or place is not Source.LIST)


def _lacks(seen: RunEvidence, words: Mapping[Source, RunStatus | None], status: RunStatus) -> tuple[Source, ...]:
    if status not in ENDED:
        return ()
    missing: list[Source] = []
    final = status in FINISHED
    if seen.latest and words[Source.HISTORY] is not status and (final or seen.outcome is None):
        missing.append(Source.HISTORY)
    # The claim of a cancelled message is settled only when its container ends, and one whose life is unknown may work on it.
    unsettled = status is RunStatus.CANCELLED and seen.life is not Life.GONE
    if seen.attempted and seen.outcome is None and not unsettled:
        missing.append(Source.FINISH)
    if seen.latest and final and words[Source.LIST] is not status:
        missing.append(Source.LIST)
    return tuple(missing)


def _settling(seen: RunEvidence) -> bool:
    """Return whether the newest evidence is so young that the running daemon may not have processed it yet."""
    newest = max(
        (
            at
            for at in (seen.ack_at, seen.gone_at, seen.ended_at, *(item.at for item in seen.answers))
            if at is not None
        ),
        default=None,
    )
    return seen.synced and newest is not None and 0 <= seen.now - newest < SETTLING_MS


def _since(seen: RunEvidence, status: RunStatus) -> int | None:
    if status is RunStatus.RUNNING:
        return seen.claimed_at
    ends = [ending.at for ending in seen.endings if ending.status is status]
    if ends:
        return ends[-1]
    if status is RunStatus.ORPHANED:
        return seen.gone_at if seen.gone_at is not None else seen.ended_at
    if status in FINISHED:
        return seen.ack_at if seen.ack_at is not None else next((item.at for item in seen.answers), None)
    return seen.ended_at


def _confidence(seen: RunEvidence, status: RunStatus, source: Source, *, inconsistent: bool) -> Confidence:
    if inconsistent:
        return Confidence.LOW
    matters = (Source.TRACE, Source.HISTORY, Source.FINISH, Source.LIST)
    before = set(matters[: matters.index(source) + 1])
    open_claim = seen.claimed and status not in ENDED
    if seen.unreadable & before or (open_claim and seen.life is Life.UNKNOWN):
        return Confidence.LOW
    if seen.ack is AckStatus.PROCESSING and source is Source.TRACE and status in FINISHED:
        return (
            Confidence.LOW
        )  # an answer whose claim is open and whose container is gone: no runner of ours leaves that
    unsaid = source is Source.LIST and status in FINISHED
    return Confidence.MEDIUM if unsaid or seen.unreadable else Confidence.HIGH


def _reasons(
    seen: RunEvidence,
    words: Mapping[Source, RunStatus | None],
    status: RunStatus,
    listed: RunStatus,
    finals: set[RunStatus],
) -> tuple[Reason, ...]:
    found: list[Reason] = []
    if len(finals) > 1:
        told = ", ".join(
            f"{source.value} says {word.value}" for source, word in words.items() if word in finals and word is not None
        )
        found.append(Reason("CONTRADICTION", f"Final sources contradict each other: {told}."))
    if status is not listed:
        found.append(_disagreement(seen, words, status, listed))
    if status in FINISHED and words[Source.HISTORY] is None and seen.latest and listed is status:
        found.append(Reason("HISTORY_MISSING", f"It is listed as {listed.value}, and the history does not say so."))
    if Source.FINISH in _lacks(seen, words, status) and listed is status:
        found.append(Reason("FINISH_MISSING", f"It is {status.value}, and its attempt is still open."))
    if seen.claimed and status not in ENDED and seen.life is Life.UNKNOWN:
        found.append(
            Reason("LIFE_UNKNOWN", "Whether its container lives is not known: the runtime could not be asked.")
        )
    if seen.unreadable:
        names = ", ".join(sorted(source.value for source in seen.unreadable))
        found.append(Reason("UNREADABLE", f"Not every source could be read: {names}."))
    return tuple(found)


def _disagreement(
    seen: RunEvidence, words: Mapping[Source, RunStatus | None], status: RunStatus, listed: RunStatus
) -> Reason:
    if status is RunStatus.ORPHANED and words[Source.HISTORY] is None:
        return Reason("CONTAINER_GONE", f"It is listed as {listed.value}, and its container is gone.")
    if words[Source.HISTORY] is status:
        return Reason("HISTORY_FINAL", f"The history says {status.value}, the list {listed.value}.")
    if words[Source.FINISH] is status:
        return Reason(
            "ACK_NOT_SETTLED", f"Its container acknowledged it as {status.value}, the list says {listed.value}."
        )
    if status is RunStatus.RUNNING:
        return Reason("STILL_RUNNING", f"Its container lives and works on it, the list says {listed.value}.")
    answer = next((item.message_out_id for item in seen.answers), None)
    return Reason("ANSWERED", f"Its answer {answer} is committed, the list says {listed.value}.")
