"""What a repair refuses or fails at. Each class has a code and the operator's next step; each says what was not changed."""

from __future__ import annotations

from schema.errors import ClawbusError


class BackupFailedError(ClawbusError):
    """A backup could not be written: no room, no permission, a locked or unreadable file. Nothing was changed."""

    code = "BACKUP_FAILED"
    default_hint = (
        "Make room beside the file (`df`), check permissions and what holds it open (`fuser FILE`), then repeat."
    )


class BackupNotVerifiedError(ClawbusError):
    """A backup is not a sound copy: its integrity check or its row counts say so. Nothing else was changed."""

    code = "BACKUP_NOT_VERIFIED"
    default_hint = "Check the disk (`dmesg`) and the file itself (`PRAGMA integrity_check`); restore an older backup."


class RestoreRefusedError(ClawbusError):
    """A backup cannot be put back over this file: it is missing, or another database's. Nothing was changed."""

    code = "RESTORE_REFUSED"
    default_hint = "Name a backup that was made of this very file; its name begins with the file's."


class RestoreFailedError(ClawbusError):
    """Putting a backup back failed. It is one transaction: the file is as it was before."""

    code = "RESTORE_FAILED"
    default_hint = "Mend what the message names (room, a lock, permissions), then repeat."


class StaleScopeInvalidError(ClawbusError):
    """The stale sweep was given no scope to apply to, or one that is no agent, session or pattern. Nothing was changed."""

    code = "STALE_SCOPE_INVALID"
    default_hint = (
        "Give --agent NAME, --session AGENT/SESSION or --match 'AGENT/PREFIX*'; preview it without --apply first."
    )


class StaleScopeEmptyError(ClawbusError):
    """The stale sweep's scope matches no session. Nothing was changed."""

    code = "STALE_SCOPE_EMPTY"
    default_hint = "`clawbus session list` lists what there is."


class StaleScopeTooBroadError(ClawbusError):
    """The stale sweep's scope takes in everything, or more stale runs than its cap. Nothing was changed."""

    code = "STALE_SCOPE_TOO_BROAD"
    default_hint = "Look at the preview, narrow the scope, and sweep it piece by piece; --max raises the cap."


class StaleTooYoungError(ClawbusError):
    """The stale sweep's age limit is below its minimum. Nothing was changed."""

    code = "STALE_TOO_YOUNG"
    default_hint = "Give --older-than at least 5m: the daemon may be about to settle younger work."


class StaleAliveError(ClawbusError):
    """A run in scope belongs to a container that lives, or may live because the runtime cannot say. Nothing was changed."""

    code = "STALE_ALIVE"
    default_hint = (
        "Let it finish, or end it (`clawbus session kill A S --reason ...`); start the runtime if it is away."
    )


class StaleInconsistentError(ClawbusError):
    """A run in scope has sources that contradict each other or cannot be read; none may be chosen. Nothing was changed."""

    code = "STALE_INCONSISTENT"
    default_hint = (
        "Look at it (`clawbus run show ID`), and leave its session out of the scope; the others can be swept."
    )


class StaleChangedError(ClawbusError):
    """What the preview showed changed before the sweep's transaction. That session is unchanged; its backup was kept."""

    code = "STALE_CHANGED"
    default_hint = "Somebody works there. Preview again, and repeat."


class StaleNotVerifiedError(ClawbusError):
    """The sweep was applied, and what was looked at afterwards is not as it should be."""

    code = "STALE_NOT_VERIFIED"
    default_hint = "Look at the named runs (`clawbus run show ID`); `clawbus sweep stale --restore BACKUP` undoes a session's sweep."


class CanaryFailedError(ClawbusError):
    """The sweep was applied and verified, and a fresh message did not come through end to end."""

    code = "CANARY_FAILED"
    default_hint = "`clawbus doctor` names the obstacle; do not repeat the sweep."


class AnswerNotOpenError(ClawbusError):
    """The answer is not one that keeps failing: delivered, a dead letter, or only waiting. Nothing was changed."""

    code = "ANSWER_NOT_OPEN"
    default_hint = "`clawbus delivery list` lists the answers on their way and what each waits for."


class AnswerUnderWayError(ClawbusError):
    """The answer is being sent at this moment, so whether it arrives is not known yet. Nothing was changed."""

    code = "ANSWER_UNDER_WAY"
    default_hint = "Repeat in a moment; a send takes at most delivery.send_timeout_s."


class MessageFinishedError(ClawbusError):
    """The message is finished already, so there is nothing to cancel or to try again. Nothing was changed."""

    code = "MESSAGE_FINISHED"
    default_hint = "`clawbus session show AGENT SESSION --message ID` shows its history; to have it worked on again, send a new message."


class MessageRunningError(ClawbusError):
    """A container works on the message now. Nothing was changed."""

    code = "MESSAGE_RUNNING"
    default_hint = "Repeat with --kill to end the container too, or let it finish."


class ResetWouldLoseError(ClawbusError):
    """A reset would set aside answers that the host has not recorded yet. Nothing was changed."""

    code = "RESET_WOULD_LOSE"
    default_hint = (
        "Release the session, so that it is delivered first; with --discard it stays in the folder that is set aside."
    )


class SessionUnfinishedError(ClawbusError):
    """A session that still has work is not deleted: its messages or answers would be lost. Nothing was changed."""

    code = "SESSION_UNFINISHED"
    default_hint = "Wait until `clawbus session show` names no work, or lose it: repeat with --force --reason WHY."
