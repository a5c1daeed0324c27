"""From rows to runs: which of a message's rows are evidence about which of its runs. Pure.

The rows are those of the session's two files (`reading.py` reads them); `run_state.py` judges what they prove.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.core.run_state import (
    FINISHED,
    Answer,
    Ending,
    Life,
    RunEvidence,
    RunStatus,
    Source,
    Verdict,
    judge,
    outcome_of,
)
from schema.frozen import frozen
from schema.rows import Ack, AckStatus, MessageStatus


@frozen
class RuntimeContext:
    """What judging a session's runs needs to know apart from its two files. Times are epoch milliseconds.

    `alive`: the incarnations whose container is known to run. `complete`: every other one is known not to.
    `born`, `ended`: when an incarnation was recorded, and when its exit was confirmed. `synced`: a running daemon settles
    what the container writes. `occupied`: a container of the session runs, or may.
    """

    now: int
    synced: bool
    alive: frozenset[str] = frozenset()
    complete: bool = True
    born: Mapping[str, int] = field(default_factory=dict[str, int])
    ended: Mapping[str, int] = field(default_factory=dict[str, int])
    occupied: bool = False

    def life(self, incarnation: str | None) -> Life:
        """Return whether an incarnation's container lives: by the runtime's word first, then by a recorded exit."""
        if incarnation is None:
            return Life.GONE
        if incarnation in self.alive:
            return Life.ALIVE
        return Life.GONE if self.complete or incarnation in self.ended else Life.UNKNOWN

    def ended_at(self, incarnation: str | None) -> int | None:
        """Return when its exit was confirmed, or None."""
        return self.ended.get(incarnation) if incarnation is not None else None

    def born_at(self, incarnation: str | None) -> int | None:
        """Return when it was recorded, or None: nothing older is evidence about it."""
        return self.born.get(incarnation) if incarnation is not None else None


@frozen
class MessageSeen:
    """The message of a run, as a list shows it. `text` is the sender's first words."""

    message_id: str
    seq: int
    kind: str
    status: MessageStatus
    text: str
    accepted_at: int | None
    process_after: int | None
    tries: int
    trigger: bool
    void_ack: str | None = None


@frozen
class RunRead:
    """One run: its evidence and the verdict on it."""

    message: MessageSeen
    evidence: RunEvidence
    verdict: Verdict

    @property
    def run_id(self) -> str:
        """MESSAGE@INCARNATION; the message's id alone while it is unclaimed."""
        seen = self.evidence
        return seen.message_id if seen.incarnation is None else f"{seen.message_id}@{seen.incarnation}"

    @property
    def at(self) -> int:
        """When something last happened to it, epoch ms; 0 when nothing is dated."""
        seen = self.evidence
        marks_ = (self.message.accepted_at, seen.claimed_at, seen.ended_at, self.verdict.since)
        return max((mark for mark in marks_ if mark is not None), default=0)


@dataclass(slots=True)
class InboundRows:
    """What inbound.db says, by message."""

    messages: list[MessageSeen] = field(default_factory=list[MessageSeen])
    attempts: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    endings: dict[str, list[tuple[str | None, Ending]]] = field(
        default_factory=dict[str, list[tuple[str | None, Ending]]]
    )


@dataclass(slots=True)
class OutboundRows:
    """What outbound.db says, by message. `unreadable` names the sources that could not be asked."""

    acks: dict[str, Ack] = field(default_factory=dict[str, Ack])
    answers: dict[str, list[Answer]] = field(default_factory=dict[str, list[Answer]])
    unreadable: frozenset[Source] = frozenset()


