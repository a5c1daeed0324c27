"""Probes the release that serves while no deploy is under way, as the gate `callback_probe` probes a new one.

It runs in a folder of its own beside the standby's; the daemon that serves and its files take no part.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from daemon.config.models import Config
from daemon.core.slots import UNKNOWN
from daemon.deploy.probe import Probe, command_of, slow_round_trip
from daemon.deploy.probe_ways import Caller
from daemon.deploy.state_file import FOLDER

_NAME: Final = "probe-standing"


def probe_serving(config: Config, prefix: Path, connect: Callable[[Path], Caller]) -> tuple[str, str]:
    """Return "pass", "fail" or "unknown", and why. Blocks for up to `deploy.probe_s` seconds and some for the cleaning.

    `prefix` is the installation that the serving daemon runs from (its `sys.prefix`), `connect` makes a client of a daemon
    on a socket. Unknown: another process probes now, or this user may not write in the data folder.
    """
    folder = config.data_dir / FOLDER / _NAME
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        with _alone(folder.with_name(f"{_NAME}.lock")) as alone:
            if not alone:
                return UNKNOWN, "another process probes this installation now"
            found = Probe(config, folder, command_of(prefix), connect, config.deploy.probe_s).run()
    except OSError as error:
        return UNKNOWN, f"the callback probe has no folder: {error}"
    if not found["ok"]:
        return "fail", f"the callback probe failed: {found['reason']}"
    slow = slow_round_trip(found, config.deploy.slow_s)
    return ("fail", slow) if slow is not None else ("pass", "")


@contextmanager
def _alone(path: Path) -> Generator[bool]:
    """Yield whether no other process probes. The kernel releases the lock of a process that is killed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
