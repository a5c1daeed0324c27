"""Reports the daemon's state to systemd: ready, status, watchdog, reloading, stopping. Without systemd, does nothing.

The protocol is sd_notify(3)'s: lines of VAR=value in one datagram to the unix socket named by NOTIFY_SOCKET, where a
leading '@' means the abstract namespace. Never raises: a service manager that does not listen must not stop the bus.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog


class Notifier:
    """Sends the daemon's notifications. `environment` has NOTIFY_SOCKET and the WATCHDOG variables."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_interval(environment)
        self._log = structlog.get_logger()
        self._failing = False
        self._stopping = False

    @property
    def enabled(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds within which the manager expects a sign of life; None if it expects none."""
        return self._watchdog

    def ready(self, status: str = "") -> None:
        """Announce that start-up or a reload is complete. Do nothing once the daemon is stopping."""
        if not self._stopping:
            self._send("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> None:
        """Send one line that `systemctl status` shows."""
        self._send(_status(text))

    def watchdog(self) -> None:
        """Send a sign of life. Call this only while all important loops make progress."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Announce a reload; `ready` ends it. systemd wants the monotonic time of both (Type=notify-reload)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """Announce that the daemon is stopping."""
        self._stopping = True
        self._send("STOPPING=1", *([_status(status)] if status else []))

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(1.0)  # the manager's queue is full only when the manager hangs
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failing:
                self._log.warning("notify_failed", address=self._address, error=error)
            self._failing = True
        else:
            self._failing = False


def _address(name: str) -> str | None:
    """Return the socket's address for Python, or None for a kind that is not supported (vsock, which serves virtual machines)."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Return WATCHDOG_USEC in seconds, or None if it is not for this process (sd_watchdog_enabled(3))."""
    pid = environment.get("WATCHDOG_PID", "")
    text = environment.get("WATCHDOG_USEC", "")
    if (pid and pid != str(os.getpid())) or not text.isdecimal() or int(text) == 0:
        return None
    return int(text) / 1_000_000
