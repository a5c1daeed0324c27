"""Restores a sweep's backup into an Inngest database: its whole content, in one transaction.

This loses all rows that the server has written since the backup, so it is refused while a process has the file open. It
first backs up the present content; restoring that backup undoes it. The file itself stays, with its owner and mode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.core.repair_errors import RestoreRefusedError
from daemon.inngest.database import read_database, read_shape, translated
from daemon.inngest.errors import SweepServerRunningError
from daemon.inngest.holders import find_holders
from daemon.maintenance.backup import restore
from schema.connect import open_still_reader


def put_back(path: Path, backup: Path, now_ms: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Restore, and report what was done.

    Raises the errors of opening, SweepServerRunningError, RestoreRefusedError, RestoreFailedError, BackupFailedError or
    BackupNotVerifiedError; then the database is as it was.
    """
    holders = find_holders(path)  # before the first connection: see holders.py
    read_database(path, lambda _reader, _shape: None)  # Inngest's, and readable
    if holders:
        raise SweepServerRunningError(
            f"{path} is open: {holders[0].command or '?'} (pid {holders[0].pid}).",
            hint="Stop the Inngest server and repeat: what it writes meanwhile would be lost.",
        )
    if not backup.is_file():
        raise RestoreRefusedError(f"there is no backup {backup}.")
    with translated(backup), open_still_reader(backup) as copy:
        read_shape(copy, backup)

    def told(step: str, done: int, total: int) -> None:
        if done == total:
            tell(f"restore_{step}" if step != "restore" else "restored")

    done = restore(backup, path, now_ms, progress=told)
    return {
        "path": str(path),
        "backup": str(backup),
        "rows": done.contents.rows,
        "before": done.before.report(),
    }
