"""Reads central.db for forensics: sessions and incarnations, and what to make of it when it is missing or broken.

Read-only. Without central.db the session folders are the list of sessions, as they are for the daemon that rebuilds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from daemon.core.errors import DataFolderError
from daemon.inspect.bounds import MAX_SESSIONS
from daemon.inspect.open_registry import require_folder
from daemon.inspect.trusted_files import open_current
from daemon.store.data_folder import check_ours
from daemon.store.data_layout import Layout
from daemon.store.rebuild import is_session
from daemon.store.verified_idle import still_idle
from schema.connect import holds_pages
from schema.errors import ClawbusError, SchemaTooNewError
from schema.handles import Reader
from schema.ids import check_name, check_session, session_of_folder, session_path
from schema.layout import SessionFolder

_INCARNATIONS: Final = 500

Key = tuple[str, str]
_T = TypeVar("_T")


@dataclass(slots=True)
class CentralSeen:
    """What central.db says.

    `sessions` are its rows, those with trouble and work first; `folders` are sessions that have a folder and no row.
    `live` holds each session's incarnation without a confirmed exit.
    """

    missing: bool = False
    error: str | None = None
    install_id: str | None = None
    sessions: dict[Key, Mapping[str, Any]] = field(default_factory=dict[Key, Mapping[str, Any]])
    folders: list[Key] = field(default_factory=list[Key])
    live: dict[Key, Mapping[str, Any]] = field(default_factory=dict[Key, Mapping[str, Any]])
    newest_at: int | None = None

    def known(self) -> list[Key]:
        """Return every session that has a row or a folder."""
        return [*self.sessions, *self.folders]

    def knows_nothing_of(self, key: Key) -> bool:
        """Return whether the session is registered, and central.db records no work, schedule, trouble or container of it."""
        row = self.sessions.get(key)
        asks = ("active", "next_due_at", "quarantined_at", "spawn_failures", "dead_letters")
        return row is not None and key not in self.live and not any(row.get(name) for name in asks)


def read_central(data_dir: Path) -> CentralSeen:
    """Read what forensics needs from central.db. Raise DataFolderError when there is no data folder, or SchemaTooNewError."""
    check_data_folder(data_dir)
    seen = CentralSeen()
    path = Layout(data_dir).central_db
    if not holds_pages(path):
        seen.missing = True
    else:
        try:
            with open_current(path) as reader:
                _read(reader, seen)
        except SchemaTooNewError:
            raise
        except ClawbusError as error:
            seen.error = f"{error.code}: {error}"
    seen.folders = _folders(data_dir, seen.sessions)
    return seen


def without_registry(data_dir: Path, error: ClawbusError) -> CentralSeen:
    """Return what is known without a usable central.db: the session folders, and why."""
    return CentralSeen(error=f"{error.code}: {error}", folders=_folders(data_dir))


def incarnations_of(data_dir: Path, key: Key) -> dict[str, Mapping[str, Any]]:
    """Return a session's newest incarnations by id; empty when central.db cannot be read."""
    sql = "SELECT * FROM incarnations WHERE agent = ? AND session = ? ORDER BY created_at DESC LIMIT ?"
    rows = ask(data_dir, lambda reader: reader.all(sql, (*key, _INCARNATIONS)), [])
    return {row["id"]: dict(row) for row in rows}


def read_install_id(data_dir: Path) -> str | None:
    """Return the install's id in central.db, or None when it has none or cannot be read."""
    row = ask(data_dir, lambda reader: reader.one("SELECT install_id FROM install WHERE id = 1"), None)
    return row["install_id"] if row is not None else None


def idle_sessions(data_dir: Path, now: int) -> frozenset[Key]:
    """Return the sessions whose files were found idle and have not changed since; empty when central.db cannot be read.

    `now` is epoch ms.
    """
    sessions_dir = Layout(data_dir).sessions_dir
    return ask(data_dir, lambda reader: still_idle(reader, sessions_dir, now), frozenset[Key]())


def live_runtimes(data_dir: Path) -> frozenset[str]:
    """Return the kinds of runtime of unconfirmed incarnations; empty when central.db cannot be read."""
    sql = "SELECT DISTINCT runtime FROM incarnations WHERE ended_at IS NULL"
    return frozenset(row["runtime"] for row in ask(data_dir, lambda reader: reader.all(sql), []))


def live_containers(data_dir: Path, runtime: str) -> frozenset[str | None]:
    """Return the container ids of unconfirmed incarnations under this runtime; empty when central.db cannot be read.

    None means a container that was just requested.
    """
    sql = "SELECT container_id FROM incarnations WHERE ended_at IS NULL AND runtime = ?"
    return frozenset(row["container_id"] for row in ask(data_dir, lambda reader: reader.all(sql, (runtime,)), []))


def ask(data_dir: Path, read: Callable[[Reader], _T], otherwise: _T) -> _T:
    """Return what `read` finds in central.db, or `otherwise` when that is missing or cannot be read."""
    path = Layout(data_dir).central_db
    if not path.is_file():
        return otherwise
    try:
        with open_current(path) as reader:
            return read(reader)
    except ClawbusError:
        return otherwise


def check_data_folder(data_dir: Path) -> None:
    """Raise DataFolderError unless the folder exists, can be read, and is a data folder or may become one."""
    try:
        require_folder(data_dir)
        check_ours(data_dir, "Name the daemon's data folder with --data or data_dir.")
    except PermissionError as error:
        raise DataFolderError(
            f"the data folder {data_dir} may not be read.", hint="Run this as the daemon's user."
        ) from error


def folder_of(data_dir: Path, key: Key) -> SessionFolder:
    """Return a session's folder. Raise InvalidNameError."""
    return SessionFolder(
        session_path(Layout(data_dir).sessions_dir, check_name("agent", key[0]), check_session(key[1]))
    )


def _read(reader: Reader, seen: CentralSeen) -> None:
    install = reader.one("SELECT install_id FROM install WHERE id = 1")
    seen.install_id = install["install_id"] if install is not None else None
    order = "ORDER BY quarantined_at IS NULL, active DESC, agent, session LIMIT ?"
    for row in reader.all(f"SELECT * FROM sessions {order}", (MAX_SESSIONS,)):
        seen.sessions[row["agent"], row["session"]] = dict(row)
    for row in reader.all("SELECT * FROM incarnations WHERE ended_at IS NULL"):
        seen.live[row["agent"], row["session"]] = dict(row)
    newest = reader.one("SELECT max(created_at) AS at FROM incarnations")
    seen.newest_at = newest["at"] if newest is not None else None


def _folders(data_dir: Path, known: Container[Key] = ()) -> list[Key]:
    """Return the sessions that have a folder and should be known. A half-made folder, before any acceptance, holds nothing."""
    sessions_dir = Layout(data_dir).sessions_dir
    found: list[Key] = []
    for agent in _names(sessions_dir):
        if not _is_agent(agent):
            continue
        for name in _names(sessions_dir / agent):
            session = session_of_folder(name)
            if session is None or (agent, session) in known:
                continue
            with suppress(OSError):
                if is_session(SessionFolder(sessions_dir / agent / name)):
                    found.append((agent, session))
    return found[:MAX_SESSIONS]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - ten thousand Path objects cost more than all else here
    except OSError:
        return []


def _is_agent(name: str) -> bool:
    try:
        check_name("agent", name)
    except ClawbusError:
        return False
    return True
