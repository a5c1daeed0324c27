"""The /workspace of a container whose runner is not clawbus's: links under the names that NanoClaw's runner uses.

That runner opens /workspace/inbound.db and /workspace/outbound.db. SQLite follows a link before it names a journal, so
the journals stay in in/ and out/, where both sides look for them; a bind mount of the file alone would hide them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from daemon.core.errors import DataFolderError
from schema.errors import ClawbusError
from schema.layout import HEARTBEAT, INBOUND_DB, INBOX_FILES, OUTBOUND_DB, OUTBOX_FILES
from schema.os_faults import host_error, passes

_MOUNT_POINTS: Final = ("in", "out", "agent", "home")
_LINKS: Final = (  # (name, target)
    (INBOUND_DB, f"in/{INBOUND_DB}"),
    (INBOX_FILES, f"in/{INBOX_FILES}"),
    (OUTBOUND_DB, f"out/{OUTBOUND_DB}"),
    (OUTBOX_FILES, f"out/{OUTBOX_FILES}"),
    (HEARTBEAT, f"out/{HEARTBEAT}"),
)


def ensure_workspace(folder: Path) -> Path:
    """Make the folder with its links and mount points, and return it. Repeating it changes nothing.

    One folder serves every container: it is mounted read-only and holds nothing of a session. Raise DataFolderError or StorageError.
    """
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
        for name in _MOUNT_POINTS:
            (folder / name).mkdir(mode=0o755, exist_ok=True)
        for name, target in _LINKS:
            with contextlib.suppress(FileExistsError):
                (folder / name).symlink_to(target)
    except OSError as error:
        raise folder_error(folder, error) from error
    return folder


def folder_error(folder: Path, error: OSError) -> ClawbusError:
    """Return the error for a folder of ours that cannot be made: what the host cannot do now, or what an operator repairs."""
    return host_error(error, str(folder)) if passes(error) else DataFolderError(f"{folder}: {error.strerror}.")
