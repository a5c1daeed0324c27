"""The Inngest commands' results as plain data, the same on this machine and inside a pod. Read-only; `truth.py` judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.inngest.database import Shape, read_database
from daemon.inngest.errors import InngestRunUnknownError
from daemon.inngest.holders import find_holders
from daemon.inngest.plan import DEFAULT_AGE_MS, Candidate, Held, Scope, check_scope, in_scope
from daemon.inngest.queue import with_proof
from daemon.inngest.reading import newest_keys, read_functions, read_runs, running_keys
from daemon.inngest.rows import Run
from daemon.inngest.truth import Verdict, judge, listed_running
from daemon.inngest.values import Status, run_key
from schema.handles import Reader

if TYPE_CHECKING:
    from daemon.inngest.sweep import Outcome

_SHOWN: Final = 500  # runs of a sweep that are named one by one


def runs_report(
    path: Path, now_ms: int, *, scope: Scope, status: str | None = None, limit: int = 100
) -> dict[str, Any]:
    """Return the runs of a scope with the truth about each: those listed as running, then the newest others.

    `status` is a true status or `stale`. Raises the errors of opening, and InvalidSweepScopeError.
    """
    holders = find_holders(path)

    def work(reader: Reader, shape: Shape) -> list[tuple[Run, Verdict]]:
        known = list(read_functions(reader, shape).values())
        check_scope(scope, known, apply=False)
        lost = with_proof(scope, reader, shape, holders).lost_before_ms
        running = running_keys(reader, shape, scheduled=lost is not None)
        keys = list(dict.fromkeys((*reversed(running), *newest_keys(reader, shape, limit))))
        runs = [run for run in read_runs(reader, shape, keys) if in_scope(scope, run.function)]
        return [(run, judge(run, now_ms, scope.older_than_ms, lost)) for run in runs]

    judged = read_database(path, work)
    shown = [one for one in judged if status is None or _is(status, one[1])]
    return {
        "path": str(path),
        "server": [one.report() for one in holders],
        "listed_as_running": sum(listed_running(run) for run, _ in judged),
        "stale": sum(verdict.stale for _, verdict in judged),
        "total": len(shown),
        "runs": [run_summary(run, verdict) for run, verdict in shown[:limit]],
    }


def run_report(path: Path, now_ms: int, run_id: str) -> dict[str, Any]:
    """Return one run, source by source, the most reliable first. Raise InngestRunUnknownError and the errors of opening."""
    key = run_key(run_id)
    if key is None:
        raise InngestRunUnknownError(f"{run_id!r} is not a run id.")
    found = read_database(path, lambda reader, shape: read_runs(reader, shape, [key]))
    if not found:
        raise InngestRunUnknownError(f"{path} has no run {key}.")
    run = found[0]
    verdict = judge(run, now_ms, DEFAULT_AGE_MS)
    return {
        **run_summary(run, verdict),
        "sources": {
            "trace": [{"span": one.dynamic_id, "status": str(one.status), "ends": one.end_text} for one in run.spans],
            "history": [{"type": one.type, "at": one.at} for one in run.endings],
            "finish": {"status": str(run.finish), "at": run.finished_at} if run.finish is not None else None,
            "list": {**asdict(run.listed), "status": str(run.listed.status)} if run.listed is not None else None,
        },
        "registered": run.registered is not None,
        "waits_until": run.activity.waits_until,
        "steps": run.activity.steps,
        "errors": [text[:1000] for text in run.activity.errors[:5]],
        "code": "RUN_STALE_SDK_UNREACHABLE" if verdict.stale and "sdk_unreachable" in verdict.reasons else None,
    }


def run_summary(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return a summary of a run. `status` is the actual status, `listed` that of the lists."""
    return {
        "run_id": run.key,
        "function": run.function.label,
        "function_id": run.function.id,
        "status": str(verdict.status),
        "source": str(verdict.source),
        "listed": str(run.listed.status) if run.listed is not None else None,
        "listed_from_spans": [str(one.status) for one in run.spans],
        "started_at": run.started_at,
        "last_at": run.last_at,
        "stale": verdict.stale,
        "reasons": list(verdict.reasons),
        "confidence": str(verdict.confidence),
        "sources_differ": verdict.conflict,
    }


