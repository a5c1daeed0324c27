"""The operator's backups of a whole data folder, by the product's own code, at any moment; and the restore of one.

A backup must hold what the files held at that moment. What it holds must be a sound data folder, as a crash may leave one.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.config.policies import read_limits
from daemon.maintenance.folder_backup import FolderBackup, FolderLimits, back_up_folder
from daemon.maintenance.folder_restore import restore_folder
from daemon.store.data_folder import DataFolder
from schema.errors import ClawbusError
from tests.simulation.bus import SimDaemon
from tests.simulation.operators import read_only
from tests.simulation.world import World
from tests.support.invariants import data_folder_violations


class Backups:
    """Takes them beside the data folder."""

    def __init__(self, world: World, daemon: SimDaemon) -> None:
        self._world = world
        self._daemon = daemon
        self._numbers = itertools.count(1)

    def take(self) -> Path | None:
        """Back the folder up at this instant, as `clawbus backup` does with the daemon up or down. None: it was refused."""
        world, daemon = self._world, self._daemon
        process = daemon.process
        if not daemon.layout.central_db.exists() or daemon.folder_held:
            return None
        target = world.root.with_name(f"backup {next(self._numbers)}")
        limits = FolderLimits(read_limits(daemon.config), 1024**3, 10_000)
        down = process is None or process.dead
        world.step("operator", f"backs up into {target.name}{' with the daemon down' if down else ''}")
        try:
            with DataFolder.open(world.root, world.clock) if down else contextlib.nullcontext():
                found = back_up_folder(world.root, target, limits, world.clock.now_ms(), _silent, owner=down)
        except ClawbusError as error:
            world.counts[f"backup_refused_{error.code}"] += 1
            world.trace("operator", f"the backup is refused: {error!r}")
            if target.exists():
                world.broken(f"a backup was refused, and {target.name} is there: {error!r}")
            return None
        world.counts["backups"] += 1
        for text in self._violations(target, found):
            world.broken(f"{target.name}: {text}")
        return target

    def restore(self, backup: Path) -> None:
        """Put it in the place of the data folder; nothing of the installation runs any more."""
        world = self._world
        with DataFolder.open(world.root, world.clock):
            done = restore_folder(backup, world.root, world.clock.now_ms(), _silent, replace=True)
        _copy_put_aside(Path(done["before"]), world.root)
        world.counts["restores"] += 1
        world.trace("operator", f"restored {done}")

    def _violations(self, target: Path, found: FolderBackup) -> Iterator[str]:
        retention = self._daemon.config.retention
        pruned = retention.messages_s > 0 or retention.incarnations_s > 0
        for path in sorted(target.glob("**/*.db")):
            relative = path.relative_to(target)
            live, copied = _rows(self._world.root / relative), _rows(path)
            if live is not None and copied is not None and live != copied:
                yield f"{relative} differs from the file that was backed up"
        # A daemon that died in its first start leaves a registry without tables, and a backup of it holds the same.
        if not found.unverified and "sessions" in (_rows(target / "central.db") or {}):
            copied_folders = _copy_put_aside(self._world.root, target)
            restored = self._world.counts["restores"] > 0
            yield from data_folder_violations(target, pruned=pruned, restored=restored)
            for folder in copied_folders:
                shutil.rmtree(folder)


def _copy_put_aside(source: Path, target: Path) -> list[Path]:
    """Copy what resets have put aside, which is no part of a backup: the checks ask it what was answered before.

    Sessions that the target does not have are left out. Return the copies.
    """
    copies: list[Path] = []
    for aside in sorted(source.glob("sessions/*/*/out.reset-*")):
        copy = target / aside.relative_to(source)
        if copy.parent.is_dir() and not copy.exists():
            copies.append(Path(shutil.copytree(aside, copy)))
    return copies


def _rows(path: Path) -> dict[str, list[Any]] | None:
    """Every row of every table; None where a journal keeps it from being read, or nothing is there."""
    named = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(read_only(path)) as db:
        tables = [row[0] for row in db.execute(named)]
        return {table: sorted(db.execute(f'SELECT * FROM "{table}"').fetchall(), key=repr) for table in tables}
    return None


def _silent(_what: str, _done: int, _total: int) -> None:
    return
