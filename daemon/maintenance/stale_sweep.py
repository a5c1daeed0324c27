"""The stale sweep over one session's files: check, back up, end the stale runs in one transaction, check again.

It blocks; the caller holds the session's lock, or the data folder's if no daemon runs. `stale_plan.py` decides. It never
writes before the backup is verified, never ends a run that it did not check again inside the transaction, and writes the
history before the status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from daemon.core.repair_errors import RestoreRefusedError, StaleChangedError, StaleNotVerifiedError
from daemon.core.run_evidence import RunRead, RuntimeContext
from daemon.core.run_state import FINISHED, RunStatus
from daemon.core.session_key import SessionKey
from daemon.core.stale_plan import SAMPLE, Ending, Plan, Scope, Seen, check_plan, plan
from daemon.inspect.reading import runs_over, suspects
from daemon.maintenance.backup import Backup, Progress, back_up, restore, verify
from daemon.store import host_messages, messages, outbound
from daemon.store.dead_letters import Operator
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import record, repair_status
from schema.connect import open_still_reader
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.rows import MessageStatus

PURPOSE: Final = "pre-sweep"
_MESSAGES: Final = 10_000  # the most rows read of each kind
_REASONS: Final[Mapping[MessageStatus, tuple[str, str]]] = MappingProxyType(
    {
        MessageStatus.FAILED: ("AGENT_FAILED", "the agent answered with an error"),
        MessageStatus.CANCELLED: ("SWEPT", "its container was gone, and an operator cancelled it"),
    }
)
# What a session's file may have gained since a backup, and a restore would lose.
_GAINS: Final = (
    ("messages_in", "id", "messages"),
    ("delivered", "message_out_id", "receipts"),
    ("host_messages", "id", "notices"),
    ("attempts", "message_id || '@' || incarnation", "attempts"),
    ("delivery_attempts", "message_out_id || char(31) || state", "deliveries"),
    ("dead_letters_closed", "id", "closed dead letters"),
)


@frozen
class Swept:
    """What a sweep did to one session. `backup` None: there was nothing to do."""

    key: SessionKey
    plan: Plan
    backup: Backup | None
    sampled: int = 0

    def report(self) -> dict[str, Any]:
        """Return the values that the command line shows."""
        return {
            "agent": self.key.agent,
            "session": self.key.session,
            "swept": [one.report() for one in self.plan.endings],
            "left": [one.report() for one in self.plan.left],
            "backup": self.backup.report() if self.backup is not None else None,
            "sampled": self.sampled,
        }


def read_runs(files: SessionFiles, key: SessionKey, context: RuntimeContext) -> list[Seen]:
    """Return every suspect run of one session, judged. Raise the errors of opening inbound.db."""
    with files.inbound() as db:
        return _runs_in(db, files, key, context)


def _runs_in(db: Reader, files: SessionFiles, key: SessionKey, context: RuntimeContext) -> list[Seen]:
    """Return the runs over an open inbound.db: inside its transaction nothing changes until what follows.

    For each suspect message: its latest run, and every earlier one whose attempt is open.
    """
    rows = suspects(db, _MESSAGES, newest=-1)
    found = runs_over(db, rows, files.folder, context, files.limits).runs
    return [
        Seen(*key, run.evidence, run.verdict, context.occupied, run.message.status) for run in found if _is_open(run)
    ]


def _is_open(run: RunRead) -> bool:
    return run.evidence.latest or (run.evidence.attempted and run.evidence.outcome is None)


def preview(files: SessionFiles, key: SessionKey, context: RuntimeContext, scope: Scope) -> Plan:
    """Return what a sweep would do to one session. Raise the errors of opening inbound.db."""
    return plan(read_runs(files, key, context), scope)


def apply(
    files: SessionFiles,
    key: SessionKey,
    context: RuntimeContext,
    scope: Scope,
    operator: Operator,
    *,
    expected: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Sweep one session. `expected`: the runs of the preview that the operator agreed to; None for whatever is there.

    Raises the typed refusals of the gates, of the backup, and of opening the files: then inbound.db is unchanged.
    StaleNotVerifiedError alone comes after the change.
    """
    wanted = preview(files, key, context, scope)
    check_plan(wanted, scope)
    _check_expected(wanted, expected)
    if not wanted.endings:
        return Swept(key, wanted, None)
    backup = back_up(files.folder.inbound_db, context.now, purpose=PURPOSE, progress=progress)
    with files.inbound() as db, db.transaction():
        again = plan(_runs_in(db, files, key, context), scope)
        if again != wanted:
            raise StaleChangedError(f"{key} changed between the preview and the sweep; nothing was written.")
        for ending in wanted.endings:
            _end(db, ending, operator, backup, context.now)
    sampled = _verify(files, key, context, wanted.endings)
    return Swept(key, wanted, backup, sampled)


