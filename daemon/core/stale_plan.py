"""Decides which runs a stale sweep may end, and with which status. Pure: no I/O, no clock; it changes nothing.

The verdict on a run is `run_state.py`'s. A run that the evidence says is finished gets that status whatever its age;
only an unfinished one is cancelled, and only when it is old enough and its container is known to be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from daemon.core.repair_errors import (
    StaleAliveError,
    StaleInconsistentError,
    StaleScopeEmptyError,
    StaleScopeInvalidError,
    StaleScopeTooBroadError,
    StaleTooYoungError,
)
from daemon.core.run_state import FINISHED, Confidence, Life, RunEvidence, RunStatus, Source, Verdict
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.ids import check_name, check_session
from schema.rows import MessageStatus

OLDER_THAN_MS: Final = 30 * 60_000
MIN_OLDER_THAN_MS: Final = 5 * 60_000
MAX_RUNS: Final = 200
SAMPLE: Final = 25


class SkipReason(StrEnum):
    """Why a run in scope is not swept."""

    ALIVE = "alive"  # its container lives, or may start to work on it at any moment
    UNKNOWN = "unknown"  # whether it lives is unknown
    INCONSISTENT = "inconsistent"
    DOUBTFUL = "doubtful"  # a source that matters could not be read
    YOUNG = "young"


# In the way of the whole scope; a run that is only young is left out, and the others are swept.
_STOPS: Final = (SkipReason.ALIVE, SkipReason.UNKNOWN, SkipReason.INCONSISTENT, SkipReason.DOUBTFUL)


@frozen
class Scope:
    """What a sweep may touch: one session, one agent, or a pattern of AGENT/SESSION; and how much of it."""

    agent: str | None = None
    session: tuple[str, str] | None = None
    match: str | None = None
    older_than_ms: int = OLDER_THAN_MS
    max_runs: int = MAX_RUNS

    def takes(self, agent: str, session: str) -> bool:
        """Return whether the scope includes a session. An empty scope includes all, which is allowed in a preview only."""
        if self.session is not None and self.session != (agent, session):
            return False
        if self.agent is not None and self.agent != agent:
            return False
        return self.match is None or fnmatchcase(f"{agent}/{session}", self.match)


@frozen
class Seen:
    """One run as it was read. `session_alive`: a container of its session lives, whichever incarnation it is."""

    agent: str
    session: str
    evidence: RunEvidence
    verdict: Verdict
    session_alive: bool = False
    message: MessageStatus = MessageStatus.PENDING

    @property
    def run_id(self) -> str:
        """MESSAGE@INCARNATION."""
        incarnation = self.evidence.incarnation
        return self.evidence.message_id + (f"@{incarnation}" if incarnation is not None else "")


@frozen
class Ending:
    """What a sweep writes for one run. `status` None: the message is finished, or a later run has it; only the attempt ends.

    `in_history`: the history has the terminal row already. `outcome` None: the attempt has ended.
    """

    agent: str
    session: str
    message_id: str
    incarnation: str | None
    truth: RunStatus
    status: MessageStatus | None
    in_history: bool
    outcome: str | None
    reasons: tuple[str, ...]

    @property
    def run_id(self) -> str:
        """MESSAGE@INCARNATION."""
        return self.message_id + (f"@{self.incarnation}" if self.incarnation is not None else "")

    def report(self) -> dict[str, Any]:
        """Return the values that the command line shows."""
        return {
            "run": self.run_id,
            "agent": self.agent,
            "session": self.session,
            "truth": self.truth.value,
            "becomes": self.status.value if self.status is not None else None,
            "reasons": list(self.reasons),
        }


@frozen
class Skipped:
    """A stale run that is not swept, and why."""

    agent: str
    session: str
    run_id: str
    gate: SkipReason
    why: str

    def report(self) -> dict[str, Any]:
        """Return the values that the command line shows."""
        return {
            "run": self.run_id,
            "agent": self.agent,
            "session": self.session,
            "gate": self.gate.value,
            "why": self.why,
        }


@frozen
class Plan:
    """What a sweep would do."""

    endings: tuple[Ending, ...] = ()
    left: tuple[Skipped, ...] = field(default=())


def check_scope(scope: Scope, *, apply: bool) -> None:
    """Raise a typed refusal of a scope that no sweep, or no sweep that changes anything, may have."""
    if scope.older_than_ms < MIN_OLDER_THAN_MS:
        raise StaleTooYoungError(
            f"--older-than is {scope.older_than_ms // 1000} s; the minimum is {MIN_OLDER_THAN_MS // 1000} s."
        )
    if scope.max_runs < 1:
        raise StaleScopeInvalidError("--max must be at least 1.")
    if scope.agent is not None:
        check_name("agent", scope.agent)
    if scope.session is not None:
        check_name("agent", scope.session[0])
        check_session(scope.session[1])
    if not apply:
        return
    if scope.agent is None and scope.session is None and scope.match is None:
        raise StaleScopeInvalidError("a sweep that is applied needs a scope.")
    if (
        scope.match is not None
        and scope.agent is None
        and scope.session is None
        and not any(c.isalnum() for c in scope.match)
    ):
        raise StaleScopeTooBroadError(f"--match {scope.match!r} matches every session.")


def in_scope(scope: Scope, sessions: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the sessions in a scope, in order. Raise StaleScopeEmptyError."""
    found = sorted(one for one in sessions if scope.takes(*one))
    if not found:
        raise StaleScopeEmptyError("the scope matches no session.")
    return found


