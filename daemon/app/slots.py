"""Runs a daemon in a slot: it waits as the standby, serves when state.json names its slot, and then becomes the standby again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final

import anyio

from daemon.api.server import MAX_PATH_BYTES, check_path
from daemon.app import main
from daemon.app.lease import Lease
from daemon.app.signals import SignalInbox
from daemon.app.standby import Standby, say
from daemon.config.models import Config
from daemon.core.clock import SystemClock
from daemon.core.deploy_errors import NotServingError
from daemon.core.errors import DataFolderLockedError, SocketInUseError, SocketPathError
from daemon.core.slots import SLOTS
from daemon.deploy.releases import Releases
from daemon.deploy.standby_client import standby_socket
from daemon.deploy.state_file import read_state
from daemon.workers.source import Origin
from schema.errors import ClawbusError

_RETRY_S: Final = 0.05


def run_slot(
    config: Config, reload: Callable[[], Config] | None, signals: SignalInbox, source: Origin, slot: str
) -> int:
    """Run as the slot's daemon until a signal ends it, and return the exit code. Raise ClawbusError as `main.run` does.

    At a hand-over, and when the slot points at another release, this process replaces itself by exec and does not return.
    """
    _check_sockets(config)
    clock = SystemClock()
    while True:
        standby = Standby(config, slot, source, signals, clock)
        step = anyio.run(standby.run)
        if step == "stop":
            return 0
        if step == "relink":
            say("standby_changes_release", slot=slot)
            _start_again(config, slot)
        rollback = standby.reason or "the new daemon did not run" if step == "roll_back" else ""
        config = _current(config, reload)
        own = config.deploy
        lease = Lease(config.data_dir, slot, source.release or "", clock, own.cooldown_s, rollback, own.cutover_s)
        try:
            code = main.run(config, reload, signals, source, lease)
        except (NotServingError, DataFolderLockedError, SocketInUseError):
            if read_state(config.data_dir).serving in (None, slot):
                time.sleep(_RETRY_S)  # the daemon that still holds the lock or the socket is about to exit
            continue
        if not lease.handed_over:
            return code
        _start_again(config, slot)


def _check_sockets(config: Config) -> None:
    """Raise SocketPathError if a slot could not listen, also in the slot that serves: after the next deploy it waits."""
    path = max((standby_socket(config.data_dir, slot) for slot in SLOTS), key=lambda one: len(os.fsencode(one)))
    try:
        check_path(path)
    except SocketPathError as error:
        room = len(os.fsencode(config.data_dir)) - (len(os.fsencode(path)) - MAX_PATH_BYTES)
        raise SocketPathError(
            f"the path of the standby's socket is too long: {path}",
            hint=f"Move the data folder to a path of at most {room} bytes: slots keep their sockets in it.",
        ) from error


def _current(config: Config, reload: Callable[[], Config] | None) -> Config:
    """Return the configuration as its file is now: a standby has waited, and what served meanwhile may have read it again.

    One that cannot be used is logged and left: whoever is to serve must.
    """
    try:
        found = reload() if reload is not None else config
    except ClawbusError as error:
        say("standby_keeps_configuration", error=str(error))
        return config
    return found if found.data_dir == config.data_dir else config


def _start_again(config: Config, slot: str) -> None:
    """Run the slot's release in this process by exec. The process id stays, so systemd sees no restart."""
    link = Releases(config.deploy.root).slot_link(slot) / "bin" / "clawbus"
    arguments = [str(link), *sys.argv[1:]]
    sys.stderr.flush()
    sys.stdout.flush()
    os.execv(link, arguments)  # noqa: S606 - our own release, no shell
