"""Decides what is true about a run when its records disagree. Pure.

The truth order: the trace (its spans), then terminal history, then the finish row, and the list (`trace_runs`) last.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from daemon.inngest.rows import Run
from daemon.inngest.values import Status, instant
from schema.frozen import frozen

# The errors of a server that could not reach the application. The first two come from its dispatcher.
_UNREACHABLE: Final = re.compile(r"unable to reach sdk url|eof writing request to sdk", re.IGNORECASE)
_FINALIZATION: Final = re.compile(r"finali[sz](?:e|ing|ation)", re.IGNORECASE)


# The server writes ended_at on every row that it lists as running, 10 to 30 ms after its start.
_ENDED_AFTER_MS: Final = 1000


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


@frozen
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
    """Return whether any list shows it as running: `trace_runs`, or the spans that newer servers list from."""
    in_table = run.listed is not None and run.listed.status is Status.RUNNING
    return in_table or any(one.status is Status.RUNNING for one in run.spans)


def listed_scheduled(run: Run) -> bool:
    """Return whether a list shows it as queued and not begun."""
    in_table = run.listed is not None and run.listed.status is Status.SCHEDULED
    return in_table or any(one.status is Status.SCHEDULED for one in run.spans)


def queue_lost(run: Run, lost_before_ms: int | None) -> bool:
    """Return whether the queue that held this run is known to be gone: then it can neither start, nor wake, nor be retried."""
    return lost_before_ms is not None and run.last_at < lost_before_ms


def listed_live(run: Run, lost_before_ms: int | None) -> bool:
    """Return whether a list shows it as running, or as queued in a queue that is gone."""
    return listed_running(run) or (queue_lost(run, lost_before_ms) and listed_scheduled(run))


def judge(run: Run, now_ms: int, quiet_ms: int, lost_before_ms: int | None = None) -> Verdict:
    """Judge a run. An unfinished run is stale only with a reason; `quiet_ms` is how long silence is normal.

    `lost_before_ms`: the queue that held whatever was last heard of before this is gone.
    """
    endings = _endings(run)
    shown, lost = listed_live(run, lost_before_ms), queue_lost(run, lost_before_ms)
    if endings:
        source, status = endings[0]
        differs = any(other is not status for _, other in endings)
        reasons = _why_listed(run) if shown else ()
        return Verdict(status, source, reasons, Confidence.CERTAIN if reasons else Confidence.NONE, differs)
    status = run.listed.status if run.listed is not None else Status.RUNNING
    if not shown:
        return Verdict(status, Source.LIST, (), Confidence.NONE, conflict=False)
    hard = (*_hard_reasons(run), *(("queue_lost",) if lost else ()))
    waits = run.activity.waits_until is not None and run.activity.waits_until > now_ms and not lost
    if waits or now_ms - run.last_at < quiet_ms:
        return Verdict(status, Source.LIST, (), Confidence.NONE, conflict=False)
    return Verdict(
        status, Source.LIST, (*hard, "silent"), Confidence.HIGH if hard else Confidence.MEDIUM, conflict=False
    )


def _endings(run: Run) -> list[tuple[Source, Status]]:
    """Return the sources that record an end, the best first. Of several history rows, use the newest."""
    revived = _revived(run)
    found = [(Source.TRACE, one.status) for one in run.spans if one.status.terminal and not (revived and one.swept)]
    if revived:
        return found
    if run.endings:
        found.append((Source.HISTORY, max(run.endings, key=lambda one: one.at or 0).status))
    if run.finish is not None and run.finish.terminal:
        found.append((Source.FINISH, run.finish))
    if run.listed is not None and run.listed.status.terminal:
        found.append((Source.LIST, run.listed.status))
    return found


def _revived(run: Run) -> bool:
    """Return whether the run was active after a sweep had ended it: its queue was still running, so the sweep's rows are outdated."""
    if not all(one.swept for one in run.endings):
        return False
    marks = [one.at or 0 for one in run.endings] + [instant(one.end_text) or 0 for one in run.spans if one.swept]
    return bool(marks) and (run.activity.last_at or 0) > max(marks) + _ENDED_AFTER_MS


def _why_listed(run: Run) -> tuple[str, ...]:
    """Return why the list is wrong about a run that ended."""
    reasons: list[str] = []
    in_table = run.listed.status if run.listed is not None else None
    if (
        in_table in (Status.RUNNING, Status.SCHEDULED)
        or run.endings
        or (run.finish is not None and run.finish.terminal)
    ):
        reasons.append("list_and_detail_disagree")
    if in_table is not None and any(one.status.terminal != in_table.terminal for one in run.spans):
        reasons.append("lists_disagree")
    return (*reasons, *_hard_reasons(run))


def _hard_reasons(run: Run) -> tuple[str, ...]:
    reasons: list[str] = []
    ended_at = run.listed.ended_at if run.listed is not None and run.listed.status is Status.RUNNING else None
    if ended_at is not None and ended_at > run.last_at + _ENDED_AFTER_MS:
        reasons.append("ended_at_while_running")
    if any(_UNREACHABLE.search(one) for one in run.activity.errors):
        reasons.append("sdk_unreachable")
    if not run.activity.steps and any(_FINALIZATION.search(one) for one in run.activity.errors):
        reasons.append("finalization_failed_without_execution")
    if any(one.connected_at <= run.last_at <= one.lost_at for one in run.lost_workers):
        reasons.append("worker_lost")
    return tuple(reasons)