def plan(runs: Iterable[Seen], scope: Scope) -> Plan:
    """Return what to write for each stale run, and which runs are left alone."""
    endings: list[Ending] = []
    left: list[Skipped] = []
    for seen in runs:
        if not seen.verdict.stale:
            continue
        gate = _gate(seen, scope)
        if gate is not None:
            left.append(Skipped(seen.agent, seen.session, seen.run_id, *gate))
        else:
            endings.append(_ending(seen))
    return Plan(tuple(endings), tuple(left))


def check_plan(found: Plan, scope: Scope) -> None:
    """Raise the error that refuses the whole sweep: StaleAliveError, StaleInconsistentError or StaleScopeTooBroadError."""
    check_left(found.left, len(found.endings), scope)


def check_left(left: Sequence[Skipped], endings: int, scope: Scope) -> None:
    """Check several plans together: all that is left alone, and how many runs would be ended."""
    stops = [one for one in left if one.gate in _STOPS]
    for gates, error in (
        ((SkipReason.INCONSISTENT, SkipReason.DOUBTFUL), StaleInconsistentError),
        ((SkipReason.ALIVE, SkipReason.UNKNOWN), StaleAliveError),
    ):
        named = [one for one in stops if one.gate in gates]
        if named:
            raise _refusal(error, named)
    if endings > scope.max_runs:
        raise StaleScopeTooBroadError(f"the scope holds {endings} stale runs; the cap is {scope.max_runs}.")


def _refusal(error: type[ClawbusError], named: Sequence[Skipped]) -> ClawbusError:
    listed = "; ".join(f"{one.run_id} of {one.agent}/{one.session}: {one.why}" for one in named[:3])
    more = f", and {len(named) - 3} more" if len(named) > 3 else ""
    return error(f"{listed}{more}.")


def _gate(seen: Seen, scope: Scope) -> tuple[SkipReason, str] | None:
    verdict, evidence = seen.verdict, seen.evidence
    if verdict.inconsistent:
        return SkipReason.INCONSISTENT, _said(verdict) or "its sources contradict each other"
    if verdict.confidence is Confidence.LOW and evidence.unreadable:
        return SkipReason.DOUBTFUL, _said(verdict) or "not every source could be read"
    if verdict.status in FINISHED:
        return (
            (SkipReason.DOUBTFUL, _said(verdict) or "the evidence is doubtful")
            if verdict.confidence is Confidence.LOW
            else None
        )
    if evidence.life is Life.ALIVE:
        return SkipReason.ALIVE, "its container lives"
    if evidence.life is Life.UNKNOWN and evidence.incarnation is not None:
        return SkipReason.UNKNOWN, "whether its container lives is not known"
    if seen.session_alive and _takes_message(seen):
        return SkipReason.ALIVE, "another container of its session lives or may live, and may take it at any moment"
    age = evidence.now - (evidence.claimed_at if evidence.claimed_at is not None else verdict.since or evidence.now)
    if age < scope.older_than_ms:
        return SkipReason.YOUNG, f"it is {max(age, 0) // 1000} s old"
    return None


def _takes_message(seen: Seen) -> bool:
    """Return whether ending the run would also end its message."""
    return seen.evidence.latest and seen.message in (MessageStatus.PENDING, MessageStatus.PAUSED)


def _ending(seen: Seen) -> Ending:
    verdict = seen.verdict
    status: MessageStatus | None = None
    if _takes_message(seen):
        status = MessageStatus(verdict.status.value) if verdict.status in FINISHED else MessageStatus.CANCELLED
    outcome = verdict.status.value if verdict.status in (RunStatus.COMPLETED, RunStatus.FAILED) else "orphaned"
    return Ending(
        agent=seen.agent,
        session=seen.session,
        message_id=seen.evidence.message_id,
        incarnation=seen.evidence.incarnation,
        truth=verdict.status,
        status=status,
        in_history=verdict.status in FINISHED and Source.HISTORY not in verdict.lacks,
        outcome=outcome if Source.FINISH in verdict.lacks else None,
        reasons=tuple(reason.text for reason in verdict.reasons),
    )


def _said(verdict: Verdict) -> str:
    return " ".join(reason.text for reason in verdict.reasons).rstrip(".")
