"""What one stranger may hold of the webhook listener: so many connections, and each only so long without a request.

uvicorn bounds neither: a client that connects and says nothing would keep a descriptor for ever, and a daemon without
descriptors can open no session file. Time for bodies is bounded elsewhere, per request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle


def guarded(max_connections: int, header_timeout_s: float, on_full: Callable[[], None]) -> type[H11Protocol]:
    """The HTTP protocol class for `serve(..., http=...)`. `on_full` is called for every connection that is turned away."""

    class Guarded(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                on_full()
                transport.abort()
                return
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Between requests a clock runs; bytes that do not complete a request do not set it back."""
            cycle = cast("RequestResponseCycle | None", self.cycle)  # None until the first request
            if cycle is not None and not cycle.response_complete:
                self._unwatch()
            elif self._waiting is None and not self.transport.is_closing():
                self._waiting = self.loop.call_later(header_timeout_s, self.transport.abort)

        def _unwatch(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Guarded
