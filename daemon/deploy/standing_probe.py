"""Probes the release that serves while no deploy is under way, as the gate `callback_probe` probes a new one.

It runs in a folder of its own beside the standby's; the daemon that serves and its files take no part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.config.models import Config
from daemon.deploy.probe import Probe, command_of, slow_round_trip
from daemon.deploy.probe_ways import Caller
from daemon.deploy.state_file import FOLDER

_NAME: Final = "probe-standing"


def probe_serving(config: Config, prefix: Path, connect: Callable[[Path], Caller]) -> tuple[str, str]:
    """Return "pass" or "fail", and why. Blocks for up to `deploy.probe_s` seconds and some for the cleaning.

    `prefix` is the installation that the serving daemon runs from (its `sys.prefix`), `connect` makes a client of a daemon
    on a socket. The caller makes sure that no other process probes at the same time.
    """
    found = Probe(config, config.data_dir / FOLDER / _NAME, command_of(prefix), connect, config.deploy.probe_s).run()
    if not found["ok"]:
        return "fail", f"the callback probe failed: {found['reason']}"
    slow = slow_round_trip(found, config.deploy.slow_s)
    return ("fail", slow) if slow is not None else ("pass", "")
