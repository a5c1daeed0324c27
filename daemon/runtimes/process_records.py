"""The process runtime's records of its containers on disk, by which a restarted daemon finds them again.

`<id>.json` is written whole before the agent may start; `<id>.exit` holds the exit code, complete once it ends in a
newline; `<id>.killed` says that this runtime sent SIGKILL. The files are evidence about processes, never proof of life.
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

from daemon.core.errors import RuntimeUnavailableError
from daemon.runtimes.process_table import Leader
from daemon.runtimes.protocol import Running
from schema.frozen import frozen
from schema.os_faults import hint_of, read_own_file

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")


@frozen
class Record:
    """One container. `log_start` is where its output begins in the session's log, in bytes."""

    container_id: str
    install_id: str
    name: str
    agent: str
    session: str
    incarnation: str
    fingerprint: str
    started_at: int
    pid: int
    start_ticks: int
    boot_id: str
    log_path: str
    log_start: int

    @property
    def leader(self) -> Leader:
        """The process to look for."""
        return Leader(self.pid, self.start_ticks, self.boot_id, self.incarnation)

    def running(self) -> Running:
        """Return the container as the runtime lists it."""
        return Running(self.container_id, self.agent, self.session, self.incarnation, self.fingerprint, self.started_at)


class RecordStore:
    """The files. Every method raises RuntimeUnavailableError when the folder cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ensure(self) -> None:
        """Make the folder, private to the daemon's user. Remove nothing: another thread may be writing a draft."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable")
        except OSError as error:
            raise self._unusable(error) from error

    def write(self, record: Record) -> None:
        """Write the record atomically: a reader sees all of it or none."""
        path = self._path(record.container_id, "json")
        draft = path.with_suffix(".draft")
        try:
            draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise self._unusable(error) from error

    def discard_draft(self, container_id: str) -> None:
        """Remove what a daemon left that was killed before its record was whole."""
        if not _ID.match(container_id):
            return
        try:
            self._path(container_id, "draft").unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def read(self, container_id: str) -> Record | None:
        """Return the record, or None when there is none of this id or its file is not one of ours."""
        if not _ID.match(container_id):
            return None
        try:
            text = read_own_file(self._path(container_id, "json")).decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        return _parsed(text)

    def all(self) -> list[Record]:
        """Return every record, of live and of dead containers."""
        try:
            found = sorted(path.stem for path in self._folder.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from error
        return [record for record in map(self.read, found) if record is not None]

    def exit_path(self, container_id: str) -> Path:
        """Return the file to which the wrapper writes the exit code."""
        return self._path(container_id, "exit")

    def exit_code(self, container_id: str) -> int | None:
        """Return the exit code that the wrapper wrote; 137 when this runtime killed the wrapper; else None."""
        try:
            text = read_own_file(self.exit_path(container_id)).decode("ascii")
            if text.endswith("\n"):
                return int(text)
        except (FileNotFoundError, ValueError):
            pass
        except OSError as error:
            raise self._unusable(error) from error
        return 137 if self._path(container_id, "killed").exists() else None

    def mark_killed(self, container_id: str) -> None:
        """Record that the container is killed. Call before the signal: the wrapper cannot write anything after it."""
        try:
            self._path(container_id, "killed").touch()
        except OSError as error:
            raise self._unusable(error) from error

    def remove(self, container_id: str) -> None:
        """Forget it; the record goes last."""
        if not _ID.match(container_id):
            return
        try:
            for suffix in ("exit", "killed", "draft", "json"):
                self._path(container_id, suffix).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _path(self, container_id: str, suffix: str) -> Path:
        return self._folder / f"{container_id}.{suffix}"

    def _unusable(self, error: OSError) -> RuntimeUnavailableError:
        return RuntimeUnavailableError(
            f"the process runtime cannot use {self._folder}: {error}.",
            hint=hint_of(error.errno or 0) or "Make that folder writable for the daemon's user, or free some space.",
        )


def _parsed(text: str) -> Record | None:
    try:
        values = json.loads(text)
        return Record(**cast("dict[str, Any]", values))
    except (ValueError, TypeError):
        return None
