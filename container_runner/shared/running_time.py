"""Timeouts that count only the time in which this process could run.

While a container is frozen (docker pause, SIGSTOP, a suspended machine) the machine's clocks continue. A turn must not time
out when it thaws, for time in which it could not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

_STEP_S: Final = 1.0
_LATE: Final = 2.0  # a step that took longer than this many times its length was a freeze, not a busy machine


def _never() -> bool:
    return False


async def sleep_running(seconds: float, stands: Callable[[], bool] = _never) -> None:
    """Sleep for this long.

    A freeze counts as two seconds at most; a step at whose end `stands()` is true does not count at all.
    """
    left = seconds
    while left > 0:
        step, began = min(left, _STEP_S), anyio.current_time()
        await anyio.sleep(step)
        if not stands():
            left -= min(anyio.current_time() - began, step * _LATE)


async def cancel_after_running(scope: anyio.CancelScope, seconds: float, stands: Callable[[], bool] = _never) -> None:
    """Cancel the scope once this process has run for `seconds`, not counting the time during which `stands()` is true."""
    await sleep_running(seconds, stands)
    scope.cancel()
