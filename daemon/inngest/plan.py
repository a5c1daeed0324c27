"""Decides which runs a sweep would end, how, and what forbids it. Pure; `sweep.py` executes.

A candidate is listed as running, in scope, started before the age limit, and silent since. A run that sleeps or waits
for an event on purpose is none, and neither is one that did anything lately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from daemon.inngest.errors import (
    InvalidSweepScopeError,
    SweepAgeTooYoungError,
    SweepMissingFunctionRunsError,
    SweepScopeTooBroadError,
)
from daemon.inngest.rows import Function, Run, RunSpan
from daemon.inngest.truth import Verdict, judge, listed_live, queue_lost
from daemon.inngest.values import Status, run_key
from schema.errors import ClawbusError
from schema.frozen import frozen

MIN_AGE_MS: Final = 5 * 60_000
DEFAULT_AGE_MS: Final = 30 * 60_000
DEFAULT_MAX: Final = 200
MAX_MAX: Final = 10_000
DEFAULT_SAMPLE: Final = 25
_WILD: Final = frozenset("*?[")


class Unregistered(StrEnum):
    """What to do about a candidate without a function_runs row: no history and no finish can be written for it."""

    REFUSE = "refuse"
    SKIP = "skip"
    END = "end"  # its spans and its status in the list


@frozen
class Scope:
    """The scope of a sweep. `functions` are names, slugs, ids or patterns of them; none means all. `exclude` are run ids.

    `lost_before_ms`: the server's queue is gone, with whatever was last heard of before this. Of runs without a function_runs
    row (`unregistered`) a sweep is refused, or they are skipped, or ended in the lists alone.
    """

    functions: tuple[str, ...] = ()
    older_than_ms: int = DEFAULT_AGE_MS
    max_runs: int = DEFAULT_MAX
    sample: int = DEFAULT_SAMPLE
    exclude: tuple[str, ...] = ()
    lost_before_ms: int | None = None
    unregistered: Unregistered = Unregistered.REFUSE


class Held(StrEnum):
    """Why a run listed as running is not a candidate."""

    OUT_OF_SCOPE = "out_of_scope"
    EXCLUDED = "excluded"
    YOUNG = "young"
    ACTIVE = "active"
    WAITING = "waiting"
    UNREGISTERED = "unregistered"


@frozen
class Candidate:
    """A run to be ended, and what that takes. `status` is where the evidence says that it belongs."""

    run: Run
    verdict: Verdict
    status: Status
    add_history: bool
    add_finish: bool
    set_listed: bool
    extend: tuple[RunSpan, ...]


@frozen
class Plan:
    """Everything that is listed as running, sorted into what is swept and what is left alone."""

    candidates: tuple[Candidate, ...]
    held: tuple[tuple[Run, Held], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The candidates' ids."""
        return tuple(one.run.key for one in self.candidates)

    @property
    def inconsistent(self) -> tuple[Candidate, ...]:
        """Candidates without a `function_runs` row: no history can be written for them."""
        return tuple(one for one in self.candidates if one.run.registered is None)


def check_scope(scope: Scope, known: Sequence[Function], *, apply: bool) -> None:
    """Raise InvalidSweepScopeError, SweepAgeTooYoungError or SweepScopeTooBroadError for a scope that is wrong in itself."""
    if scope.older_than_ms < MIN_AGE_MS:
        raise SweepAgeTooYoungError(f"an age limit of {scope.older_than_ms // 1000} s is below {MIN_AGE_MS // 1000} s.")
    for bad in (one for one in scope.exclude if run_key(one) is None):
        raise InvalidSweepScopeError(f"{bad!r} is not a run id (a ULID of 26 characters).")
    for bad in (one for one in scope.functions if not any(_matches(one, function) for function in known)):
        raise InvalidSweepScopeError(f"no function is called {bad!r}.")
    if not apply:
        return
    if not scope.functions:
        raise InvalidSweepScopeError("a sweep that changes anything needs --functions.")
    matched = [one for one in known if in_scope(scope, one)]
    if any(_WILD & set(one) for one in scope.functions) and len(matched) == len(known) > 1:
        raise SweepScopeTooBroadError(f"the patterns take in all {len(known)} functions of this server.")


def make_plan(runs: Iterable[Run], scope: Scope, now_ms: int) -> Plan:
    """Sort the runs that a list shows as running. Others are passed over."""
    candidates: list[Candidate] = []
    held: list[tuple[Run, Held]] = []
    for run in sorted(runs, key=lambda one: (one.function.label, one.started_at, one.key)):
        if not listed_live(run, scope.lost_before_ms):
            continue
        verdict = judge(run, now_ms, scope.older_than_ms, scope.lost_before_ms)
        why = _held(run, verdict, scope, now_ms)
        if why is not None:
            held.append((run, why))
        else:
            candidates.append(_candidate(run, verdict))
    return Plan(tuple(candidates), tuple(held))


def refusal(plan: Plan, scope: Scope) -> ClawbusError | None:
    """Return why this plan may not be applied; None when it may."""
    if plan.inconsistent and scope.unregistered is Unregistered.REFUSE:
        keys = [one.run.key for one in plan.inconsistent]
        return SweepMissingFunctionRunsError(
            f"{len(keys)} of {len(plan.candidates)} candidates have no function_runs row: {', '.join(keys[:5])}.",
            hint="Look at them with `clawbus inngest run ID`. --end-unregistered ends them in the lists alone,"
            f" --skip-unregistered leaves them all out, or one by one: {' '.join(f'--exclude {key}' for key in keys)}",
        )
    if len(plan.candidates) > scope.max_runs:
        return SweepScopeTooBroadError(f"{len(plan.candidates)} candidates are more than the cap of {scope.max_runs}.")
    return None


def in_scope(scope: Scope, function: Function) -> bool:
    """Return whether a function is in scope. Without names, every function is."""
    return not scope.functions or any(_matches(one, function) for one in scope.functions)


def _matches(pattern: str, function: Function) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in function.names)


def _held(run: Run, verdict: Verdict, scope: Scope, now_ms: int) -> Held | None:
    if not in_scope(scope, run.function):
        return Held.OUT_OF_SCOPE
    if run.key in {run_key(one) for one in scope.exclude}:
        return Held.EXCLUDED
    if run.started_at > now_ms - scope.older_than_ms:
        return Held.YOUNG
    if run.last_at > now_ms - scope.older_than_ms:
        return Held.ACTIVE
    if run.registered is None and scope.unregistered is Unregistered.SKIP:
        return Held.UNREGISTERED
    waits = run.activity.waits_until is not None and run.activity.waits_until > now_ms
    lost = queue_lost(run, scope.lost_before_ms)
    return Held.WAITING if waits and not lost and not verdict.status.terminal else None


def _candidate(run: Run, verdict: Verdict) -> Candidate:
    status = _final(verdict.status)
    return Candidate(
        run=run,
        verdict=verdict,
        status=status,
        add_history=not run.endings,
        add_finish=run.finish is None,
        set_listed=run.listed is not None and run.listed.status is not status,
        extend=tuple(one for one in run.spans if not one.status.terminal),
    )


def _final(status: Status) -> Status:
    """Return the final status as history names it: overflowed is failed, skipped or unfinished is cancelled."""
    if status is Status.OVERFLOWED:
        return Status.FAILED
    return status if status in (Status.COMPLETED, Status.FAILED) else Status.CANCELLED
