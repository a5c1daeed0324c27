"""Writes the end of one run: terminal history first, then the finish row, then the spans, and the list's status last.

Call this only inside the sweep's transaction, for candidates that were read in it: the tables have no keys, so nothing but
the lock keeps a row from being written twice. Except for the list's status, it never deletes or overwrites a row of the server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from daemon.inngest.database import Shape
from daemon.inngest.errors import SweepDatabaseChangedError
from daemon.inngest.plan import Candidate
from daemon.inngest.rows import RunSpan
from daemon.inngest.values import (
    SWEPT_KEY,
    TERMINAL_HISTORY,
    ZERO_ULID,
    Status,
    code_like,
    instant,
    instant_text,
    run_forms,
    ulid_bytes,
)
from schema.frozen import frozen
from schema.handles import Writer
from schema.ids import new_id

_TYPES: Final[Mapping[Status, str]] = {status: kind for kind, status in TERMINAL_HISTORY.items()}
# What the server itself writes: the keys of a cancel request, and columns of JSON that say nothing.
_CANCEL_REQUEST: Final[Mapping[str, object]] = {
    "EventID": None, "Expression": None, "UserID": None, "CancellationID": None, "ForceLifecycleHook": False,
}  # fmt: skip
_EMPTY_JSON: Final = ("sleep", "wait_for_event", "wait_result", "invoke_function", "invoke_function_result")
# Attributes of a span, each with the column of an owner's id that it repeats.
_ATTRIBUTES: Final[Mapping[str, str]] = {
    "_inngest.account.id": "account_id", "_inngest.app.id": "app_id", "_inngest.env.id": "env_id",
    "_inngest.function.id": "function_id", "_inngest.dynamic.trace.id": "trace_id",
}  # fmt: skip
# An extension repeats these columns of its root span: the ids of its owners.
_REPEATED: Final = ("trace_id", "parent_span_id", "account_id", "app_id", "function_id", "run_id", "env_id")


@frozen
class Written:
    """How many rows a sweep wrote."""

    history: int = 0
    finishes: int = 0
    spans: int = 0
    statuses: int = 0


@frozen
class Mark:
    """Who sweeps, why, and when (epoch milliseconds). Goes into every row that can carry it."""

    by: str
    reason: str
    at: int

    @property
    def words(self) -> dict[str, str]:
        """The same as JSON keys that the server ignores."""
        return {"clawbus_swept_by": self.by, "clawbus_reason": self.reason}


def write_history(writer: Writer, shape: Shape, candidate: Candidate, mark: Mark) -> int:
    """Write the terminal history row if it is missing. Return the number of rows written: 0 or 1."""
    run, registered = candidate.run, candidate.run.registered
    if not candidate.add_history or registered is None:
        return 0
    cancelled = candidate.status is Status.CANCELLED
    request = {**_CANCEL_REQUEST, **mark.words}
    values: dict[str, object] = {
        "id": ulid_bytes(new_id(mark.at)),
        "created_at": instant_text(mark.at, run.activity.created_text or str(registered.started_text)),
        "run_started_at": registered.started_text,
        "function_id": registered.function_id,
        "function_version": registered.function_version,
        "run_id": registered.run_id,
        "event_id": registered.event_id,
        # The server cannot read NULL here: an absent batch is sixteen zero bytes.
        "batch_id": registered.batch_id if registered.batch_id is not None else ZERO_ULID,
        "idempotency_key": f"{SWEPT_KEY}{run.key}",
        "type": _TYPES[candidate.status],
        "attempt": 0,
        **dict.fromkeys(_EMPTY_JSON, "null"),
        "cancel_request": json.dumps(request) if cancelled else "null",
        "result": "null" if cancelled else json.dumps({"output": "", **mark.words}),
    }
    return _insert(writer, shape, "history", values)


def write_finish(writer: Writer, shape: Shape, candidate: Candidate, mark: Mark) -> int:
    """Write the finish row if it is missing. Return the number of rows written."""
    run, registered = candidate.run, candidate.run.registered
    if not candidate.add_finish or registered is None:
        return 0
    values: dict[str, object] = {
        "run_id": registered.run_id,
        "status": candidate.status.value.capitalize(),
        "output": "{}",
        "completed_step_count": 0,
        "created_at": instant_text(mark.at, run.activity.created_text or str(registered.started_text)),
    }
    return _insert(writer, shape, "function_finishes", values)


def write_spans(writer: Writer, shape: Shape, candidate: Candidate, mark: Mark) -> int:
    """Write an EXTEND row for each open root group, as the server ends one. Return the number of rows written."""
    return sum(_extend(writer, shape, candidate, span, mark) for span in candidate.extend)


def write_status(writer: Writer, candidate: Candidate, mark: Mark) -> int:
    """Set the list's status, last of all. Return the rows changed. Raise SweepDatabaseChangedError on a surprise."""
    listed = candidate.run.listed
    if not candidate.set_listed or listed is None:
        return 0
    # In a running row, `ended_at` is the last update, not the end.
    kept = listed.ended_at if listed.status.terminal else None
    ended = ended_at(candidate) or kept or mark.at
    changed = writer.execute(
        "UPDATE trace_runs SET status = ?, ended_at = ? WHERE status = ? AND run_id IN (?, ?, ?)",
        (code_like(candidate.status, listed.code), ended, listed.code, *run_forms(candidate.run.key)),
    )
    if changed != 1:
        raise SweepDatabaseChangedError(
            f"run {candidate.run.key} has {changed} rows in trace_runs with its old status."
        )
    return changed


