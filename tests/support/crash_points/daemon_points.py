"""The daemon's durable steps: its transactions, its sends, and what it does to processes and their records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from daemon.channels.local import LocalChannel
from daemon.channels.webhook import WebhookChannel
from daemon.containers.process import ProcessRuntime
from daemon.containers.process_records import RecordStore
from daemon.store.session_files import SessionFiles
from tests.support.crash_points.points import Points

LAUNCHER = Path(__file__).with_name("launch.py")


def arm(folder: str) -> None:
    """Patch this interpreter; the daemon begins afterwards and finds everything in place."""
    points = Points(Path(folder), "daemon")
    points.transactions()
    for owner, names in (
        (LocalChannel, ("deliver", "deliver_here")),
        (WebhookChannel, ("deliver",)),
        (ProcessRuntime, ("_launch", "_stop", "_kill", "_remove")),
        (RecordStore, ("write", "mark_killed", "remove")),
        (SessionFiles, ("create", "recover")),
    ):
        for name in names:
            points.wrap(owner, name, f"{owner.__name__}.{name}")
    _launch_runners(ProcessRuntime, folder)


def _launch_runners(runtime: Any, folder: str) -> None:
    """The runners of this daemon are started by our launcher."""
    original = runtime.__init__

    def init(self: Any, *args: Any, **keys: Any) -> None:
        keys["command"] = (sys.executable, "-I", str(LAUNCHER), folder)
        original(self, *args, **keys)

    runtime.__init__ = init
