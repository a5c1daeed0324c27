"""An Inngest server's main.db as its migrations make it, filled with runs in every state of disrepair.

The tables are those of inngest/inngest, pkg/db/sqlite/migrations (000001_baseline and 000005_spans_is_deferred), column
by column; `old=True` is a server before spans and without `has_ai`. Values stand as the server writes them: ULIDs as 16 bytes, times in Go's text form, JSON in
text. The file is in WAL mode (servers since late 2026) or in DELETE mode.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.inngest.values import ulid_bytes
from schema.ids import new_id

NOW = 1_772_652_583_000  # 2026-03-04 19:29:43 UTC
MINUTE = 60_000
HOUR = 60 * MINUTE
TRIAGE = "check/o11y-triage"
HEALTH = "check/system-health"

TABLES = """
CREATE TABLE apps (id UUID PRIMARY KEY, name VARCHAR NOT NULL, sdk_language VARCHAR NOT NULL, sdk_version VARCHAR NOT NULL,
  framework VARCHAR, metadata VARCHAR DEFAULT '{}' NOT NULL, status VARCHAR NOT NULL, error TEXT, checksum VARCHAR NOT NULL,
  created_at TIMESTAMP NOT NULL, archived_at TIMESTAMP, url VARCHAR NOT NULL, method VARCHAR NOT NULL DEFAULT 'serve',
  app_version VARCHAR);
CREATE TABLE functions (id UUID PRIMARY KEY, app_id UUID, name VARCHAR NOT NULL, slug VARCHAR NOT NULL,
  config VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL, archived_at TIMESTAMP);
CREATE TABLE events (internal_id CHAR(26) PRIMARY KEY, event_id VARCHAR NOT NULL, event_name VARCHAR NOT NULL,
  event_data VARCHAR DEFAULT '{}' NOT NULL);
CREATE TABLE function_runs (run_id CHAR(26) NOT NULL, run_started_at TIMESTAMP NOT NULL, function_id UUID,
  function_version INT NOT NULL, trigger_type VARCHAR NOT NULL, event_id CHAR(26) NOT NULL, batch_id CHAR(26),
  original_run_id CHAR(26), cron VARCHAR, workspace_id UUID);
CREATE TABLE function_finishes (run_id BLOB, status VARCHAR, output VARCHAR DEFAULT '{}', completed_step_count INT DEFAULT 1,
  created_at TIMESTAMP);
CREATE TABLE history (id BLOB, created_at TIMESTAMP NOT NULL, run_started_at TIMESTAMP NOT NULL, function_id UUID,
  function_version INT NOT NULL, run_id BLOB NOT NULL, event_id BLOB NOT NULL, batch_id BLOB, group_id VARCHAR,
  idempotency_key VARCHAR NOT NULL, type VARCHAR NOT NULL, attempt INT NOT NULL, latency_ms INT, step_name VARCHAR,
  step_id VARCHAR, step_type VARCHAR, url VARCHAR, cancel_request VARCHAR, sleep VARCHAR, wait_for_event VARCHAR,
  wait_result VARCHAR, invoke_function VARCHAR, invoke_function_result VARCHAR, result VARCHAR);
CREATE TABLE trace_runs (run_id CHAR(26) PRIMARY KEY, account_id CHAR(36) NOT NULL, workspace_id CHAR(36) NOT NULL,
  app_id CHAR(36) NOT NULL, function_id CHAR(36) NOT NULL, trace_id BLOB NOT NULL, queued_at INT NOT NULL,
  started_at INT NOT NULL, ended_at INT NOT NULL, status INT NOT NULL, source_id VARCHAR NOT NULL,
  trigger_ids BLOB NOT NULL, output BLOB, is_debounce BOOLEAN NOT NULL, batch_id BLOB, cron_schedule TEXT{has_ai});
CREATE TABLE queue_snapshot_chunks (snapshot_id CHAR(26) NOT NULL, chunk_id INT NOT NULL, data BLOB,
  PRIMARY KEY (snapshot_id, chunk_id));
"""
SPANS = """
CREATE TABLE spans (span_id TEXT NOT NULL, trace_id TEXT NOT NULL, parent_span_id TEXT, name TEXT NOT NULL,
  start_time DATETIME NOT NULL, end_time DATETIME NOT NULL, attributes JSON, links JSON, dynamic_span_id TEXT,
  account_id TEXT NOT NULL, app_id TEXT NOT NULL, function_id TEXT NOT NULL, run_id TEXT NOT NULL, env_id TEXT NOT NULL,
  output JSON, input JSON, debug_run_id TEXT, debug_session_id TEXT, status TEXT, event_ids JSON, is_deferred BOOLEAN,
  PRIMARY KEY (trace_id, span_id));
