"""Rebuilds the registry from the session folders and from the small file with the install's id.

Synchronous. Reads names and sizes only; never opens a session's files, and never removes anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from daemon.core.session_key import SessionKey
from daemon.store.registry import Memory, Registry
from schema.errors import InvalidNameError, StorageError
from schema.ids import check_name, session_of_folder
from schema.layout import SessionFolder
from schema.os_faults import host_error, read_own_file

REBUILD_HINT: Final = "Start the daemon once (`clawbus serve`): it rebuilds central.db from the session folders."
_INSTALL_ID: Final = re.compile(r"[0-9a-z]{1,64}\Z")


def agree_on_install_id(registry: Registry, file: Path, now_ms: int) -> str:
    """Return the install's id. It is kept in central.db and in `file`; either restores the other, central.db first.

    Without it, the containers of a registry that was lost would belong to no installation. Raise StorageError.
    """
    kept = _read(file)
    install_id = registry.install_id(now_ms, kept)
    if kept != install_id:
        write_install_id(file, install_id)
    return install_id


def rebuild(registry: Registry, sessions_dir: Path, memory: Memory, now_ms: int) -> int:
    """Rebuild a registry that vanished while the daemon runs. Return the number of session folders. Raise StorageError."""
    if not sessions_dir.is_dir():
        # An unmounted disk has lost nothing, so do not create a new registry in its place.
        raise StorageError(
            f"{sessions_dir} is gone.", hint="Mount the data folder's disk again, then restart the daemon."
        )
    found = list(found_sessions(sessions_dir))
    registry.rebuild(found, memory, now_ms)
    return len(found)


def found_sessions(sessions_dir: Path) -> Iterator[SessionKey]:
    """Yield the session of every `<agent>/<session>/in/inbound.db` whose names are valid. Raise StorageError."""
    try:
        for agent in _folders(sessions_dir, _is_agent):
            for folder in _folders(agent, lambda name: session_of_folder(name) is not None):
                session = session_of_folder(folder.name)
                if session is not None and is_session(SessionFolder(folder)):
                    yield SessionKey(agent.name, session)
    except OSError as error:
        raise host_error(error, str(sessions_dir)) from error


def _folders(folder: Path, is_named: Callable[[str], bool]) -> list[Path]:
    # Read the whole listing first: otherwise it would stay open for as long as the caller takes.
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if is_named(entry.name) and entry.is_dir(follow_symlinks=False)]


def _is_agent(name: str) -> bool:
    try:
        check_name("agent", name)
    except InvalidNameError:
        return False
    return True


def is_session(folder: SessionFolder) -> bool:
    """Return whether there is anything here that a registry should know. Raise OSError."""
    try:
        size = folder.inbound_db.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    # An empty one, or none, is what a crash leaves in the middle of making a session, before anything was accepted:
    # unless a container has been there.
    return size > 0 or os.path.lexists(folder.outbound_db)


def _read(file: Path) -> str | None:
    try:
        text = read_own_file(file).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise host_error(error, f"{file} cannot be read") from error
    except ValueError as error:
        raise StorageError(f"{file} cannot be read: {error}.") from error
    return text if _INSTALL_ID.match(text) else None


def write_install_id(file: Path, install_id: str) -> None:
    """Replace the file. Raise StorageError."""
    fresh = file.with_name(f"{file.name}.new")
    try:
        fresh.unlink(missing_ok=True)  # a crash may have left it, with any permissions
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as out:
            out.write(f"{install_id}\n")
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except OSError as error:
        raise host_error(error, f"{file} cannot be written") from error
