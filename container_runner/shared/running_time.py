"""Timeouts that count only the time in which this process could run.

While a container is frozen (docker pause, SIGSTOP, a suspended machine) the machine's clocks continue. A turn must not time
out when it thaws, for time in which it could not run.
"""

from __future__ import annotations

from typing import Final

import anyio

_STEP_S: Final = 1.0
_LATE: Final = 2.0  # a step that took longer than this many times its length was a freeze, not a busy machine


async def sleep_running(seconds: float) -> None:
    """Sleep this long, not counting freezes: each counts as two seconds at most."""
    left = seconds
    while left > 0:
        step, began = min(left, _STEP_S), anyio.current_time()
        await anyio.sleep(step)
        left -= min(anyio.current_time() - began, step * _LATE)


async def cancel_after_running(scope: anyio.CancelScope, seconds: float) -> None:
    """Cancel the scope once this process has run for `seconds`."""
    await sleep_running(seconds)
    scope.cancel()
