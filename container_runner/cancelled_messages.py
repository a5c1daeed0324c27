"""Stops the running turn once the host has cancelled one of its messages: that answer is no longer wanted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from container_runner.watch import InboundWatch


async def stop_when_cancelled(
    watch: InboundWatch, seen: int, is_cancelled: Callable[[], Awaitable[bool]], stop: Callable[[], None]
) -> None:
    """Call `stop` once `is_cancelled`. It is asked when the host's file has changed since the watch's count `seen`.

    So a turn during which the host does nothing costs no read.
    """
    while True:
        await watch.changed_since(seen)
        seen = watch.pokes
        if await is_cancelled():
            stop()
            return
