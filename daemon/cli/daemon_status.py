"""Queries the daemon, for commands that must also work when it is down, hangs, or cannot read its own files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock
from daemon.core.daemon_status import DaemonState, DaemonStatus
from daemon.core.errors import ConfigError, DaemonDownError, DaemonSilentError, RemoteError

if TYPE_CHECKING:
    from daemon.api.client import ControlClient
    from daemon.inspect.agents_now import AgentsNow

T = TypeVar("T")

PATIENCE_S: Final = 5.0
# A daemon checks every three seconds whether its socket is still there, and recreates it.
_RECREATE_S: Final = 8.0
_RECREATE_LOOK_S: Final = 0.2


def daemon_status(invocation: Invocation) -> DaemonStatus:
    """Return whether the daemon is up, and its live report. Raise nothing but ConfigError."""
    return _status(invocation)[0]


def settled_status(invocation: Invocation) -> DaemonStatus:
    """Return the same, but wait for a daemon that lives and is not listening: it starts, or recreates its lost socket."""
    clock = SystemClock()
    deadline = clock.monotonic() + _RECREATE_S
    while True:
        status, listening = _status(invocation)
        if status.state is not DaemonState.SILENT or listening:
            return status
        if clock.monotonic() > deadline:
            lost = "" if invocation.place.control_socket.exists() else " The socket is gone, and it makes no new one."
            return replace(status, detail=f"{status.detail}{lost}")
        time.sleep(_RECREATE_LOOK_S)


def _status(invocation: Invocation) -> tuple[DaemonStatus, bool]:
    """Return the daemon's status, and whether anything listens on its socket. Raise nothing but ConfigError."""
    try:
        with invocation.client(answer_s=PATIENCE_S) as client:
            try:
                return DaemonStatus(DaemonState.UP, client.live()), True
            except RemoteError as error:  # it runs, but is out of some resource or is another version
                return DaemonStatus(DaemonState.UP, None, f"{error.remote_code}: {error}", error.remote_code), True
    except DaemonSilentError as error:
        return DaemonStatus(DaemonState.SILENT, None, invocation.silent_daemon() or str(error)), True
    except DaemonDownError as error:
        silent = invocation.silent_daemon()
        return DaemonStatus(DaemonState.SILENT if silent else DaemonState.DOWN, None, silent or str(error)), False


def daemon_or_files(invocation: Invocation, ask: Callable[[ControlClient], T], look: Callable[[], T]) -> tuple[T, str]:
    """Return a report and its source: from the "daemon", or from the "files" when the daemon is down or silent."""
    try:
        with invocation.client(answer_s=2 * PATIENCE_S) as client:
            return ask(client), "daemon"
    except (DaemonDownError, DaemonSilentError):
        return look(), "files"


def agents_of(invocation: Invocation) -> AgentsNow:
    """Return what the files say of the agents; nothing while the configuration cannot be read."""
    from daemon.inspect.agents_now import UNKNOWN  # noqa: PLC0415
    from daemon.inspect.budget_reading import agents_now  # noqa: PLC0415

    try:
        return agents_now(invocation.config, SystemClock().now_ms())
    except ConfigError:
        return UNKNOWN
