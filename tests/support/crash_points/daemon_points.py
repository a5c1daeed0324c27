"""The daemon's durable steps: its transactions, its sends, and what it does to processes and their records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from daemon.channels.local import LocalChannel
from daemon.channels.webhook import WebhookChannel
from daemon.engine import ingress
from daemon.engine.agent_channel import AgentChannel
from daemon.runtimes.process import ProcessRuntime
from daemon.runtimes.process_records import RecordStore
from daemon.store import attachments, data_folder, rebuild, session_files
from daemon.store.session_files import SessionFiles
from schema import connect
from tests.support.crash_points.points import Points

LAUNCHER = Path(__file__).with_name("launch.py")


def arm(folder: str) -> None:
    """Patch this interpreter; the daemon begins afterwards and finds everything in place."""
    points = Points(Path(folder), "daemon")
    points.transactions()
    for owner, names in (
        (LocalChannel, ("deliver", "deliver_inline")),
        (WebhookChannel, ("deliver",)),
        (AgentChannel, ("deliver",)),
        (ProcessRuntime, ("_launch", "_stop", "_kill", "_remove")),
        (RecordStore, ("write", "mark_killed", "remove")),
        (SessionFiles, ("create", "recover")),
        (Path, ("mkdir", "chmod", "replace", "unlink")),
    ):
        for name in names:
            points.wrap(owner, name, f"{owner.__name__}.{name}")
    for name in ("write_new_file", "sync_folder"):
        points.wrap(attachments, name, f"Attachments.{name}")
    points.wrap(ingress, "place_attachments", "Attachments.placed")
    # The single steps of making a file: a label that begins with a capital is no transaction.
    for module, names in (
        (session_files, ("make_whole",)),
        (connect, ("_make_empty", "_sync_folder")),
        (rebuild, ("write_install_id",)),
        (data_folder, ("take_lock", "write_holder", "_prepare")),
    ):
        for name in names:
            points.wrap(module, name, f"Making.{name.strip('_')}")
    _launch_runners(ProcessRuntime, folder)


def _launch_runners(runtime: Any, folder: str) -> None:
    """The runners of this daemon are started by our launcher."""
    original = runtime.__init__

    def init(self: Any, *args: Any, **keys: Any) -> None:
        keys["command"] = (sys.executable, "-I", str(LAUNCHER), folder)
        original(self, *args, **keys)

    runtime.__init__ = init
