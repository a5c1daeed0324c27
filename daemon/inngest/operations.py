"""Runs the `clawbus inngest` commands as operations on plain data, on this host or inside a pod.

An operation takes a dictionary and returns one: {"result": ..., "error": {"code", "message", "fix"} or null}. A refused sweep
has both a result (what it found) and an error. Any other refused operation has only an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from daemon.inngest.canary import event_report
from daemon.inngest.plan import Scope, Unregistered
from daemon.inngest.reports import run_report, runs_report, sweep_report
from daemon.inngest.sweep import Request, sweep
from daemon.inngest.undo import put_back
from schema.errors import ClawbusError

Tell = Callable[[str], None]  # gets the name of each step that is done


def operate(
    name: str, options: Mapping[str, Any], tell: Tell, now_ms: Callable[[], int] | None = None
) -> dict[str, Any]:
    """Do one operation: `runs`, `run`, `sweep`, `restore` or `event`. Put a ClawbusError into the result; never raise it."""
    clock = now_ms or _now_ms
    try:
        result, error = _OPERATIONS[name](options, clock(), tell)
    except ClawbusError as raised:
        result, error = None, raised
    problem = None if error is None else {"code": error.code, "message": str(error), "fix": error.hint}
    return {"result": result, "error": problem}


def _runs(options: Mapping[str, Any], now_ms: int, _: Tell) -> tuple[dict[str, Any], None]:
    path = Path(options["path"])
    return runs_report(
        path, now_ms, scope=_scope(options, now_ms), status=options["status"], limit=options["limit"]
    ), None


def _run(options: Mapping[str, Any], now_ms: int, _: Tell) -> tuple[dict[str, Any], None]:
    return run_report(Path(options["path"]), now_ms, options["run_id"]), None


def _sweep(options: Mapping[str, Any], now_ms: int, tell: Tell) -> tuple[dict[str, Any], ClawbusError | None]:
    request = Request(
        path=Path(options["path"]),
        scope=_scope(options, now_ms),
        by=options["by"],
        reason=options["reason"],
        apply=options["apply"],
        while_running=options["while_running"],
        redis_uri=options.get("redis_uri"),
    )
    outcome = sweep(request, now_ms, tell)
    # A preview succeeds even where --apply would be refused: its report names the refusal.
    return sweep_report(outcome), outcome.error if request.apply else None


def _restore(options: Mapping[str, Any], now_ms: int, tell: Tell) -> tuple[dict[str, Any], None]:
    return put_back(Path(options["path"]), Path(options["backup"]), now_ms, tell), None


def _event(options: Mapping[str, Any], now_ms: int, _: Tell) -> tuple[dict[str, Any], None]:
    return event_report(Path(options["path"]), options["event_id"], now_ms), None


def _scope(options: Mapping[str, Any], now_ms: int) -> Scope:
    given: Mapping[str, Any] = options["scope"]
    return Scope(
        functions=tuple(str(one) for one in given["functions"]),
        older_than_ms=int(given["older_than_ms"]),
        max_runs=int(given["max_runs"]),
        sample=int(given["sample"]),
        exclude=tuple(str(one) for one in given["exclude"]),
        lost_before_ms=now_ms if given.get("queue_lost") else None,
        unregistered=Unregistered(given.get("unregistered", Unregistered.REFUSE)),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_OPERATIONS: Final[
    Mapping[str, Callable[[Mapping[str, Any], int, Tell], tuple[dict[str, Any], ClawbusError | None]]]
] = {
    "runs": _runs,
    "run": _run,
    "sweep": _sweep,
    "restore": _restore,
    "event": _event,
}