def ended_at(candidate: Candidate) -> int | None:
    """Return when the run ended, from its history, its finish or its trace."""
    run = candidate.run
    newest = max((one.at or 0 for one in run.endings), default=0)
    traced = max((instant(one.end_text) or 0 for one in run.spans if one.status.terminal), default=0)
    return newest or run.finished_at or traced or None


def _extend(writer: Writer, shape: Shape, candidate: Candidate, span: RunSpan, mark: Mark) -> int:
    at, text = _after(span, ended_at(candidate) or mark.at, mark.at)
    status = candidate.status.value.capitalize()
    attributes = {
        **{name: span.row[column] for name, column in _ATTRIBUTES.items() if span.row.get(column)},
        "_inngest.internal.location": "clawbus.sweep",
        "_inngest.run.id": candidate.run.key,
        "_inngest.dynamic.span.id": span.dynamic_id,
        "_inngest.dynamic.status": status,
        "_inngest.ended_at": str(at),
        **mark.words,
    }
    identity = hashlib.sha256(f"{candidate.run.key} {span.dynamic_id} {span.end_text}".encode()).hexdigest()[:16]
    values: dict[str, object] = {
        **{name: span.row.get(name) for name in _REPEATED},
        "span_id": identity,
        "name": "EXTEND",
        "start_time": text,
        "end_time": text,
        "attributes": json.dumps(attributes),
        "links": "null",
        "dynamic_span_id": span.dynamic_id,
        "status": status,
    }
    return _insert(writer, shape, "spans", values)


def _after(span: RunSpan, wanted: int, now_ms: int) -> tuple[int, str]:
    """Return an instant whose text sorts after the group's last one: the server takes the greatest text's status."""
    last = instant(span.end_text) or 0
    for at in (max(wanted, last + 1), now_ms, last + 1000):
        text = instant_text(at, span.end_text)
        if span.end_text is None or text > span.end_text:
            return at, text
    raise SweepDatabaseChangedError(
        f"span {span.dynamic_id} ends at {span.end_text!r}, and no later time can be written in that form.",
        hint="Leave its run out with --exclude, and report the form of its times.",
    )


def _insert(writer: Writer, shape: Shape, table: str, values: Mapping[str, object]) -> int:
    """Insert the columns that this file has."""
    there = {name: value for name, value in values.items() if shape.has(table, name)}
    marks = ", ".join("?" * len(there))
    return writer.execute(f"INSERT INTO {table} ({', '.join(there)}) VALUES ({marks})", tuple(there.values()))
