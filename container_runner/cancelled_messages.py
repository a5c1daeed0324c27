"""Stops the running turn once the host has cancelled one of its messages: nobody waits for that answer any longer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from container_runner.watch import InboundWatch

_LONGEST_S: Final = 3600.0


async def stop_when_cancelled(
    watch: InboundWatch, seen: int, is_cancelled: Callable[[], Awaitable[bool]], stop: Callable[[], None]
) -> None:
    """Call `stop` once `is_cancelled`. It is asked when the host's file has changed since the watch's count `seen`.

    So a turn during which the host does nothing costs no read.
    """
    while True:
        while watch.pokes == seen:
            await watch.after(seen, _LONGEST_S)
        seen = watch.pokes
        if await is_cancelled():
            stop()
            return
