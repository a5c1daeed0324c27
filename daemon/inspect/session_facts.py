"""The facts about one session, from its row, its files and the runtime's listing. Read-only; judges nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from daemon.core.facts import ClockFacts, Container, LiveRecord, RunFacts, SessionFacts
from daemon.core.host_rules import CLOCK_SLACK_MS
from daemon.core.run_evidence import RuntimeContext
from daemon.core.run_state import Life
from daemon.inspect.queues import Queues, read_queues
from daemon.inspect.reading import RunsRead
from daemon.inspect.trusted_files import open_inbound, table_rows
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import from_text
from schema.layout import OUTBOUND_DB, SessionFolder

# What is due and not held back by an earlier row to the same place that waits for its next attempt.
_OVERDUE: Final = (
    "SELECT count(*) AS n, min(coalesce(next_attempt_at, first_at)) AS oldest FROM delivery_attempts"
    " WHERE state != 'dead' AND coalesce(next_attempt_at, 0) <= ?1 AND destination NOT IN"
    " (SELECT destination FROM delivery_attempts WHERE state = 'retrying' AND next_attempt_at > ?1{blocks})"
)
_BLOCKS: Final = " AND passed = 0"  # where the file has that column


@frozen
class SessionSeen:
    """The facts, and what speaks for a jump of the clock."""

    facts: SessionFacts
    clock: ClockFacts


def session_facts(
    key: tuple[str, str],
    folder: SessionFolder,
    row: Mapping[str, Any] | None,
    live: Mapping[str, Any] | None,
    container: Container | None,
    containers: tuple[Container, ...],
    context: RuntimeContext,
    runs: RunsRead,
) -> SessionSeen:
    """`row` is its row of sessions, None when central.db has none; `container` is the recorded one, `containers` are the unsupervised ones."""
    queues = read_queues(folder, context.now)
    overdue, oldest_overdue, clock, error = _delivery_and_clock(key, folder, context.now)
    if runs.news and not context.synced:
        overdue, oldest_overdue = overdue + 1, min(_changed_at(folder) or context.now, oldest_overdue or context.now)
    errors = tuple(dict.fromkeys(text for text in (*runs.errors, queues.error, error) if text is not None))
    life = context.life(live["id"]) if live is not None else Life.GONE
    recorded = recorded_facts(key, row, live_record(live, life), queues)
    claimed = queues.claimed or any(run.evidence.claimed for run in runs.runs)
    asked = life is Life.ALIVE and queues.due > 0 and not claimed
    facts = replace(
        recorded,
        moved_at=_moved_at(folder, live["id"]) if asked and live is not None else None,
        container=container,
        containers=containers,
        journal=os.path.lexists(folder.outbox / f"{OUTBOUND_DB}-journal"),
        claimed=claimed,
        overdue_answers=overdue,
        oldest_overdue_at=oldest_overdue,
        errors=errors,
    )
    return SessionSeen(facts, clock)


def recorded_facts(
    key: tuple[str, str], row: Mapping[str, Any] | None, live: LiveRecord | None, queues: Queues
) -> SessionFacts:
    """Return what central.db's row and the host's own file say of a session, without its container and outbound.db."""
    values = row or {}
    example, reason, code = _example(queues)
    return SessionFacts(
        agent=key[0],
        session=key[1],
        registered=row is not None,
        quarantined_at=values.get("quarantined_at"),
        quarantine_reason=values.get("quarantine_reason"),
        spawn_failures=values.get("spawn_failures") or 0,
        next_spawn_at=values.get("next_spawn_at"),
        last_spawn_error=values.get("last_spawn_error"),
        next_due_at=values.get("next_due_at"),
        live=live,
        due=queues.due,
        later=queues.scheduled + queues.backing_off,
        oldest_due_at=queues.oldest_due_at,
        held=queues.held,
        oldest_held_at=queues.oldest_held_at,
        holder=queues.holder.message_id if queues.holder is not None else None,
        holder_sentence=queues.holder.sentence if queues.holder is not None else None,
        crashing=queues.crashing.message_id if queues.crashing is not None else None,
        crashing_sentence=queues.crashing.sentence if queues.crashing is not None else None,
        questions=queues.questions,
        failing_schedules=queues.failing_schedules,
        zoneless_schedules=queues.zoneless_schedules,
        question=queues.question.id if queues.question is not None else None,
        question_text=queues.question.question.text if queues.question is not None else None,
        question_options=tuple(one.label for one in queues.question.question.options)
        if queues.question is not None
        else (),
        question_deadline=queues.question.deadline if queues.question is not None else None,
        claimed=queues.claimed,
        failed=queues.failed,
        dead=queues.dead,
        dead_example=example,
        dead_reason=reason,
        dead_code=code,
        retrying=queues.retrying,
        retrying_example=queues.retrying_example,
        open_answers=queues.undelivered + queues.scheduled_answers,
        errors=(queues.error,) if queues.error is not None else (),
    )


def live_record(row: Mapping[str, Any] | None, life: Life) -> LiveRecord | None:
    """Return the record of the session's unconfirmed incarnation, None without one."""
    if row is None:
        return None
    return LiveRecord(row["id"], row["container_id"], row["created_at"], row["started_at"], life)


