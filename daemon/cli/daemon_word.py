"""Asks the daemon how it is, for commands that must also work when it is down, hangs, or cannot read its own files."""

from __future__ import annotations

from typing import Any

from daemon.cli.command import Invocation
from daemon.errors import DaemonDownError, DaemonSilentError, RemoteError
from daemon.forensics.doctor import DaemonWord
from daemon.forensics.facts import DaemonState

PATIENCE_S = 5.0


def daemon_word(invocation: Invocation) -> DaemonWord:
    """Whether it is up, and the live part of its status. Raises ConfigError alone."""
    try:
        with invocation.client(answer_s=PATIENCE_S) as client:
            try:
                return DaemonWord(DaemonState.UP, client.status()["live"])
            except RemoteError as error:  # it lives, and cannot read what the report is made of
                live: dict[str, Any] = client.health()
                return DaemonWord(DaemonState.UP, live, f"{error.remote_code}: {error}")
    except DaemonSilentError as error:
        return DaemonWord(DaemonState.SILENT, None, invocation.silent_daemon() or str(error))
    except DaemonDownError as error:
        silent = invocation.silent_daemon()
        return DaemonWord(DaemonState.SILENT if silent else DaemonState.DOWN, None, silent or str(error))


def is_up(invocation: Invocation) -> bool:
    """Whether a daemon answers; costs no report."""
    try:
        with invocation.client(answer_s=PATIENCE_S) as client:
            client.health()
    except (DaemonDownError, DaemonSilentError):
        return False
    except RemoteError:
        pass
    return True
