"""Reports the whole life of one run with times and durations: from acceptance to receipt, and its container's end and last output.

Puts together what the files, the registry and the logs say. Decides nothing; the verdict comes from `run_state.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.run_evidence import RunRead
from daemon.core.run_state import Life, RunStatus
from daemon.inspect.containers import container_output
from daemon.inspect.log_reading import container_lines, daemon_lines, turn_events
from daemon.inspect.message_life import order_of, read_life
from daemon.inspect.runs import Found, summary, verdict_of
from schema.instants import to_text
from schema.rows import TurnUsage

LOG_LINES: Final = 20
_WAITS_AFTER: Final = ("retry_scheduled", "released", "deferred")


def life_of(config: Config, found: Found, install_id: str | None) -> dict[str, Any]:
    """Return everything about one run: its verdict, its events in time order, its container, its message's other runs.

    Events are [{at, event, detail, after_ms, took_ms}]: since the first one, and since the one before.
    """
    run, row = found.wanted, _incarnation(found)
    seen = run.evidence
    output = None
    if (
        seen.life is Life.ALIVE
        and config.runtime.kind != "process"
        and install_id is not None
        and row.get("container_id")
    ):
        output = container_output(config, install_id, str(row["container_id"]))
    lines: list[str] = []
    if seen.incarnation is not None:
        lines = container_lines(found.folder, seen.incarnation, row.get("created_at"), row.get("ended_at"), output)
    log = lines or _before(found)
    events, errors = read_life(found.folder, seen.message_id, read_limits(config))
    own = [event for event in events if _is_of(event, run)]
    own += _of_container(row, run) + list(turn_events(lines, seen.message_id))
    own += _in_flight(found)
    timed = _timed(own)
    return {
        **summary(found.key, run),
        "next_try_at": _next_try(run),
        "verdict": verdict_of(run),
        "events": timed,
        "durations": _durations(timed),
        "usage": _usage(timed),
        "deliveries": [event for event in timed if str(event["event"]).startswith(("delivered", "delivery_", "dead_"))],
        "container": dict(row) if row else None,
        "container_lives": seen.life.value if seen.incarnation is not None else None,
        "container_log": log[-LOG_LINES:],
        "daemon_log": daemon_lines(config.data_dir, seen.message_id, seen.incarnation, LOG_LINES),
        "other_runs": [summary(found.key, other) for other in found.runs.runs if other is not run],
        "errors": [*found.runs.errors, *(error for error in errors if error not in found.runs.errors)],
    }


def _usage(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what the turn used, from the history row of its end; None when its agent did not say."""
    for event in events:
        if event["event"] == "completed":
            named = {field.name for field in fields(TurnUsage)}
            return {name: value for name, value in event["detail"].items() if name in named} or None
    return None


def _before(found: Found) -> list[str]:
    """Return what the container of the try before wrote, for a message that waits for its next one."""
    before = [run.evidence.incarnation for run in found.runs.runs if run.evidence.incarnation is not None]
    if found.wanted.evidence.incarnation is not None or not before:
        return []
    last = before[-1]
    row = found.incarnations.get(last, {})
    return container_lines(found.folder, last, row.get("created_at"), row.get("ended_at"))


def _next_try(run: RunRead) -> int | None:
    """Return until when an unclaimed message is put off, epoch ms."""
    return (
        run.message.process_after
        if run.evidence.incarnation is None and run.verdict.status is RunStatus.WAITING
        else None
    )


def _incarnation(found: Found) -> Mapping[str, Any]:
    incarnation = found.wanted.evidence.incarnation
    return found.incarnations.get(incarnation, {}) if incarnation is not None else {}


def _is_of(event: Mapping[str, Any], run: RunRead) -> bool:
    """Return whether an event of the message belongs to this run: what another incarnation did does not."""
    incarnation = event["detail"].get("incarnation")
    if run.evidence.incarnation is None and event["event"] in _WAITS_AFTER:
        return True  # it is not claimed again: how the last run ended is why this one waits, and until when
    if incarnation is not None:
        return incarnation == run.evidence.incarnation
    if event["event"] == "answered":
        return event["detail"].get("message_out_id") in {answer.message_out_id for answer in run.evidence.answers} or (
            run.evidence.latest
        )
    return event["event"] == "accepted" or run.evidence.latest or "message_out_id" not in event["detail"]


def _of_container(row: Mapping[str, Any], run: RunRead) -> list[dict[str, Any]]:
    """Return the events of the run's container: its start and its end."""
    if not row:
        return []
    which = {"incarnation": row["id"], "container_id": row["container_id"]}
    accepted = run.message.accepted_at
    events: list[dict[str, Any]] = []
    if accepted is not None and row["created_at"] < accepted:
        detail = {**which, "since": to_text(row["started_at"] or row["created_at"])}
        events.append({"at": accepted, "event": "container_found", "detail": detail})
    else:
        events.append({"at": row["created_at"], "event": "woken", "detail": {"incarnation": row["id"]}})
        if row["started_at"] is not None:
            events.append({"at": max(row["started_at"], row["created_at"]), "event": "spawned", "detail": which})
    if row["ended_at"] is not None:
        detail = {**which, "exit_code": row["exit_code"], "reason": row["end_reason"]}
        events.append({"at": row["ended_at"], "event": "exited", "detail": detail})
    return events


def _in_flight(found: Found) -> list[dict[str, Any]]:
    """Return the tool that runs now, if its container works on this run."""
    tool, seen = found.runs.tool, found.wanted.evidence
    if tool is None or not seen.claimed or seen.life is Life.GONE:
        return []
    detail = {"tool": tool.name, "declared_timeout_ms": tool.declared_timeout_ms}
    return [{"at": tool.started_at, "event": "tool_in_flight", "detail": detail}]


def _timed(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first: int | None = None
    before: int | None = None
    timed: list[dict[str, Any]] = []
    for event in sorted(events, key=order_of):
        at: int | None = event["at"]
        first = at if first is None else first
        after = at - first if at is not None and first is not None else None
        took = at - before if at is not None and before is not None else None
        timed.append({**event, "after_ms": after, "took_ms": took})
        before = at if at is not None else before
    return timed


def _durations(events: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Return the milliseconds until the claim, until the answer, until its delivery, and in total."""

    def at(*names: str) -> int | None:
        return next((event["at"] for event in events if event["event"] in names and event["at"] is not None), None)

    accepted, claimed, answered, delivered = (
        at("accepted"),
        at("claimed", "turn_started"),
        at("answered"),
        at("delivered"),
    )

    def between(start: int | None, end: int | None) -> int | None:
        return max(0, end - start) if start is not None and end is not None else None

    dated = [event["at"] for event in events if event["at"] is not None]
    return {
        "waited_ms": between(accepted, claimed),
        "worked_ms": between(claimed, answered),
        "delivered_ms": between(answered, delivered),
        "total_ms": between(min(dated, default=None), max(dated, default=None)),
    }
