"""The root of the one error tree, and the errors of opening a session's files.

Every error carries a stable `code` and a `hint`: the operator's next step. `daemon.core.errors` grows the rest of the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final

from schema.layout import CENTRAL_DB, MAILBOX_DB

_REGISTRY_HINT: Final = (
    "In the data folder: `mv central.db central.db.broken`, and `clawbus serve` if no daemon runs. It is rebuilt from the"
    " session folders, which stay where they are."
)
_MAILBOX_HINT: Final = (
    "In the data folder: `mv mailbox.db mailbox.db.broken`, and `clawbus serve` if no daemon runs. A new one is made; the old"
    " one keeps the answers that no client has fetched."
)
_HINTS: Final[Mapping[str, str]] = MappingProxyType({CENTRAL_DB: _REGISTRY_HINT, MAILBOX_DB: _MAILBOX_HINT})


class ClawbusError(Exception):
    """Anything clawbus refuses or fails at. `str(error)` says what happened, `hint` what to do next."""

    code: ClassVar[str] = "INTERNAL"
    default_hint: ClassVar[str] = "Run `clawbus logs` around this time and report what it says."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint: str = hint if hint is not None else self.default_hint


class SchemaTooNewError(ClawbusError):
    """A newer clawbus wrote the file. Nothing was changed."""

    code = "SCHEMA_TOO_NEW"
    default_hint = "Upgrade clawbus to the version that wrote this data folder, or restore a backup made before it."


class InvalidNameError(ClawbusError):
    """A name cannot be used as a path or an id."""

    code = "INVALID_NAME"
    default_hint = "Use letters, digits, '.', '_' and '-', starting with a letter or digit, at most 64 characters."


class ReadRaceError(ClawbusError):
    """A read met a commit (SQLITE_READONLY_*). The next tick reads the rows."""

    code = "READ_RACE"
    default_hint = "Nothing to do while the container lives; after its exit the daemon recovers the journal."


class FileBusyError(ClawbusError):
    """The file stayed locked for the whole busy time-out."""

    code = "FILE_BUSY"
    default_hint = "Find what holds the file open (`fuser FILE`); the daemon keeps retrying."

    def __init__(self, message: str, *, hint: str | None = None, path: Path | None = None) -> None:
        if hint is None and path is not None:
            hint = f"Find what holds the file open (`fuser {path}`); the daemon keeps retrying."
        super().__init__(message, hint=hint)
        self.path = path  # where SQLite's error named it


class HostileFileError(ClawbusError):
    """A file under `out/` is not what a runner writes: a link, a fifo, random bytes, over a limit."""

    code = "HOSTILE_FILE"
    doubtful = False  # SQLite reports this for a read error too: read again before treating it as damage
    default_hint = "Inspect the session's out/ folder, repair or move the file, then `clawbus session release`."


class StorageError(ClawbusError):
    """Another SQLite or operating-system failure on one of our files (disk full, permission, I/O)."""

    code = "STORAGE"
    default_hint = "Check free space and permissions of the data folder; the daemon keeps retrying."


class HostTroubleError(StorageError):
    """The host is out of open files, memory or processes. No session is to blame; nothing is lost."""

    code = "HOST_TROUBLE"
    default_hint = "Free what has run out, or raise its limit; the daemon keeps retrying."

    def __init__(self, message: str, *, hint: str | None = None, resource: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.resource = resource  # one of schema.os_faults.RESOURCES, or None if unknown


class UnusableFileError(StorageError):
    """One of the host's own files is gone or corrupt. Its session is held until an operator decides."""

    code = "FILE_UNUSABLE"
    doubtful = False  # as in HostileFileError
    default_hint = (
        "Restore the session's folder from a backup and `clawbus session release` it, or end it with"
        " `clawbus session delete --force`: its next message then makes a new one."
    )

    @classmethod
    def of(cls, name: str, message: str) -> UnusableFileError:
        """Return the error for this file name: a session's file is told apart from the data folder's, which are made anew."""
        return cls(message, hint=_HINTS.get(name))


class ReadDeadlineError(ClawbusError):
    """Reading a container's file took too long: a slow disk, or a file made to be slow."""

    code = "READ_DEADLINE"
    default_hint = "Once under load is harmless; a session that repeats it is quarantined."
