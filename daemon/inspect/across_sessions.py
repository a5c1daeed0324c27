"""Collects rows from many sessions' inbound.db into one list. An unreadable file adds an error and stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from daemon.core.clock import Clock
from daemon.inspect.bounds import MAX_LISTED
from daemon.inspect.central_reading import Key, folder_of
from daemon.inspect.open_registry import open_registry, sessions_to_read
from schema.errors import ClawbusError
from schema.layout import SessionFolder


def visit_sessions(
    keys: Collection[Key], clock: Clock, deadline: float, visit: Callable[[Key], None]
) -> tuple[int, list[dict[str, str]]]:
    """Call `visit` for each session until the deadline (monotonic seconds).

    Return how many sessions were not visited, and {agent, session, error} for each whose files could not be read, at most
    MAX_LISTED of them.
    """
    errors: list[dict[str, str]] = []
    for number, key in enumerate(keys):
        if clock.monotonic() > deadline:
            return len(keys) - number, errors[:MAX_LISTED]
        try:
            visit(key)
        except ClawbusError as error:
            errors.append({"agent": key[0], "session": key[1], "error": f"{error.code}: {error}"})
    return 0, errors[:MAX_LISTED]


def read_across_sessions(
    data_dir: Path,
    clock: Clock,
    session: Key | None,
    budget_s: float,
    read: Callable[[SessionFolder], tuple[list[dict[str, Any]], int]],
    *,
    agent: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the inbound.db of every session, of one agent's sessions, or of one session, for at most `budget_s` seconds.

    `read` returns a session's rows, perhaps not all, and how many it has. Return all rows, each with its agent and session,
    and {total, not_examined, errors}. Raise UnknownSessionError, DataFolderError or RegistryGoneError.
    """
    deadline = clock.monotonic() + budget_s
    with open_registry(data_dir) as central:
        known = sessions_to_read(data_dir, central, session, clock.now_ms())
    keys = [key for key in known if agent in (None, key[0])]
    rows: list[dict[str, Any]] = []
    total = 0

    def visit(key: Key) -> None:
        nonlocal total
        found, count = read(folder_of(data_dir, key))
        total += count
        rows.extend({"agent": key[0], "session": key[1], **row} for row in found)

    left, errors = visit_sessions(keys, clock, deadline, visit)
    return rows, {"total": total, "not_examined": left, "errors": errors}
