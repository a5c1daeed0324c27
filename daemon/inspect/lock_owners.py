"""Finds who locks a busy file: processes other than the daemon and the session's container. Read-only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from daemon.config.models import Config
from daemon.core.facts import LockHolder
from daemon.runtimes.members import lock_holders, member_finder, name_of
from daemon.store.data_layout import Layout


def foreign_holders(
    paths: Iterable[Path], ours: Collection[int] = (), *, writing: bool = False
) -> tuple[LockHolder, ...]:
    """Return the processes that hold a lock on one of the files, but for `ours`. A lock of this very process is none."""
    return tuple(
        LockHolder(pid, name_of(pid), path.name)
        for path in paths
        for pid in sorted(lock_holders(path, writing=writing) - set(ours))
    )


def container_processes(config: Config, container_ids: Iterable[str | None]) -> frozenset[int]:
    """Return the processes of these containers, as far as they are visible here."""
    find = member_finder(config.runtime.kind, Layout(config.data_dir).run_dir / "process")
    found: frozenset[int] = frozenset()
    for one in container_ids:
        found |= (find(one) if one is not None else None) or frozenset()
    return found
