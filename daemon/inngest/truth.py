"""What is true about a run when its records disagree. Pure.

The truth order: the trace (its spans), then terminal history, then the finish row, and the list (`trace_runs`) last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from daemon.inngest.rows import Run
from daemon.inngest.values import Status

# What a server says when it could not reach the application (the first two are its dispatcher's own words).
_UNREACHABLE: Final = re.compile(r"unable to reach sdk url|eof writing request to sdk", re.IGNORECASE)
_FINALIZATION: Final = re.compile(r"finali[sz](?:e|ing|ation)", re.IGNORECASE)


class Source(StrEnum):
    """Where a verdict comes from, best first."""

    TRACE = "trace"
    HISTORY = "history"
    FINISH = "finish"
    LIST = "list"


class Confidence(StrEnum):
    """How sure it is that a run is stale."""

    CERTAIN = "certain"  # a better source says that it ended
    HIGH = "high"  # it cannot go on: its end or its error is on record
    MEDIUM = "medium"  # nothing has been heard of it
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The truth about a run. `reasons` name why its list entry is not believed; empty when it is."""

    status: Status
    source: Source
    reasons: tuple[str, ...]
    confidence: Confidence
    conflict: bool  # two sources say that it ended, and differently

    @property
    def stale(self) -> bool:
        """Whether a list says that it runs while it does not."""
        return bool(self.reasons)


def listed_running(run: Run) -> bool:
    """Whether any list shows it as running: `trace_runs`, or the spans that newer servers list from."""
    in_table = run.listed is not None and run.listed.status is Status.RUNNING
    return in_table or any(one.status is Status.RUNNING for one in run.spans)


def judge(run: Run, now_ms: int, quiet_ms: int) -> Verdict:
    """The verdict. A run that ended nowhere counts as stale only with a reason; `quiet_ms` is how long silence is normal."""
    endings = _endings(run)
    if endings:
        source, status = endings[0]
        differs = any(other is not status for _, other in endings)
        reasons = _why_listed(run) if listed_running(run) else ()
        return Verdict(status, source, reasons, Confidence.CERTAIN if reasons else Confidence.NONE, differs)
    status = run.listed.status if run.listed is not None else Status.RUNNING
    if not listed_running(run):
        return Verdict(status, Source.LIST, (), Confidence.NONE, conflict=False)
    hard = _hard_reasons(run)
    waits = run.activity.waits_until is not None and run.activity.waits_until > now_ms
    if waits or now_ms - run.last_at < quiet_ms:
        return Verdict(status, Source.LIST, (), Confidence.NONE, conflict=False)
    return Verdict(
        status, Source.LIST, (*hard, "silent"), Confidence.HIGH if hard else Confidence.MEDIUM, conflict=False
    )


def _endings(run: Run) -> list[tuple[Source, Status]]:
    """Every source that knows an end, best first; of several history rows the newest."""
    found = [(Source.TRACE, one.status) for one in run.spans if one.status.terminal]
    if run.endings:
        found.append((Source.HISTORY, max(run.endings, key=lambda one: one.at or 0).status))
    if run.finish is not None and run.finish.terminal:
        found.append((Source.FINISH, run.finish))
    if run.listed is not None and run.listed.status.terminal:
        found.append((Source.LIST, run.listed.status))
    return found


def _why_listed(run: Run) -> tuple[str, ...]:
    """Why the list is wrong about a run that ended."""
    reasons: list[str] = []
    in_table = run.listed.status if run.listed is not None else None
    if in_table is Status.RUNNING or run.endings or (run.finish is not None and run.finish.terminal):
        reasons.append("list_and_detail_disagree")
    if in_table is not None and any(one.status.terminal != in_table.terminal for one in run.spans):
        reasons.append("lists_disagree")
    return (*reasons, *_hard_reasons(run))


def _hard_reasons(run: Run) -> tuple[str, ...]:
    reasons: list[str] = []
    if run.listed is not None and run.listed.status is Status.RUNNING and run.listed.ended_at is not None:
        reasons.append("ended_at_while_running")
    if any(_UNREACHABLE.search(one) for one in run.activity.errors):
        reasons.append("sdk_unreachable")
    if not run.activity.steps and any(_FINALIZATION.search(one) for one in run.activity.errors):
        reasons.append("finalization_failed_without_execution")
    return tuple(reasons)
