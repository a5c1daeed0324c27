"""How the bus is doing without its registry: central.db is missing or broken, and the session folders are all there is.

Read-only and bounded, like daemon/inspect/reports.py, whose report it stands in for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from daemon.core.clock import Clock
from daemon.inspect.central_reading import folder_of, read_central
from daemon.inspect.reports import install_report, sum_queues
from daemon.inspect.session_reading import Queues, read_queues

BUDGET_S: Final = 3.0


def folder_report(data_dir: Path, clock: Clock, why: str) -> dict[str, Any]:
    """Return the keys of `status_report` as far as folders show; `registry_error` says why. Raise DataFolderError."""
    now, deadline = clock.now_ms(), clock.monotonic() + BUDGET_S
    keys = read_central(data_dir).known()
    looked: list[Queues] = []
    for key in keys:
        if clock.monotonic() > deadline:
            break
        looked.append(read_queues(folder_of(data_dir, key), now))
    return {
        "data_dir": str(data_dir),
        "install_id": None,
        **install_report(data_dir),
        "at": now,
        "registry_error": why,
        "sessions": {"total": len(keys)},
        "queues": sum_queues(looked, now),
        "incarnations": [],
        "attention": [],
        "attention_total": 0,
        "not_examined": len(keys) - len(looked),
    }
