"""Reads runs with all their evidence out of an Inngest database. Changes nothing, judges nothing.

Most tables have no index on the run's id, so a question is asked once for many runs, not once for each.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from sqlite3 import Row
from typing import Any, Final

from daemon.inngest.activity import read_activity
from daemon.inngest.asked import Asked
from daemon.inngest.database import Shape
from daemon.inngest.rows import Activity, Ending, Function, Listed, LostWorker, Registered, Run, RunSpan
from daemon.inngest.values import (
    CODES,
    RAW,
    SWEPT_KEY,
    TERMINAL_HISTORY,
    Status,
    instant,
    run_forms,
    run_key,
    status_of_finish,
    status_of_span,
)
from schema.handles import Reader

CHUNK: Final = 300  # runs a question; three forms of each id
_UNEXPECTED: Final = "UNEXPECTED"  # worker_connections.disconnect_reason of a worker that died
_OPEN: Final = (Status.RUNNING, Status.SCHEDULED)
# A group's last row decides, as in the server's own query: by the text of end_time, then by span_id.
_GROUPS: Final = """
SELECT run_id, dynamic_span_id, status, end_time, swept FROM (
    SELECT run_id, dynamic_span_id, status, end_time, attributes LIKE '%clawbus_swept_by%' AS swept, row_number() OVER (
        PARTITION BY run_id, dynamic_span_id ORDER BY end_time DESC NULLS LAST, span_id DESC) AS place
    FROM spans WHERE dynamic_span_id IS NOT NULL AND {which})
WHERE place = 1"""


def read_functions(reader: Reader, shape: Shape) -> dict[str, Function]:
    """Return the registered functions by id. Of several rows with one id (old files have no key), use the last."""
    archived = "archived_at" if shape.has("functions", "archived_at") else "NULL"
    app_id = "app_id" if shape.has("functions", "app_id") else "NULL"
    apps = {}
    if shape.has("apps", "id", "name"):
        apps = {uuid_key(row["id"]): str(row["name"]) for row in reader.all("SELECT id, name FROM apps")}
    rows = reader.all(f"SELECT id, name, slug, {app_id} AS app_id FROM functions ORDER BY {archived} IS NULL, rowid")
    return {
        uuid_key(row["id"]): Function(
            uuid_key(row["id"]), row["name"], row["slug"], apps.get(uuid_key(row["app_id"])), uuid_key(row["app_id"])
        )
        for row in rows
    }


def running_keys(reader: Reader, shape: Shape, *, scheduled: bool = False) -> list[str]:
    """Return the runs that any list shows as running, or as `scheduled` too, oldest first."""
    wanted = _OPEN if scheduled else _OPEN[:1]
    codes = tuple(code for table in (CODES, RAW) for code, status in table.items() if status in wanted)
    marks = ", ".join("?" * len(codes))
    found = {run_key(row[0]) for row in reader.all(f"SELECT run_id FROM trace_runs WHERE status IN ({marks})", codes)}
    if shape.spans:
        roots = f"dynamic_span_id IN (SELECT dynamic_span_id FROM spans WHERE {_root(shape)})"
        groups = reader.all(_GROUPS.format(which=roots))
        found |= {run_key(row["run_id"]) for row in groups if status_of_span(row["status"]) in wanted}
    return sorted(key for key in found if key is not None)


def count_scheduled(reader: Reader) -> int:
    """Return how many runs `trace_runs` lists as queued."""
    codes = tuple(code for table in (CODES, RAW) for code, status in table.items() if status is Status.SCHEDULED)
    marks = ", ".join("?" * len(codes))
    row = reader.one(f"SELECT count(*) FROM trace_runs WHERE status IN ({marks})", codes)
    return int(row[0]) if row is not None else 0


def newest_keys(reader: Reader, shape: Shape, limit: int) -> list[str]:
    """Return the newest runs of any status, newest first, at most `limit`."""
    found = {
        run_key(row[0]) for row in reader.all("SELECT run_id FROM trace_runs ORDER BY queued_at DESC LIMIT ?", (limit,))
    }
    if shape.spans:
        sql = f"SELECT run_id FROM spans WHERE {_root(shape)} ORDER BY start_time DESC LIMIT ?"
        found |= {run_key(row[0]) for row in reader.all(sql, (limit,))}
    # A ULID begins with its time, so its order is the time's.
    return sorted((key for key in found if key is not None), reverse=True)[:limit]


def read_runs(reader: Reader, shape: Shape, keys: Sequence[str]) -> list[Run]:
    """Return these runs with all their evidence, in the given order. A key that no table knows is left out."""
    functions = read_functions(reader, shape)
    workers = _read_lost_workers(reader, shape)
    found: list[Run] = []
    for start in range(0, len(keys), CHUNK):
        found += _read_chunk(reader, shape, keys[start : start + CHUNK], functions)
    return (
        [replace(run, lost_workers=tuple(workers.get(run.function.app_id or "", ()))) for run in found]
        if workers
        else found
    )


def uuid_key(value: object) -> str:
    """Return a UUID's text, from text or 16 bytes."""
    if isinstance(value, bytes) and len(value) == 16:
        return str(uuid.UUID(bytes=value))
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _read_lost_workers(reader: Reader, shape: Shape) -> Mapping[str, list[LostWorker]]:
    """Return, by application, the worker connections that ended without a shutdown message."""
    if not shape.has(
        "worker_connections", "app_id", "connected_at", "recorded_at", "disconnected_at", "disconnect_reason"
    ):
        return {}
    found: dict[str, list[LostWorker]] = defaultdict(list)
    sql = "SELECT app_id, connected_at, coalesce(disconnected_at, recorded_at) AS lost_at FROM worker_connections"
    for row in reader.all(f"{sql} WHERE disconnect_reason = ?", (_UNEXPECTED,)):
        connected, lost = instant(row["connected_at"]), instant(row["lost_at"])
        if connected is not None and lost is not None:
            found[uuid_key(row["app_id"])].append(LostWorker(connected, lost))
    return found


