"""A socket whose waits a signal always ends.

Python acts on a signal between two of its steps. One that comes after the last step before a wait, or that the kernel gives
to another thread, does not interrupt the wait: Ctrl-C during a long poll would do nothing for most of a minute.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any, Final

_STEP_S: Final = 0.5


class InterruptibleSocket(socket.socket):
    """Waits for what it reads half a second at a time, up to its timeout."""

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read into `buffer`, as `socket.recv_into` does. Raise TimeoutError or OSError."""
        timeout = self.gettimeout()
        if timeout != 0:
            self._wait(timeout)
        return super().recv_into(buffer, nbytes, flags)

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self, select.POLLIN)
        while True:
            left = _STEP_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            if poll.poll(min(left, _STEP_S) * 1000):
                return