"""
# The server's own question for its list (pkg/cqrs/base_cqrs, the run list's status), for one status at a time.
SPAN_LIST = """
SELECT spans.run_id, (SELECT s2.status FROM spans s2 WHERE s2.run_id = spans.run_id
    AND s2.dynamic_span_id = spans.dynamic_span_id ORDER BY s2.end_time DESC NULLS LAST, s2.span_id DESC LIMIT 1)
FROM spans WHERE spans.name = 'executor.run' AND spans.debug_run_id IS NULL
  AND (spans.status IS NULL OR spans.status <> 'Skipped')
"""


def go_time(epoch_ms: int, monotonic: bool = False) -> str:
    """Go's Time.String() in UTC, as the server's SQLite driver stores a time."""
    moment = datetime.fromtimestamp(epoch_ms / 1000, UTC)
    fraction = f".{epoch_ms % 1000:03d}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC{' m=+12.5' if monotonic else ''}"


@dataclass(frozen=True)
class Made:
    """A run that was put in."""

    key: str
    function_id: str
    started_at: int


class InngestDb:
    """One main.db. Every `run()` is one run; what it lacks is said in its arguments."""

    def __init__(self, path: Path, *, wal: bool = False, old: bool = False, now: int = NOW) -> None:
        self.path = path
        self.now = now
        self.spans = not old
        self.functions: dict[str, str] = {}
        self.account, self.env, self.app = (str(uuid.uuid4()) for _ in range(3))
        tables = TABLES.replace("{has_ai}", "" if old else ", has_ai BOOLEAN NOT NULL DEFAULT FALSE")
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
            db.executescript(tables + ("" if old else SPANS))
        self.do(
            "INSERT INTO apps (id, name, sdk_language, sdk_version, status, checksum, created_at, url)"
            " VALUES (?, 'system-bus', 'js', '3.0.0', 'active', 'c', ?, 'http://app.invalid/api/inngest')",
            (self.app, go_time(now - 48 * HOUR)),
        )

    def do(self, sql: str, values: tuple[object, ...] = ()) -> None:
        """One committed statement."""
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("PRAGMA synchronous=OFF")
            db.execute(sql, values)

    def all(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Every row of a query."""
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(sql, values).fetchall()

    def one(self, sql: str, values: tuple[object, ...] = ()) -> Any:
        """The first column of the first row."""
        return self.all(sql, values)[0][0]

    def dump(self) -> list[str]:
        """The whole content, to see that nothing was changed."""
        with closing(sqlite3.connect(self.path)) as db:
            return list(db.iterdump())

    def span_list(self, status: str = "Running") -> list[str]:
        """The runs that a server would list with this status from its spans."""
        return sorted(run for run, last in self.all(SPAN_LIST) if (last or "Running") == status)

    def function(self, name: str) -> str:
        """Its id; registered on first use."""
        if name not in self.functions:
            self.functions[name] = str(uuid.uuid4())
            slug = f"system-bus-{name}".replace("/", "-")
            self.do(
                "INSERT INTO functions (id, app_id, name, slug, config, created_at) VALUES (?, ?, ?, ?, '{}', ?)",
                (self.functions[name], self.app, name, slug, go_time(self.now - 47 * HOUR)),
            )
        return self.functions[name]

    def run(
        self,
        function: str = TRIAGE,
        *,
        age: int = 2 * HOUR,
        status: int | None = 200,
        ended_at: int = 0,
        registered: bool = True,
        history: str | None = None,
        finish: str | None = None,
        span: str | None = "Running",
        output: str | None = None,
    ) -> Made:
        """A run that started `age` ms before `now`. `history` and `finish` are terminal ones, `span` its last status.

        `status` None: no row in trace_runs; `span` None: no spans.
        """
        started = self.now - age
        made = Made(new_id(started), self.function(function), started)
        if status is not None:
            self._list(made, status, ended_at, output)
        if registered:
            self.do(
                "INSERT INTO function_runs VALUES (?, ?, ?, 1, 'event', ?, ?, NULL, NULL, ?)",
                (
                    ulid_bytes(made.key),
                    go_time(started, True),
                    made.function_id,
                    self._event(made),
                    bytes(16),
                    self.env,
                ),
            )
        self.history(made, "FunctionStarted", started + 5)
        if history is not None:
            self.history(made, history, started + 1000)
        if finish is not None:
            self.do(
                "INSERT INTO function_finishes VALUES (?, ?, '{}', 0, ?)",
                (ulid_bytes(made.key), finish, go_time(started + 1001)),
            )
        if span is not None and self.spans:
            self.root_span(made, span)
        return made

    def history(self, made: Made, kind: str, at: int, **columns: Any) -> None:
        """One history row."""
        names = "".join(f", {name}" for name in columns)
        marks = ", ?" * len(columns)
        self.do(
            "INSERT INTO history (id, created_at, run_started_at, function_id, function_version, run_id, event_id,"
            f" batch_id, idempotency_key, type, attempt{names}) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, 0{marks})",
            (ulid_bytes(new_id(at)), go_time(at), go_time(made.started_at), made.function_id, ulid_bytes(made.key),
             self._event(made), bytes(16), f"key-{made.key}", kind, *columns.values()),
        )  # fmt: skip

    def root_span(self, made: Made, status: str) -> None:
        """An `executor.run` with an EXTEND row that tells its status, as the server's exporter writes them."""
        trace, dynamic = f"{made.key.lower():0>32}"[-32:], made.key[-16:].lower()
        self.span(made, "executor.run", trace, dynamic, None, made.started_at)
        self.span(made, "EXTEND", trace, dynamic, status, made.started_at + 20)

    def span(
        self, made: Made, name: str, trace: str, dynamic: str | None, status: str | None, at: int, **attributes: Any
    ) -> None:
        """One row of spans."""
        attributes = {
            "_inngest.run.id": made.key,
            **({"_inngest.dynamic.status": status} if status else {}),
            **attributes,
        }
        self.do(
            "INSERT INTO spans (span_id, trace_id, parent_span_id, name, start_time, end_time, attributes, links,"
            " dynamic_span_id, account_id, app_id, function_id, run_id, env_id, status)"
            " VALUES (?, ?, '0000000000000000', ?, ?, ?, ?, '[]', ?, ?, ?, ?, ?, ?, ?)",
            (uuid.uuid4().hex[:16], trace, name, go_time(at, True), go_time(at + 1, True), json.dumps(attributes), dynamic,
             self.account, self.app, made.function_id, made.key, self.env, status),
        )  # fmt: skip

    def _list(self, made: Made, status: int, ended_at: int, output: str | None) -> None:
        self.do(
            "INSERT INTO trace_runs (run_id, account_id, workspace_id, app_id, function_id, trace_id, queued_at, started_at,"
            " ended_at, status, source_id, trigger_ids, output, is_debounce, batch_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, 0, NULL)",
            (ulid_bytes(made.key), self.account, self.env, self.app, made.function_id, b"trace", made.started_at,
             made.started_at, ended_at, status, event_key(made.key).encode(), output),
        )  # fmt: skip

    def _event(self, made: Made) -> bytes:
        return ulid_bytes(event_key(made.key))