def sweep_report(outcome: Outcome) -> dict[str, Any]:
    """Report a sweep from its preview to its verification. Keys of steps that were not reached are null."""
    plan, request = outcome.plan, outcome.request
    held = Counter(str(why) for _, why in plan.held)
    return {
        "path": str(request.path),
        "applied": outcome.written is not None,
        "scope": asdict(request.scope),
        "by_function": _by_function(plan.candidates),
        "candidates": [_candidate(one, outcome.queued) for one in plan.candidates[:_SHOWN]],
        "left_alone": dict(held),
        "left_alone_in_scope": [
            {"run_id": run.key, "function": run.function.label, "why": str(why)}
            for run, why in plan.held
            if why is not Held.OUT_OF_SCOPE
        ][:_SHOWN],
        "unregistered": [one.run.key for one in plan.inconsistent],
        "listed_as_scheduled": outcome.scheduled,
        "server": [one.report() for one in outcome.holders],
        "warnings": _warnings(outcome),
        "refusal": _refusal(outcome),
        "backup": outcome.backup.report() if outcome.backup is not None else None,
        "written": asdict(outcome.written) if outcome.written is not None else None,
        "verification": outcome.verification.report() if outcome.verification is not None else None,
        "canary": _canary(outcome),
    }


def _by_function(candidates: Sequence[Candidate]) -> dict[str, Mapping[str, int]]:
    found: dict[str, Counter[str]] = {}
    for one in candidates:
        found.setdefault(one.run.function.label, Counter())[str(one.status)] += 1
    return {name: {"total": counts.total(), **counts} for name, counts in sorted(found.items())}


def _candidate(one: Candidate, queued: frozenset[str]) -> dict[str, Any]:
    return {
        **run_summary(one.run, one.verdict),
        "becomes": str(one.status),
        "adds": [
            name
            for name, wanted in (
                ("history", one.add_history), ("finish", one.add_finish), ("span", bool(one.extend)), ("status", one.set_listed)
            )
            if wanted
        ],
        "registered": one.run.registered is not None,
        "in_queue_snapshot": one.run.key in queued,
    }  # fmt: skip


def _warnings(outcome: Outcome) -> list[str]:
    warnings: list[str] = []
    if outcome.holders:
        warnings.append("A process has the database open. Its queue may revive a run that is swept: stop it first.")
    warnings += _about_the_queue(outcome)
    if outcome.queued:
        warnings.append(
            f"The last queue snapshot still names {len(outcome.queued)} of these runs: check them again after a start."
        )
    if any(one.verdict.conflict for one in outcome.plan.candidates):
        warnings.append(
            "Of some candidates two sources name different ends; the better source counts (`inngest run ID`)."
        )
    return warnings


def _about_the_queue(outcome: Outcome) -> list[str]:
    """Warn about the queue: a file does not say where its server's queue is, and both mistakes are possible."""
    if outcome.request.scope.lost_before_ms is not None:
        return []
    warnings: list[str] = []
    open_ = sum(not one.verdict.status.terminal for one in outcome.plan.candidates)
    if open_ and outcome.request.redis_uri is None:
        warnings.append(
            f"If the server keeps its queue in Redis, {open_} of these runs may continue when it starts: name it with --redis-uri."
        )
    waiting = sum(why is Held.WAITING for _, why in outcome.plan.held)
    if waiting or outcome.scheduled:
        warnings.append(
            f"{waiting} runs wait on purpose and {outcome.scheduled} are queued. If the server restarted since, and its queue"
            " was in memory, they never continue: --queue-lost makes them candidates."
        )
    return warnings


def _refusal(outcome: Outcome) -> dict[str, str] | None:
    """Return why nothing was done, or would not be."""
    error = outcome.error
    if error is None or outcome.written is not None:
        return None
    return {"code": error.code, "message": str(error), "fix": error.hint}


def _canary(outcome: Outcome) -> dict[str, Any] | None:
    """Report the canary: a file alone cannot show that a fresh run completes."""
    if outcome.written is None:
        return None
    return {"done": False, "why": "It needs the server: start it, then run `clawbus inngest canary`."}


def _is(status: str, verdict: Verdict) -> bool:
    return verdict.stale if status == "stale" else verdict.status is Status(status)
