"""Opens central.db for a report, or says why there is none, and finds in it the sessions whose files must be read. Read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from daemon.core.errors import DataFolderError, RegistryGoneError, UnknownSessionError
from daemon.inspect.trusted_files import open_current
from daemon.store.rebuild import REBUILD_HINT, found_sessions
from daemon.store.verified_idle import still_idle
from schema.connect import holds_pages
from schema.errors import StorageError
from schema.handles import Reader
from schema.layout import CENTRAL_DB

_KEYS: Final = "SELECT agent, session FROM sessions ORDER BY active DESC, agent, session"
LIVE_INCARNATIONS: Final = "SELECT * FROM incarnations WHERE ended_at IS NULL"


def open_registry(data_dir: Path) -> Reader:
    """Open central.db. Raise RegistryGoneError when only the sessions are there, DataFolderError when nothing is."""
    require_folder(data_dir)
    path = data_dir / CENTRAL_DB
    try:
        present = holds_pages(path)
    except PermissionError as error:
        raise DataFolderError(
            f"the data folder {data_dir} may not be read.", hint="Run this as the daemon's user."
        ) from error
    if not present:
        if _has_sessions(data_dir / "sessions"):
            raise RegistryGoneError(f"{path} is lost; the sessions are there.", hint=REBUILD_HINT)
        raise DataFolderError(f"{data_dir} has no {CENTRAL_DB} yet.", hint="Start the daemon once: `clawbus serve`.")
    return open_current(path)


def require_folder(data_dir: Path) -> None:
    """Raise DataFolderError unless the data folder exists and is a folder."""
    if not data_dir.is_dir():
        if data_dir.exists():
            raise DataFolderError(
                f"{data_dir} is not a folder.", hint="Name the daemon's data folder with --data or data_dir."
            )
        raise DataFolderError(
            f"the data folder {data_dir} does not exist.",
            hint="If it was moved, move it back: a daemon that still runs goes on by itself. For a new one, run `clawbus init`.",
        )


def require_session(central: Reader, agent: str, session: str) -> None:
    """Raise UnknownSessionError unless the session is registered."""
    if central.one("SELECT 1 FROM sessions WHERE agent = ? AND session = ?", (agent, session)) is None:
        raise UnknownSessionError(f"there is no session {agent}/{session}.")


def sessions_to_read(data_dir: Path, central: Reader, only: tuple[str, str] | None, now: int) -> list[tuple[str, str]]:
    """Return the sessions whose files have to be read, those with work first. Raise UnknownSessionError for `only`."""
    if only is not None:
        require_session(central, *only)
        return [only]
    idle = still_idle(central, data_dir / "sessions", now)
    return [key for row in central.all(_KEYS) if (key := (row["agent"], row["session"])) not in idle]


def _has_sessions(sessions_dir: Path) -> bool:
    try:
        return any(True for _ in found_sessions(sessions_dir))
    except StorageError:  # no such folder
        return False