def undo(
    files: SessionFiles, key: SessionKey, backup: Backup, operator: Operator, now: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Put the backup of a sweep back.

    Refuse it when the file has gained anything since but the sweep itself, and when the container would work again on what it
    has finished. Raise RestoreRefusedError, RestoreFailedError, BackupFailedError, BackupNotVerifiedError or, if the acks
    cannot be read, HostileFileError; the file is unchanged then.
    """
    with files.inbound() as db:
        changed = _refuse_losses(db, backup)
        _refuse_second_turns(db, files, changed)
    done = restore(backup.path, files.folder.inbound_db, now, progress=progress)
    with files.inbound() as db, db.transaction():
        for message_id in changed:
            record(db, message_id, "sweep_undone", now, detail=operator.detail(backup=backup.path.name))
    return {"agent": key.agent, "session": key.session, "restored": len(changed), "before": str(done.before.path)}


def found_backup(files: SessionFiles, name: str) -> Backup:
    """Find a verified backup of this inbound.db by file name. Raise RestoreRefusedError, BackupNotVerifiedError."""
    folder = files.folder.inbox
    path = folder / name
    if (
        path.parent != folder
        or not name.startswith(f"{files.folder.inbound_db.name}.")
        or not path.is_file()
        or path.is_symlink()
    ):
        raise RestoreRefusedError(f"{name!r} is not a backup beside this session's inbound.db.")
    return Backup(path, files.folder.inbound_db, 0, path.stat().st_size, verify(path))


def preview_report(files: SessionFiles, key: SessionKey, context: RuntimeContext, scope: Scope) -> dict[str, Any]:
    """Return {runs, left, running: [{run, alive}]}: the plan, and what a list shows as running and whether it is."""
    seen = read_runs(files, key, context)
    found = plan(seen, scope)
    running = [one for one in seen if one.verdict.listed is RunStatus.RUNNING]
    return {
        "runs": [one.report() for one in found.endings],
        "left": [one.report() for one in found.left],
        "running": [{"run": one.run_id, "life": one.evidence.life.value} for one in running],
    }


def _check_expected(wanted: Plan, expected: Sequence[str] | None) -> None:
    if expected is not None and sorted(expected) != sorted(one.run_id for one in wanted.endings):
        raise StaleChangedError("the stale runs are not those of the preview any more; nothing was written.")


def _end(db: Writer, ending: Ending, operator: Operator, backup: Backup, now: int) -> None:
    """Write history, finish and status, in that order."""
    by = operator.detail(truth=ending.truth.value, backup=backup.path.name, evidence=list(ending.reasons))

    def finish() -> None:
        if ending.outcome is not None and ending.incarnation is not None:
            messages.end_attempt(db, ending.message_id, ending.incarnation, now, ending.outcome)

    if ending.status is None:
        record(db, ending.message_id, "swept", now, incarnation=ending.incarnation, detail=by)
        if ending.truth in FINISHED and not ending.in_history:
            detail = _why(MessageStatus(ending.truth.value), operator)
            record(db, ending.message_id, ending.truth.value, now, incarnation=ending.incarnation, detail=detail)
        finish()
        return
    repair_status(
        db, ending.message_id, ending.status, now,
        detail=_why(ending.status, operator), by=by, in_history=ending.in_history, incarnation=ending.incarnation, finish=finish,
    )  # fmt: skip
    if ending.status is MessageStatus.CANCELLED and ending.truth is not RunStatus.CANCELLED:
        tell_cancelled(db, ending.message_id, now)


def tell_cancelled(db: Writer, message_id: str, now: int, reason: str | None = None) -> None:
    """Notify the sender of a message that is ended without an answer, once.

    `reason` is what the operator says to the sender; a sweep's reason is about the host and is not for strangers.
    """
    message = messages.find(db, message_id)
    address = messages.address_of(message) if message is not None else None
    if message is not None and address is not None and message.trigger:
        why = f": {reason.rstrip('.')}" if reason else ""
        host_messages.notify_sender(db, message, address, "CANCELLED", f"This message was cancelled{why}.", now)


def _why(status: MessageStatus, operator: Operator) -> dict[str, object]:
    code, reason = _REASONS.get(status, ("", ""))
    return operator.detail() | ({"code": code, "reason": reason} if code else {})


def _verify(files: SessionFiles, key: SessionKey, context: RuntimeContext, endings: Sequence[Ending]) -> int:
    """Check that sampled runs read as ended and no swept one is running or stale. Return the sample's size."""
    sample = endings[:SAMPLE]
    with files.inbound() as db:
        for ending in sample:
            _check_terminal(db, ending)
        swept = {ending.run_id for ending in endings}
        left = [one.run_id for one in _runs_in(db, files, key, context) if one.run_id in swept and one.verdict.stale]
    if left:
        raise StaleNotVerifiedError(f"{', '.join(left[:3])} of {key} still read as stale.")
    return len(sample)


def _check_terminal(db: Reader, ending: Ending) -> None:
    row = db.one("SELECT status FROM messages_in WHERE id = ?", (ending.message_id,))
    status = row["status"] if row is not None else None
    if ending.status is not None and status != ending.status:
        raise StaleNotVerifiedError(f"{ending.run_id} reads {status} instead of {ending.status.value}.")
    sql = "SELECT 1 FROM attempts WHERE message_id = ? AND incarnation IS ? AND outcome IS NULL"
    if db.one(sql, (ending.message_id, ending.incarnation)) is not None:
        raise StaleNotVerifiedError(f"{ending.run_id} still has an open attempt.")


def _notice_names(identity: str) -> set[str]:
    """Return the names of the row, if it is a notice: its id with and without the part that makes a repetition unique."""
    name = identity.partition("\x1f")[0]
    return {name, name.rpartition(":")[0]}


def _refuse_losses(db: Reader, backup: Backup) -> list[str]:
    """Return the messages whose status a restore changes. Raise RestoreRefusedError if it would lose anything else."""
    swept = {str(row["message_id"]) for row in db.all("SELECT message_id FROM message_history WHERE event = 'swept'")}
    notices = {f"failed:{message_id}" for message_id in swept}
    with open_still_reader(backup.path) as old:
        losses: list[str] = []
        for table, key, what in _GAINS:
            if not old.columns(table):
                raise RestoreRefusedError(f"{backup.path.name} lacks the table {table}.")
            kept, current = _ids(old, table, key), _ids(db, table, key)
            if table == "messages_in" and not kept <= current:
                raise RestoreRefusedError(f"{backup.path.name} is another session's: it holds messages unknown here.")
            gained = {one for one in current - kept if notices.isdisjoint(_notice_names(one))}
            if gained:
                losses.append(f"{len(gained)} {what}")
        before, now = _statuses(old), _statuses(db)
    changed = sorted(message_id for message_id, status in before.items() if now.get(message_id) != status)
    others = [message_id for message_id in changed if message_id not in swept]
    if others:
        losses.append(f"{len(others)} messages that were finished otherwise")
    if losses:
        raise RestoreRefusedError(
            f"{backup.source.name} has gained {', '.join(losses)} since {backup.path.name}, which would be lost.",
            hint="Repair the swept messages one by one instead: `clawbus message retry ID` sends one on its way again.",
        )
    return changed


def _refuse_second_turns(db: Reader, files: SessionFiles, changed: Sequence[str]) -> None:
    """Raise RestoreRefusedError for a message that its container has finished, once the container has dropped that ack.

    A runner prunes the acks of messages that are over. A message that is pending again without its ack is claimed again.
    """
    swept = db.all("SELECT message_id, detail FROM message_history WHERE event = 'swept'")
    by_agent = {
        str(row["message_id"])
        for row in swept
        if json.loads(row["detail"] or "{}").get("truth") in {RunStatus.COMPLETED, RunStatus.FAILED}
    }
    finished = sorted(by_agent.intersection(changed))
    if not finished:  # then the container's file does not matter, which may be unreadable
        return
    with files.outbound() as out:
        acks = outbound.acks_for(out, finished) if out is not None else {}
    gone = [message_id for message_id in finished if message_id not in acks]
    if gone:
        raise RestoreRefusedError(
            f"the container has finished {len(gone)} of these messages ({', '.join(gone[:3])}) and dropped its acks since:"
            " restored, they would be worked on again.",
            hint="What the sweep recorded of them is right. `clawbus message retry ID` sends one on its way again.",
        )


def _statuses(db: Reader) -> dict[str, str]:
    return {str(row["id"]): row["status"] for row in db.all("SELECT id, status FROM messages_in")}


def _ids(db: Reader, table: str, key: str) -> set[str]:
    return {str(row["id"]) for row in db.all(f"SELECT {key} AS id FROM {table}")}
