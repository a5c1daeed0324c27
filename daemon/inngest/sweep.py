"""The stale sweep of an Inngest database: check, refuse or back up, end the stale runs in one transaction, verify.

Preview is the default and changes nothing. With `apply` every gate is asked again inside the transaction, and a file that
somebody wrote to since the backup is left as it is. Interrupted at any point it can be run again: before the commit nothing
has happened, after it there is nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from daemon.core.repair_errors import BackupFailedError, BackupNotVerifiedError
from daemon.inngest.database import Shape, open_writer, read_database
from daemon.inngest.errors import (
    InngestDbLockedError,
    SweepApplyFailedError,
    SweepBackupFailedError,
    SweepBackupNotVerifiedError,
    SweepDatabaseChangedError,
    SweepNotVerifiedError,
    SweepQueueAliveError,
    SweepServerRunningError,
    SweepServerWouldLoseWritesError,
)
from daemon.inngest.holders import Holder, Queue, find_holders
from daemon.inngest.plan import Candidate, Plan, Scope, check_scope, make_plan, refusal
from daemon.inngest.queue import queued_keys, with_proof
from daemon.inngest.reading import count_scheduled, read_functions, read_runs, running_keys
from daemon.inngest.redis_queue import runs_in_redis
from daemon.inngest.verification import Verification, verify
from daemon.inngest.writing import Mark, Written, write_finish, write_history, write_spans, write_status
from daemon.maintenance.backup import Backup, back_up
from schema.errors import ClawbusError, FileBusyError
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.lockfree import uses_wal
from schema.stamp import StrandedJournalError

PURPOSE: Final = "pre-sweep"
# Called with each step as it is reached. If it raises, the sweep ends there.
Progress = Callable[[str], None]


@frozen
class Request:
    """A sweep that was asked for. `while_running`: although a process has the database open, in WAL mode."""

    path: Path
    scope: Scope
    by: str
    reason: str = "stale: the list said running, nothing else did"
    apply: bool = False
    while_running: bool = False
    redis_uri: str | None = None  # the Redis that holds the server's queue, if it is there


@frozen
class Found:
    """What the database says."""

    plan: Plan
    queued: frozenset[str]  # candidates that the last queue snapshot names
    scheduled: int  # runs that are listed as queued


@frozen
class Outcome:
    """What a sweep found and did. `error` is why it did nothing, or what its verification found wrong."""

    request: Request
    plan: Plan
    queued: frozenset[str]
    scheduled: int
    holders: tuple[Holder, ...]
    error: ClawbusError | None = None
    backup: Backup | None = None
    written: Written | None = None
    verification: Verification | None = None


def sweep(request: Request, now_ms: int, progress: Progress | None = None) -> Outcome:
    """Preview or apply a sweep. An error that comes with a report is returned with it; other errors are raised.

    Raises the errors of opening, INVALID_SWEEP_SCOPE and SWEEP_AGE_TOO_YOUNG; nothing is changed then.
    """
    tell = progress or _silent
    holders = find_holders(request.path)  # before the first connection: see holders.py

    def work(reader: Reader, shape: Shape) -> tuple[Request, Found]:
        wanted = replace(request, scope=with_proof(request.scope, reader, shape, holders))
        check_scope(wanted.scope, list(read_functions(reader, shape).values()), apply=request.apply)
        plan = _plan(reader, shape, wanted.scope, now_ms)
        return wanted, Found(plan, queued_keys(reader, shape, plan.keys), count_scheduled(reader))

    request, seen = _looked(request, bool(holders), work, tell)
    tell("planned")
    error = refusal(seen.plan, request.scope) or _queue_alive(request, seen.plan, holders)
    found = Outcome(request, seen.plan, seen.queued, seen.scheduled, holders, error=error)
    if found.error is not None or not request.apply or not seen.plan.candidates:
        return found
    beside = _beside_a_server(request, holders)
    if beside is not None:
        return replace(found, error=beside)
    try:
        return _apply(found, now_ms, tell)
    except ClawbusError as error:
        return replace(found, error=error)


def _looked(
    request: Request, held: bool, work: Callable[[Reader, Shape], tuple[Request, Found]], tell: Progress
) -> tuple[Request, Found]:
    """Read the database. For an apply, first let SQLite roll back the commit in which a server died."""
    try:
        return read_database(request.path, work)
    except InngestDbLockedError as error:
        # A journal of a server that lives must not be touched: rolling it back takes a lock.
        if held or not request.apply or not isinstance(error.__cause__, StrandedJournalError):
            raise
    with open_writer(request.path):
        tell("journal_looked_at")
    return read_database(request.path, work)


def _queue_alive(request: Request, plan: Plan, holders: Sequence[Holder]) -> ClawbusError | None:
    """Return why these runs may still continue: a queue in Redis survives the server. A run that is known to have ended cannot."""
    open_ = [one.run.key for one in plan.candidates if not one.verdict.status.terminal]
    redis = request.redis_uri is not None or any(one.queue is Queue.REDIS for one in holders)
    if not open_ or not redis or request.scope.lost_before_ms is not None:
        return None
    if request.redis_uri is None:
        return SweepQueueAliveError(f"the server keeps its queue in Redis, where {len(open_)} candidates may still be.")
    try:
        alive = sorted(runs_in_redis(request.redis_uri, open_))
    except SweepQueueAliveError as error:
        return error
    if not alive:
        return None
    leave = " ".join(f"--exclude {key}" for key in alive)
    return SweepQueueAliveError(
        f"Redis still holds {len(alive)} of {len(plan.candidates)} candidates: {', '.join(alive[:5])}.",
        hint=f"The server continues them when it starts. Leave them out: {leave}",
    )


def _beside_a_server(request: Request, holders: Sequence[Holder]) -> ClawbusError | None:
    """Return why nothing may be written while these processes have the file open; None when it may."""
    if not holders:
        return None
    names = ", ".join(f"{one.command or '?'} (pid {one.pid})" for one in holders[:3])
    if not request.while_running:
        return SweepServerRunningError(f"{request.path} is open: {names}.")
    if not uses_wal(request.path):
        return SweepServerWouldLoseWritesError(f"{request.path} is in DELETE mode and open: {names}.")
    return None


def _plan(reader: Reader, shape: Shape, scope: Scope, now_ms: int) -> Plan:
    keys = running_keys(reader, shape, scheduled=scope.lost_before_ms is not None)
    return make_plan(read_runs(reader, shape, keys), scope, now_ms)


def _apply(found: Outcome, now_ms: int, tell: Progress) -> Outcome:
    request = found.request
    unlocked = not uses_wal(request.path)  # before this process has the file open: see `uses_wal`
    with open_writer(request.path) as (writer, shape):
        before = _data_version(writer)
        backup = _back_up(request.path, now_ms, unlocked, tell)
        tell("backed_up")
        mark = Mark(request.by, request.reason, now_ms)
        try:
            with writer.transaction():
                tell("transaction_begun")
                _recheck(writer, shape, found, now_ms, before)
                written = _write(writer, shape, found.plan.candidates, mark, tell)
        except ClawbusError as error:  # rolled back; the backup stays, and is named
            return replace(found, backup=backup, error=_of_apply(error, request.path))
    tell("committed")
    return _verified(replace(found, backup=backup, written=written), backup, written, now_ms, tell)


def _verified(done: Outcome, backup: Backup, written: Written, now_ms: int, tell: Progress) -> Outcome:
    """Verify the sweep, which is committed. Report further errors beside its result."""
    request, counted = done.request, backup if not done.holders else None
    try:
        verification = verify(request.path, done.plan, request.scope, now_ms, counted, written)
    except ClawbusError as error:
        return replace(
            done, error=SweepNotVerifiedError(f"it could not be examined: {error} The backup is {backup.path}.")
        )
    tell("verified")
    wrong = "; ".join(verification.wrong[:5])
    error = SweepNotVerifiedError(f"{wrong}. The backup is {backup.path}.") if wrong else None
    return replace(done, verification=verification, error=error)


def _of_apply(error: ClawbusError, path: Path) -> ClawbusError:
    if type(error).__module__.startswith("daemon."):
        return error
    if isinstance(error, FileBusyError):
        return InngestDbLockedError(f"{path}: {error}")
    return SweepApplyFailedError(f"{path}: {error}")


def _back_up(path: Path, now_ms: int, unlocked: bool, tell: Progress) -> Backup:
    def told(step: str, done: int, total: int) -> None:
        if done == total:
            tell(f"backup_{step}")

    try:
        return back_up(path, now_ms, purpose=PURPOSE, progress=told, unlocked=unlocked)
    except BackupNotVerifiedError as error:
        raise SweepBackupNotVerifiedError(str(error)) from error
    except BackupFailedError as error:
        raise SweepBackupFailedError(str(error)) from error


def _recheck(writer: Writer, shape: Shape, found: Outcome, now_ms: int, before: int) -> None:
    """Check every gate again, now that no other process can write. Raise SweepDatabaseChangedError; the transaction then rolls back."""
    if not found.holders and _data_version(writer) != before:
        raise SweepDatabaseChangedError(f"{found.request.path} was written to after its backup.")
    again = _plan(writer, shape, found.request.scope, now_ms)
    error = refusal(again, found.request.scope)
    if error is not None:
        raise error
    if again.candidates != found.plan.candidates:
        changed = sorted(set(again.keys) ^ set(found.plan.keys)) or [
            new.run.key for new, old in zip(again.candidates, found.plan.candidates, strict=True) if new != old
        ]
        raise SweepDatabaseChangedError(f"{len(changed)} runs are not what the preview saw: {', '.join(changed[:5])}.")


def _write(writer: Writer, shape: Shape, candidates: Sequence[Candidate], mark: Mark, tell: Progress) -> Written:
    """Write table by table, the status last."""
    history = sum(write_history(writer, shape, one, mark) for one in candidates)
    tell("history_written")
    finishes = sum(write_finish(writer, shape, one, mark) for one in candidates)
    tell("finishes_written")
    spans = sum(write_spans(writer, shape, one, mark) for one in candidates) if shape.spans else 0
    tell("spans_written")
    statuses = sum(write_status(writer, one, mark) for one in candidates)
    tell("statuses_written")
    return Written(history, finishes, spans, statuses)


def _data_version(writer: Writer) -> int:
    """Return a number that changes when another connection has committed (sqlite.org/pragma.html, data_version)."""
    row = writer.one("PRAGMA data_version")
    return int(row[0]) if row is not None else 0


def _silent(_step: str) -> None:
    return
