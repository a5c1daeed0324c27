"""Reads what runs did last: the newest row, sleeps and waits that have not ended, errors. Read-only.

A sleep is `history.sleep.until`, a wait `history.wait_for_event.timeout`; newer servers store both as span attributes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Row
from typing import Any, Final, cast

from daemon.inngest.asked import Asked
from daemon.inngest.database import Shape
from daemon.inngest.retries import retries_due
from daemon.inngest.rows import Activity
from daemon.inngest.values import instant

_TEXT: Final = 4000  # characters of a result to search for an error
_STEPS: Final = frozenset({"StepStarted", "StepCompleted", "StepErrored", "StepFailed"})
_RESUMED: Final = frozenset({"StepCompleted", "StepFailed", "StepErrored"})
_ERRORS: Final = frozenset({"FunctionFailed", "FunctionCancelled", "StepErrored", "StepFailed"})
_FAILURE: Final = 64 * 1024  # characters of a failed step's result, whose headers contain the time of the retry
_EXECUTION_SPANS: Final = frozenset({"executor.execution", "executor.step"})


def read_activity(asked: Asked, shape: Shape) -> dict[str, Activity]:
    """Return the activity by run id. A run without any row is missing."""
    history = asked.grouped(
        f"SELECT run_id, type, created_at, {_column(shape, 'history', 'step_id')}, {_column(shape, 'history', 'sleep')},"
        f" {_column(shape, 'history', 'wait_for_event')}, {_column(shape, 'history', 'invoke_function')},"
        f" {_column(shape, 'history', 'group_id')}, attempt,"
        f" CASE WHEN type = 'StepErrored' THEN substr(result, 1, {_FAILURE}) END AS failure,"
        f" substr(result, 1, {_TEXT}) AS result FROM history WHERE run_id IN ({{ids}}) ORDER BY rowid"
    )
    spans = _read_spans(asked, shape)
    traces = _read_traces(asked, shape)
    outputs = _read_outputs(asked, shape)
    keys = history.keys() | spans.keys() | traces.keys() | outputs.keys()
    return {
        key: _activity(history.get(key, ()), spans.get(key, ()), traces.get(key, ()), outputs.get(key, ()))
        for key in keys
    }


def _activity(history: Sequence[Row], spans: Sequence[Row], traces: Sequence[int], outputs: Sequence[str]) -> Activity:
    written = [(instant(row["created_at"]), row) for row in history]
    dated = [(at, row) for at, row in written if at is not None]
    span_times = [at for row in spans for at in _heard(row)]
    newest = max(dated, key=lambda one: one[0])[1] if dated else None
    errors = [str(row["result"]) for row in history if row["type"] in _ERRORS and row["result"]]
    steps = sum(row["type"] in _STEPS for row in history) + sum(row["name"] in _EXECUTION_SPANS for row in spans)
    return Activity(
        last_at=max((*(at for at, _ in dated), *span_times, *traces), default=None),
        waits_until=max((*_history_waits(history), *_span_waits(spans), *retries_due(history)), default=None),
        steps=steps,
        created_text=str(newest["created_at"]) if newest is not None else None,
        errors=(*errors, *outputs),
    )


def _heard(span: Row) -> Iterable[int]:
    """Yield the times at which a span was active. Skip a start after the end: it was written in advance, for a sleep's end."""
    start, end = instant(span["start_time"]), instant(span["end_time"])
    if start is not None and (end is None or start <= end):
        yield start
    if end is not None:
        yield end


def _history_waits(history: Sequence[Row]) -> Iterable[int]:
    """Yield the end of each sleep and wait that no later row of the same step has ended."""
    resumed = {row["step_id"] for row in history if row["type"] in _RESUMED and row["step_id"]}
    for row in history:
        if row["step_id"] in resumed:
            continue
        for column, name in (("sleep", "until"), ("wait_for_event", "timeout"), ("invoke_function", "timeout")):
            until = instant(_json(row[column]).get(name))
            if until is not None:
                yield until


def _span_waits(spans: Sequence[Row]) -> Iterable[int]:
    """Yield the same as `_history_waits` from span attributes. Skip groups of spans that have ended."""
    groups: dict[object, list[Mapping[str, Any]]] = defaultdict(list)
    ended: set[object] = set()
    for row in spans:
        attributes = _json(row["attributes"])
        groups[row["dynamic_span_id"]].append({**attributes, "start": row["start_time"]})
        if str(row["status"]) in ("Completed", "Failed", "Errored", "Cancelled", "TimedOut"):
            ended.add(row["dynamic_span_id"])
    for group, found in groups.items():
        if group in ended:
            continue
        for one in found:
            expiry = instant(one.get("_inngest.step.wait.expiry"))
            slept = _number(one.get("_inngest.step.sleep.duration"))
            began = instant(one.get("_inngest.queued_at")) or instant(one["start"])
            if expiry is not None:
                yield expiry
            if slept is not None and began is not None:
                yield began + slept


def _read_spans(asked: Asked, shape: Shape) -> dict[str, list[Row]]:
    if not shape.spans:
        return {}
    return asked.grouped(
        "SELECT run_id, name, status, dynamic_span_id, start_time, end_time, CASE WHEN attributes LIKE '%step.wait%'"
        f" OR attributes LIKE '%step.sleep%' THEN substr(attributes, 1, {_TEXT * 16}) END AS attributes"
        " FROM spans WHERE run_id IN ({ids})"
    )


def _read_traces(asked: Asked, shape: Shape) -> dict[str, list[int]]:
    """Return, by run, the time of the newest row in the older trace table."""
    found: dict[str, list[int]] = {}
    if shape.has("traces", "run_id", "timestamp_unix_ms"):
        sql = "SELECT run_id, max(timestamp_unix_ms) AS at FROM traces WHERE run_id IN ({ids}) GROUP BY run_id"
        for key, row in asked.rows(sql):
            at = instant(row["at"])
            if at is not None:
                found.setdefault(key, []).append(at)
    return found


def _read_outputs(asked: Asked, shape: Shape) -> dict[str, list[str]]:
    """Return each run's output. If the run could not be dispatched, that is often the error."""
    found: dict[str, list[str]] = {}
    if shape.has("trace_runs", "output"):
        sql = f"SELECT run_id, substr(output, 1, {_TEXT}) AS output FROM trace_runs WHERE output IS NOT NULL AND run_id IN ({{ids}})"
        for key, row in asked.rows(sql):
            text = row["output"]
            found.setdefault(key, []).append(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text))
    return found


def _column(shape: Shape, table: str, column: str) -> str:
    return column if shape.has(table, column) else f"NULL AS {column}"


def _json(text: object) -> dict[str, Any]:
    """Parse a JSON object. Return {} for anything else. Some servers store the object as a JSON string."""
    for _ in range(2):
        if not isinstance(text, str | bytes):
            break
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            return {}
    return cast("dict[str, Any]", text) if isinstance(text, dict) else {}


def _number(value: object) -> int | None:
    try:
        return int(float(value)) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None