def oldest_claim(folder: SessionFolder) -> tuple[str, int] | None:
    """Return (message id, since) of the oldest turn under way, as the host recorded it, or None."""
    try:
        with open_inbound(folder) as reader:
            sql = "SELECT message_id, claimed_at FROM attempts WHERE outcome IS NULL ORDER BY claimed_at LIMIT ?"
            rows = table_rows(reader, "attempts", sql, 1)
    except ClawbusError:
        return None
    return (str(rows[0]["message_id"]), int(rows[0]["claimed_at"])) if rows else None


def run_facts(runs: RunsRead, context: RuntimeContext) -> list[RunFacts]:
    """Return each run with the progress of its container."""
    found: list[RunFacts] = []
    for run in runs.runs:
        seen = run.evidence
        tool = runs.tool if seen.claimed else None
        found.append(
            RunFacts(
                evidence=seen,
                verdict=run.verdict,
                born_at=context.born_at(seen.incarnation),
                heartbeat_at=runs.heartbeat_at,
                tool=tool.name if tool is not None else None,
                declared_ms=tool.declared_timeout_ms if tool is not None else None,
            )
        )
    return found


def _example(queues: Queues) -> tuple[str | None, str | None, str | None]:
    """Return the newest dead letter, its reason and its code."""
    if queues.dead_example is not None:
        dead = queues.dead_example
        code = dead.get("last_error_code")
        return str(dead["message_out_id"]), _short(dead.get("last_error") or code), str(code) if code else None
    if queues.failed_example is not None:
        event: Mapping[str, Any] = queues.failed_example.get("last_event") or {}
        detail: Mapping[str, Any] = event.get("detail") or {}
        reason = detail.get("reason") or detail.get("error") or event.get("event")
        code = detail.get("code")
        return str(queues.failed_example["id"]), _short(reason), str(code) if code else None
    return None, None, None


def _short(text: object) -> str | None:
    return " ".join(str(text).split())[:300] if text is not None else None


def _delivery_and_clock(
    key: tuple[str, str], folder: SessionFolder, now: int
) -> tuple[int, int | None, ClockFacts, str | None]:
    try:
        with open_inbound(folder) as reader:
            blocks = _BLOCKS if "passed" in reader.columns("delivery_attempts") else ""
            rows = table_rows(reader, "delivery_attempts", _OVERDUE.format(blocks=blocks), now)
            overdue, oldest = (int(rows[0]["n"]), rows[0]["oldest"]) if rows else (0, None)
            return overdue, oldest, _clock(key, reader, now), None
    except ClawbusError as error:
        return 0, None, ClockFacts(), f"{error.code}: {error}"


def _clock(key: tuple[str, str], reader: Reader, now: int) -> ClockFacts:
    """Return how far rows are dated in the future, and a message that such a clock has postponed."""
    sql = "SELECT message_id, at FROM message_history ORDER BY id DESC LIMIT 50"
    ahead = max((row["at"] - now for row in table_rows(reader, "message_history", sql)), default=0)
    if ahead <= CLOCK_SLACK_MS:
        return ClockFacts()
    waiting = (
        "SELECT id, process_after FROM messages_in WHERE status = 'pending' AND process_after IS NOT NULL LIMIT 500"
    )
    dated = "SELECT max(at) AS at FROM message_history WHERE message_id = ?"
    for row in reader.all(waiting):
        until = from_text(row["process_after"])
        last = reader.one(dated, (row["id"],))
        if until is not None and until > now and last is not None and (last["at"] or 0) > now + CLOCK_SLACK_MS:
            return ClockFacts(ahead, _where(key), None, None, *key, row["id"], until)
    return ClockFacts(ahead, _where(key))


def _where(key: tuple[str, str]) -> str:
    return f"The newest history of {'/'.join(key)}"


def _moved_at(folder: SessionFolder, incarnation: str) -> int | None:
    """Return when this incarnation last began or ended a turn, as the host recorded it, or None."""
    sql = "SELECT max(coalesce(ended_at, claimed_at)) AS at FROM attempts WHERE incarnation = ?"
    try:
        with open_inbound(folder) as reader:
            rows = table_rows(reader, "attempts", sql, incarnation)
    except ClawbusError:
        return None
    return rows[0]["at"] if rows else None


def _changed_at(folder: SessionFolder) -> int | None:
    try:
        return os.lstat(folder.outbound_db).st_mtime_ns // 1_000_000
    except OSError:
        return None
