"""Probes the release that serves while no deploy is under way, as the gate `callback_probe` probes a new one.

It runs in a folder of its own beside the standby's; the daemon that serves and its files take no part.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.config.models import Config
from daemon.core.errors import DataFolderLockedError
from daemon.core.slots import UNKNOWN
from daemon.deploy.probe import Probe, command_of, slow_round_trip
from daemon.deploy.probe_ways import Caller
from daemon.deploy.state_file import FOLDER
from daemon.store.folder_lock import lock_folder

_NAME: Final = "probe-standing"


def probe_serving(config: Config, prefix: Path, connect: Callable[[Path], Caller]) -> tuple[str, str]:
    """Return "pass", "fail" or "unknown", and why. Blocks for up to `deploy.probe_s` seconds and some for the cleaning.

    `prefix` is the installation that the serving daemon runs from (its `sys.prefix`), `connect` makes a client of a daemon
    on a socket. Unknown: another process probes now, or this user may not write in the data folder.
    """
    folder = config.data_dir / FOLDER
    if not os.access(folder, os.W_OK):
        return UNKNOWN, f"the callback probe cannot write in {folder}"
    try:
        # The folder itself is locked: a lock file that root made would keep out the daemon's user.
        lock = lock_folder(folder)
        try:
            found = Probe(config, folder / _NAME, command_of(prefix), connect, config.deploy.probe_s).run()
        finally:
            os.close(lock)
    except DataFolderLockedError:
        return UNKNOWN, "another process probes this installation now"
    except OSError as error:
        return UNKNOWN, f"the callback probe cannot lock {folder}: {error}"
    if not found["ok"]:
        return "fail", f"the callback probe failed: {found['reason']}"
    slow = slow_round_trip(found, config.deploy.slow_s)
    return ("fail", slow) if slow is not None else ("pass", "")