def _read_chunk(reader: Reader, shape: Shape, keys: Sequence[str], functions: Mapping[str, Function]) -> list[Run]:
    forms = tuple(form for key in keys for form in run_forms(key))
    asked = Asked(reader, forms, ", ".join("?" * len(forms)))
    listed = dict(asked.rows("SELECT * FROM trace_runs WHERE run_id IN ({ids})"))
    registered = asked.grouped("SELECT * FROM function_runs WHERE run_id IN ({ids}) ORDER BY rowid")
    finishes = asked.grouped(
        "SELECT run_id, status, created_at FROM function_finishes WHERE run_id IN ({ids}) ORDER BY rowid"
    )
    endings = _endings(asked)
    spans = _spans(asked, shape) if shape.spans else {}
    activity = read_activity(asked, shape)
    known = listed.keys() | registered.keys() | finishes.keys() | endings.keys() | spans.keys() | activity.keys()

    def build(key: str) -> Run:
        function_id = _function_id(listed.get(key), registered.get(key, ()), spans.get(key, ()))
        finish = finishes.get(key)
        return Run(
            key=key,
            function=functions.get(function_id, Function(function_id)),
            listed=_listed(listed[key]) if key in listed else None,
            registered=_registered(registered[key][0]) if key in registered else None,
            endings=tuple(endings.get(key, ())),
            finish=status_of_finish(finish[0]["status"]) if finish else None,
            finished_at=instant(finish[0]["created_at"]) if finish else None,
            spans=tuple(spans.get(key, ())),
            activity=activity.get(key, Activity()),
        )

    return [build(key) for key in keys if key in known]


def _listed(row: Row) -> Listed:
    code = row["status"]
    return Listed(
        code if isinstance(code, int) else -1,
        instant(row["queued_at"]),
        instant(row["started_at"]),
        instant(row["ended_at"]),
    )


def _registered(row: Row) -> Registered:
    return Registered(
        row["run_id"], row["run_started_at"], row["function_id"], int(row["function_version"] or 0), row["event_id"],
        row["batch_id"],
    )  # fmt: skip


def _function_id(listed: Row | None, registered: Sequence[Row], spans: Sequence[RunSpan]) -> str:
    sources: Iterable[Callable[[], object]] = (
        lambda: listed["function_id"] if listed is not None else None,
        lambda: registered[0]["function_id"] if registered else None,
        lambda: spans[0].row.get("function_id") if spans else None,
    )
    return next((uuid_key(value) for value in (one() for one in sources) if value), "unknown")


def _endings(asked: Asked) -> dict[str, list[Ending]]:
    types = ", ".join(f"'{one}'" for one in TERMINAL_HISTORY)
    found: dict[str, list[Ending]] = defaultdict(list)
    for key, row in asked.rows(
        f"SELECT run_id, type, created_at, idempotency_key FROM history WHERE type IN ({types}) AND run_id IN ({{ids}}) ORDER BY rowid"
    ):
        found[key].append(
            Ending(
                row["type"],
                TERMINAL_HISTORY[row["type"]],
                instant(row["created_at"]),
                swept=str(row["idempotency_key"]).startswith(SWEPT_KEY),
            )
        )
    return found


def _spans(asked: Asked, shape: Shape) -> dict[str, list[RunSpan]]:
    """Return each run's root span groups. A root without a dynamic id has no extension, so no list shows its end."""
    roots = asked.grouped(f"SELECT * FROM spans WHERE {_root(shape)} AND run_id IN ({{ids}}) ORDER BY start_time")
    last = {(key, row["dynamic_span_id"]): row for key, row in asked.rows(_GROUPS.format(which="run_id IN ({ids})"))}
    found: dict[str, list[RunSpan]] = defaultdict(list)
    for key, rows in roots.items():
        for root in {row["dynamic_span_id"]: row for row in reversed(rows) if row["dynamic_span_id"]}.values():
            newest = last[key, root["dynamic_span_id"]]
            found[key].append(
                RunSpan(
                    dynamic_id=root["dynamic_span_id"],
                    status=status_of_span(newest["status"]),
                    start_at=instant(root["start_time"]),
                    end_text=str(newest["end_time"]) if newest["end_time"] is not None else None,
                    row=_plain(root),
                    swept=bool(newest["swept"]),
                )
            )
    return found


def _root(shape: Shape) -> str:
    return "name = 'executor.run'" + (" AND debug_run_id IS NULL" if shape.has("spans", "debug_run_id") else "")


def _plain(row: Row) -> Mapping[str, Any]:
    """Return the columns that an extension repeats, without the big ones."""
    big = ("attributes", "links", "output", "input", "event_ids")
    return {name: value for name, value in zip(row.keys(), row, strict=True) if name not in big}
