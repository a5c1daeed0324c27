"""The errors of repairs. Each class has a code and the operator's next step, and states what was not changed."""

from __future__ import annotations

from schema.errors import ClawbusError


class BackupFailedError(ClawbusError):
    """A backup could not be written. Nothing was changed."""

    code = "BACKUP_FAILED"
    default_hint = "Check the room (`df`), permissions and what holds the file (`fuser FILE`), then repeat."


class BackupNotVerifiedError(ClawbusError):
    """A backup fails its integrity check or its row counts. Nothing else was changed."""

    code = "BACKUP_NOT_VERIFIED"
    default_hint = "Check the disk (`dmesg`) and the file itself (`PRAGMA integrity_check`); restore an older backup."


class RestoreRefusedError(ClawbusError):
    """The backup is missing or another database's. Nothing was changed."""

    code = "RESTORE_REFUSED"
    default_hint = "Name a backup that was made of this very file; its name begins with the file's."


class RestoreFailedError(ClawbusError):
    """Restoring failed. The file is as it was before."""

    code = "RESTORE_FAILED"
    default_hint = "Repair what the message names (room, a lock, permissions), then repeat."


class StaleScopeInvalidError(ClawbusError):
    """The stale sweep's scope is missing, or not an agent, session or pattern. Nothing was changed."""

    code = "STALE_SCOPE_INVALID"
    default_hint = "Give --agent NAME, --session AGENT/SESSION or --match 'AGENT/PREFIX*'."


class StaleScopeEmptyError(ClawbusError):
    """The stale sweep's scope matches no session. Nothing was changed."""

    code = "STALE_SCOPE_EMPTY"
    default_hint = "`clawbus session list` lists the sessions."


class StaleScopeTooBroadError(ClawbusError):
    """The scope takes in everything, or more stale runs than --max. Nothing was changed."""

    code = "STALE_SCOPE_TOO_BROAD"
    default_hint = "Read the preview and narrow the scope; --max raises the cap."


class StaleTooYoungError(ClawbusError):
    """The stale sweep's age limit is below its minimum. Nothing was changed."""

    code = "STALE_TOO_YOUNG"
    default_hint = "Give --older-than at least 5m: the daemon may be about to settle younger work."


class StaleAliveError(ClawbusError):
    """A run in scope has a container that lives, or may live. Nothing was changed."""

    code = "STALE_ALIVE"
    default_hint = "Let it finish or kill it (`clawbus session kill`); start the runtime if it is away."


class StaleInconsistentError(ClawbusError):
    """A run in scope has sources that contradict each other or cannot be read. Nothing was changed."""

    code = "STALE_INCONSISTENT"
    default_hint = "Read `clawbus run show ID`, and leave its session out of the scope."


class StaleChangedError(ClawbusError):
    """The session changed between preview and sweep. It is as before; its backup was kept."""

    code = "STALE_CHANGED"
    default_hint = "Preview again, and repeat."


class StaleNotVerifiedError(ClawbusError):
    """The sweep was applied, but its verification found something wrong."""

    code = "STALE_NOT_VERIFIED"
    default_hint = (
        "Check the named runs (`clawbus run show ID`); `clawbus sweep stale --restore BACKUP` undoes a session's sweep."
    )


class CanaryFailedError(ClawbusError):
    """The sweep was applied and verified, but a test message did not come through."""

    code = "CANARY_FAILED"
    default_hint = "`clawbus doctor` names the obstacle; do not repeat the sweep."


class AnswerNotOpenError(ClawbusError):
    """The answer is not a failing one: it is delivered, a dead letter, or only waiting. Nothing was changed."""

    code = "ANSWER_NOT_OPEN"
    default_hint = "`clawbus delivery list` shows what each answer waits for."


class AnswerUnderWayError(ClawbusError):
    """The answer is being sent; its outcome is not known yet. Nothing was changed."""

    code = "ANSWER_UNDER_WAY"
    default_hint = "Repeat in a moment; a send takes at most delivery.send_timeout_s."


class MessageFinishedError(ClawbusError):
    """The message is already finished. Nothing was changed."""

    code = "MESSAGE_FINISHED"
    default_hint = "`clawbus message show ID` has its history; to repeat the work, send a new message."


class ResetWouldLoseError(ClawbusError):
    """A reset would set unrecorded answers aside. Nothing was changed."""

    code = "RESET_WOULD_LOSE"
    default_hint = (
        "Release the session, so that it is delivered first; with --discard it stays in the folder that is set aside."
    )


class SessionUnfinishedError(ClawbusError):
    """The session still has work, which deleting would lose. Nothing was changed."""

    code = "SESSION_UNFINISHED"
    default_hint = "Wait until `clawbus session show` names no work, or lose it: repeat with --force --reason WHY."