def runs_of(message: MessageSeen, host: InboundRows, box: OutboundRows, context: RuntimeContext) -> list[RunRead]:
    """Return the runs of one message in the order of their claims, each with its evidence and verdict."""
    attempts = host.attempts.get(message.message_id, [])
    ack = _ack_of(message, box)
    endings = host.endings.get(message.message_id, [])
    names: list[str | None] = [attempt["incarnation"] for attempt in attempts]
    if ack is not None and ack.incarnation is not None and ack.incarnation not in names:
        names.append(ack.incarnation)  # claimed, and the host has not seen it yet
    of_ack = _of_ack(ack, attempts, names)
    if _waits(message, attempts, names, endings) and not _goes_on(ack, of_ack, names, context):
        names.append(None)
    of_answers = of_ack if ack is not None and ack.status is not AckStatus.PROCESSING else None
    runs: list[RunRead] = []
    for index, name in enumerate(names):
        latest = index == len(names) - 1
        attempt = next((item for item in attempts if item["incarnation"] == name), None)
        own_ack = ack if ack is not None and name == of_ack else None
        answers = [
            item for item in box.answers.get(message.message_id, ())
            if name == (of_answers or _at_work(item.at, attempts, names))
        ]  # fmt: skip
        own = [ending for by, ending in endings if by == name or (by is None and latest)]
        evidence = _evidence(message, name, context, attempt, own_ack, latest=latest)
        evidence = _with(evidence, answers, own, box.unreadable)
        runs.append(RunRead(message, evidence, judge(evidence)))
    return runs


def _ack_of(message: MessageSeen, box: OutboundRows) -> Ack | None:
    """Return the ack about this message, unless it is a "later", which ends nothing, or was found void."""
    ack = box.acks.get(message.message_id)
    if ack is None or ack.status is AckStatus.LATER:
        return None
    return None if message.void_ack is not None and ack.changed_text == message.void_ack else ack


def _waits(
    message: MessageSeen,
    attempts: Sequence[Mapping[str, Any]],
    names: Sequence[str | None],
    endings: Sequence[tuple[str | None, Ending]],
) -> bool:
    """Return whether the message has an unclaimed run: its first one, or the next one after an interruption."""
    if not names:
        return True
    if message.status not in (MessageStatus.PENDING, MessageStatus.PAUSED) or len(names) > len(attempts):
        return False
    interrupted = outcome_of(attempts[-1]["outcome"]) in (RunStatus.ORPHANED, RunStatus.RELEASED)
    return interrupted and not any(ending.status in FINISHED for _, ending in endings)


def _goes_on(ack: Ack | None, of_ack: str | None, names: Sequence[str | None], context: RuntimeContext) -> bool:
    """Return whether the last run finished the message, or still works on it, although its attempt was closed as interrupted."""
    if ack is None or not names or of_ack != names[-1]:
        return False
    return ack.status is not AckStatus.PROCESSING or context.life(of_ack) is Life.ALIVE


def _of_ack(ack: Ack | None, attempts: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> str | None:
    """Return the incarnation of an ack. If the runner writes none, return the one that worked at that time."""
    if ack is None:
        return None
    return ack.incarnation if ack.incarnation is not None else _at_work(ack.changed_at, attempts, names)


def _at_work(at: int | None, attempts: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> str | None:
    """Return the last incarnation that had claimed the message by then."""
    begun = [item["incarnation"] for item in attempts if at is None or (item["claimed_at"] or 0) <= at]
    claimed = [name for name in names if name is not None]
    return begun[-1] if begun else claimed[0] if claimed else None


def _evidence(
    message: MessageSeen,
    name: str | None,
    context: RuntimeContext,
    attempt: Mapping[str, Any] | None,
    ack: Ack | None,
    *,
    latest: bool,
) -> RunEvidence:
    outcome = attempt["outcome"] if attempt is not None else None
    working = ack is not None and ack.status is AckStatus.PROCESSING
    claimed_at = attempt["claimed_at"] if attempt is not None else None
    if claimed_at is None and working and ack is not None:
        claimed_at = ack.changed_at
    return RunEvidence(
        message_id=message.message_id,
        incarnation=name,
        now=context.now,
        listed=message.status,
        latest=latest,
        life=context.life(name),
        gone_at=context.ended_at(name),
        claimed_at=claimed_at,
        claimed=(attempt is not None and outcome is None) or (working and outcome is None),
        attempted=attempt is not None,
        outcome=outcome_of(outcome),
        ended_at=attempt["ended_at"] if attempt is not None else None,
        ack=ack.status if ack is not None else None,
        ack_at=ack.changed_at if ack is not None else None,
        synced=context.synced,
    )


def _with(
    seen: RunEvidence, answers: Sequence[Answer], endings: Sequence[Ending], unreadable: frozenset[Source]
) -> RunEvidence:
    return replace(seen, answers=tuple(answers), endings=tuple(endings), unreadable=unreadable)