def event_key(run_key: str) -> str:
    """The id of the event that started a run: made up, and always the same one."""
    return f"{run_key[:-4]}EVNT"


@dataclass(frozen=True)
class Night:
    """The acceptance case: ten stale candidates, seven and three by function, and what else a night leaves."""

    db: InngestDb
    stale: tuple[Made, ...]
    completed: Made
    unregistered: Made
    alive: Made


def the_night(path: Path, *, wal: bool = False, now: int = NOW) -> Night:
    """Seven of o11y-triage, three of system-health. Some lack history, some the finish, one completed, one was never registered."""
    db = InngestDb(path, wal=wal, now=now)
    stale = [db.run(TRIAGE) for _ in range(2)]
    stale += [db.run(TRIAGE, history="FunctionCancelled"), db.run(TRIAGE, finish="Cancelled")]
    completed = db.run(TRIAGE, history="FunctionCompleted", span="Running")
    unregistered = db.run(TRIAGE, registered=False)
    stale += [completed, unregistered, db.run(TRIAGE, ended_at=now - HOUR)]
    stale += [db.run(HEALTH) for _ in range(2)]
    stale.append(db.run(HEALTH, history="FunctionFailed", finish="Failed", output='"Unable to reach SDK URL"'))
    alive = db.run(HEALTH, age=2 * MINUTE)
    db.run("deploy/site", age=5 * HOUR)
    for _ in range(3):
        db.run(HEALTH, age=9 * HOUR, status=300, history="FunctionCompleted", finish="Completed", span="Completed")
    return Night(db, tuple(stale), completed, unregistered, alive)
