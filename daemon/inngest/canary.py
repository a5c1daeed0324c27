"""A canary: one event through the real server, and the runs that it started, until they have completed or time is up.

A file alone cannot show that a fresh run completes, so this needs the server's event endpoint. With its signing key the
server is asked for the runs, without one its database is read. Changes nothing but what the event's functions do.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from daemon.inngest.database import Shape, read_database
from daemon.inngest.errors import InngestCanaryError
from daemon.inngest.plan import DEFAULT_AGE_MS
from daemon.inngest.reading import read_runs
from daemon.inngest.reports import run_summary
from daemon.inngest.rows import Run
from daemon.inngest.truth import judge
from daemon.inngest.values import Status, run_forms, run_key, status_of_finish
from schema.frozen import frozen
from schema.handles import Reader

_REQUEST_S: Final = 15.0
_ANSWER_BYTES: Final = 64 * 1024
POLL_S: Final = 0.5


@frozen
class Waiting:
    """How to wait: seconds that never go back, and a sleep."""

    monotonic: Callable[[], float]
    sleep: Callable[[float], None]


def send_event(url: str, name: str) -> str:
    """Post one event to an endpoint (`http://HOST:8288/e/KEY`); returns its id, a ULID. Raise InngestCanaryError."""
    body = json.dumps({"name": name, "data": {"clawbus_canary": True}})
    status, answer = _request(url, "POST", urlsplit(url).path or "/", {"Content-Type": "application/json"}, body)
    if status >= 300:
        raise InngestCanaryError(f"the server refused the event with status {status}.")
    return _event_id(answer)


def runs_from_server(url: str, event_id: str, signing_key: str) -> dict[str, Any]:
    """Ask the server of the event endpoint for the runs that an event started. Raise InngestCanaryError."""
    headers = {"Authorization": f"Bearer {signing_key}"}
    status, answer = _request(url, "GET", f"/v1/events/{event_id}/runs", headers)
    if status in (401, 403):
        raise InngestCanaryError(
            "the server does not accept the signing key.", hint="Give the server's own --signing-key."
        )
    if status >= 300:
        raise InngestCanaryError(f"the server did not name the event's runs: status {status}.")
    try:
        found: list[dict[str, Any]] = json.loads(answer)["data"] or []
        runs = [
            {
                "run_id": str(one["run_id"]),
                "function": str(one.get("function_id")),
                "status": status_of_finish(one["status"]),
            }
            for one in found
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InngestCanaryError("the server's answer does not name the event's runs.") from error
    return {"event_id": event_id, "runs": runs, "asked": "server"}


def _request(
    url: str, method: str, path: str, headers: Mapping[str, str], body: str | None = None
) -> tuple[int, bytes]:
    """Send one request to the server of `url`. Return the status and the body. Raise InngestCanaryError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InngestCanaryError(f"{url!r} is not an event endpoint.", hint="Give --url http://HOST:8288/e/EVENT_KEY.")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=_REQUEST_S)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read(_ANSWER_BYTES)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InngestCanaryError(f"the server at {parts.hostname} does not answer: {error}") from error


def event_report(path: Path, event_id: str, now_ms: int) -> dict[str, Any]:
    """Return the runs that an event started, each with its true status. Errors as of opening the database."""

    def work(reader: Reader, shape: Shape) -> list[Run]:
        found = {
            run_key(row[0])
            for row in reader.all("SELECT run_id FROM function_runs WHERE event_id IN (?, ?, ?)", run_forms(event_id))
        }
        if shape.has("trace_runs", "trigger_ids"):
            sql = "SELECT run_id FROM trace_runs WHERE instr(CAST(trigger_ids AS TEXT), ?) > 0"
            found |= {run_key(row[0]) for row in reader.all(sql, (event_id,))}
        return read_runs(reader, shape, sorted(key for key in found if key is not None))

    runs = read_database(path, work)
    told = [run_summary(run, judge(run, now_ms, DEFAULT_AGE_MS)) for run in runs]
    return {"event_id": event_id, "runs": told, "asked": "database"}


def await_completion(look: Callable[[], Mapping[str, Any]], seconds: float, waiting: Waiting) -> dict[str, Any]:
    """Poll until the event has runs and all of them have ended. Raise InngestCanaryError when one did not complete."""
    deadline = waiting.monotonic() + seconds
    while True:
        report = dict(look())
        ended = [one for one in report["runs"] if Status(one["status"]).terminal]
        if report["runs"] and len(ended) == len(report["runs"]):
            break
        if waiting.monotonic() >= deadline:
            raise InngestCanaryError(
                f"{len(ended)} of {len(report['runs'])} runs of the event ended within {seconds:g} s."
            )
        waiting.sleep(POLL_S)
    bad = [f"{one['run_id']} {one['status']}" for one in ended if one["status"] != Status.COMPLETED]
    if bad:
        raise InngestCanaryError(f"the event's runs did not complete: {', '.join(bad)}.")
    return report


def _event_id(answer: bytes) -> str:
    """Return the first of the answer's `ids`, which are the server's own ULIDs."""
    try:
        first: object = json.loads(answer)["ids"][0]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InngestCanaryError("the server's answer to the event names no ids.") from error
    key = run_key(first)
    if key is None:
        raise InngestCanaryError("the server's answer to the event holds no ULID.")
    return key
