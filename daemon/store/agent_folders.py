"""Makes the agents' folders, and refuses one that lost its mount: a program that is away must not fail its messages.

For each agent, `run/agents/NAME` names the folders of its last start that held files, each with its mount point. A folder
that is empty or gone although it is in that record is not the agent's. A lost record protects nothing and does no harm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

from daemon.core.errors import AgentFileError
from daemon.store.data_layout import Layout
from daemon.store.mount_points import mount_of
from schema.os_faults import host_error, passes


class AgentFolders:
    """The folders `<agents>/NAME`. `records` is the folder of their records; it is made when it is needed."""

    def __init__(self, agents: Path, records: Path) -> None:
        self._agents = agents
        self._records = records

    @classmethod
    def of(cls, layout: Layout) -> Self:
        """Return those of a data folder."""
        return cls(layout.agents_dir, layout.run_dir / "agents")

    def path(self, name: str) -> Path:
        """Return where the agent's folder lies."""
        return self._agents / name

    def make(self, name: str) -> Path:
        """Return the agent's folder, made if it is new. Raise AgentFileError for one that held files and is gone, or OSError."""
        path = self.path(name)
        if path.is_symlink() and not path.is_dir():
            raise AgentFileError(f"agents.{name}: {path} leads to {path.readlink()}, which is not there.")
        if not path.exists() and str(path) in self._recorded(name):
            raise AgentFileError(
                f"agents.{name}: {path} is gone, and it held the agent's files.",
                hint=f"Put it back, or mount its disk; the daemon tries again by itself. For an empty one: mkdir {path}",
            )
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        return path

    def make_new(self, name: str) -> None:
        """Make the agent's folder if it never held files. Look at nothing that exists: its disk may hang. Raise OSError."""
        path = self.path(name)
        if str(path) not in self._recorded(name):
            with suppress(FileExistsError):
                path.mkdir(mode=0o755)

    def check(self, name: str, paths: Iterable[Path]) -> None:
        """Record which of the paths hold files. Raise AgentFileError for one that is empty because its mount is gone.

        Raise StorageError for what the host cannot do now.
        """
        before = self._recorded(name)
        now: dict[str, str] = {}
        for path in paths:
            where = mount_of(path)
            if where is None or not path.is_dir():
                continue
            if _holds_files(name, path):
                now[str(path)] = where
            elif (earlier := before.get(str(path))) and _is_unmounted(earlier, where):
                raise AgentFileError(
                    f"agents.{name}: {path} is empty: {earlier}, on which its files are, is not mounted.",
                    hint=f"mount {earlier}; the daemon tries again by itself. If {path} is to be empty, put any file into it.",
                )
        if now != before:
            self._record(name, now)

    def forget_others(self, names: Iterable[str]) -> None:
        """Remove the records of agents that are not configured any more."""
        kept = set(names)
        with suppress(OSError):  # there may be none, and one that stays does no harm
            for one in [one for one in self._records.iterdir() if one.name not in kept]:
                one.unlink()

    def away(self) -> list[str]:
        """Return the agents whose folder held files and is gone, or is empty because its mount is gone. Raise OSError."""
        names = sorted(one.name for one in self._records.iterdir()) if self._records.is_dir() else []
        return [name for name in names if self._is_away(name)]

    def _is_away(self, name: str) -> bool:
        path = self.path(name)
        earlier = self._recorded(name).get(str(path))
        if earlier is None:
            return False
        where = mount_of(path)
        return not path.is_dir() or (where is not None and _is_unmounted(earlier, where) and not any(path.iterdir()))

    def _recorded(self, name: str) -> Mapping[str, str]:
        try:
            found: Any = json.loads((self._records / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return cast("dict[str, str]", found) if isinstance(found, dict) else {}

    def _record(self, name: str, places: Mapping[str, str]) -> None:
        draft = self._records / f".{name}-{os.urandom(4).hex()}"  # several sessions of an agent may start at once
        try:
            self._records.mkdir(mode=0o700, exist_ok=True)
            draft.write_text(json.dumps(places), encoding="utf-8")
            draft.replace(self._records / name)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise host_error(error, str(self._records)) from error


def _is_unmounted(earlier: str, now: str) -> bool:
    return Path(earlier) not in {Path(now), *Path(now).parents}


def _holds_files(name: str, path: Path) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError as error:
        if passes(error):
            raise host_error(error, str(path)) from error
        raise AgentFileError(f"agents.{name}: {path} cannot be read: {error.strerror}.") from error
