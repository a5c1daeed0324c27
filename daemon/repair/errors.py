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
