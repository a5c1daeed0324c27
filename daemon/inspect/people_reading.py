"""Users and strangers' requests for an operator, with the daemon up or down. Read-only."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon.core.pairing import Pairing
from daemon.inspect.routing_reading import central_file
from daemon.inspect.trusted_files import open_current
from daemon.store import people


def read_users(data_dir: Path) -> list[dict[str, Any]]:
    """Return every user with roles and identities. Raise DataFolderError or what opening the file raises."""
    path = central_file(data_dir)
    if path is None:
        return []
    with open_current(path) as reader:
        return people.users(reader)


def read_pairings(data_dir: Path, now: int, limit: int, *, every: bool) -> list[dict[str, Any]]:
    """Return the requests that wait, or every one, newest first. `now` is epoch ms."""
    path = central_file(data_dir)
    if path is None:
        return []
    with open_current(path) as reader:
        found = people.pairings(reader, limit)
    return [{**asdict(one), "state": _state(one, now)} for one in found if every or one.waits(now)]


def _state(pairing: Pairing, now: int) -> str:
    if pairing.outcome is not None:
        return pairing.outcome.value
    return "waiting" if pairing.waits(now) else "expired"
