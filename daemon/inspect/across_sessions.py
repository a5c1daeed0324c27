"""Reads rows out of many sessions' inbound.db for one list. A file that cannot be read is one line among the errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.core.clock import Clock
from daemon.inspect.bounds import MAX_LISTED
from daemon.inspect.central_reading import Key, folder_of
from daemon.inspect.open_registry import open_registry, sessions_to_read
from schema.errors import ClawbusError
from schema.layout import SessionFolder


def read_across_sessions(
    data_dir: Path,
    clock: Clock,
    session: Key | None,
    budget_s: float,
    read: Callable[[SessionFolder], tuple[list[dict[str, Any]], int]],
    *,
    agent: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read every session's inbound.db, or those of one agent, or that of one. Return what was found, and {total, not_examined, errors}.

    `read` returns rows and how many there are in all; each row gets its agent and session. Raise UnknownSessionError,
    DataFolderError, RegistryGoneError.
    """
    deadline = clock.monotonic() + budget_s
    with open_registry(data_dir) as central:
        known = sessions_to_read(data_dir, central, session, clock.now_ms())
    keys = [key for key in known if agent in (None, key[0])]
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    total, examined = 0, 0
    for owner, name in keys:
        if clock.monotonic() > deadline:
            break
        examined += 1
        try:
            found, count = read(folder_of(data_dir, (owner, name)))
        except ClawbusError as error:
            errors.append({"agent": owner, "session": name, "error": f"{error.code}: {error}"})
            continue
        total += count
        rows += [{"agent": owner, "session": name, **row} for row in found]
    return rows, {"total": total, "not_examined": len(keys) - examined, "errors": errors[:MAX_LISTED]}
