"""Bounds what strangers may hold of a TCP listener: how many connections, and how long one may send or read nothing.

uvicorn has no such bounds. A client that connects and sends nothing, or that never reads its responses, would keep a file
descriptor forever, and a daemon without free descriptors cannot open a session's file. The time for a request's body is
bounded elsewhere, per request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.h11_impl import RequestResponseCycle as H11Cycle
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as HttptoolsCycle

from schema.frozen import frozen

TRUSTED: Final = "clawbus.trusted"  # key of a request's state: its sender has proved who it is

_Cycle = H11Cycle | HttptoolsCycle


@frozen
class ConnectionLimits:
    """`max_connections` in all and `max_per_peer` from one address.

    `patience_s` seconds may pass without a whole request head, with a response that is not read, and between two
    requests; `keep_alive_s` between two of a sender that has proved who it is.
    """

    max_connections: int
    max_per_peer: int
    patience_s: float
    keep_alive_s: float = 60.0


def guarded(
    limits: ConnectionLimits, on_full: Callable[[bool], None] = lambda _: None, *, owner_only: bool = False
) -> type[asyncio.Protocol]:
    """Return the HTTP protocol class for `serve(..., http=...)`.

    At a limit the oldest connection of a stranger makes room for the new one; only where every one of them has a request
    of a known sender under way, the new one is refused. `on_full(turned_away)` is called each time.

    `owner_only`: only the daemon's own user can connect. Then httptools parses, at a fraction of h11's processor time. It
    puts no limit on a request's head, so h11 parses what strangers send.
    """
    bound = {"limits": limits, "on_full": staticmethod(on_full)}
    base = (_Guard, HttpToolsProtocol) if owner_only else (_Guard, H11Protocol)
    return type("GuardedConnection", base, bound)


class _Guard(asyncio.Protocol):
    """Part of a connection of uvicorn's: a clock for every state in which it waits for its peer."""

    limits: ClassVar[ConnectionLimits]
    on_full: ClassVar[Callable[[bool], None]]
    # Of uvicorn's protocol classes:
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    client: tuple[str, int] | None
    connections: set[Any]
    cycle: Any
    since = 0.0  # when it was made, or last answered a known sender: a stranger's requests do not make it younger
    dropped = False
    _waiting: asyncio.TimerHandle | None = None  # for a request, or for the next one
    _writing: asyncio.TimerHandle | None = None  # for a response to be read
    _trusted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        if not self._make_room():
            self.drop()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self.dropped:
            super().data_received(data)
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.dropped = True
        self._waiting = _stopped(self._waiting)
        self._writing = _stopped(self._writing)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def on_response_complete(self) -> None:
        cycle = self._cycle
        self._trusted = cycle is not None and _is_trusted(cycle)
        if self._trusted:
            self.since = self.loop.time()
        super().on_response_complete()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        self._watch()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        self._watch()

    @property
    def peer(self) -> str:
        """The address that it comes from, without the port."""
        return self.client[0] if self.client else ""

    @property
    def may_go(self) -> bool:
        """Whether it may be closed: no request of a known sender is under way on it, or its peer does not read."""
        cycle = self._cycle
        return cycle is None or cycle.response_complete or self.flow.write_paused or not _is_trusted(cycle)

    @property
    def _cycle(self) -> _Cycle | None:
        return cast("_Cycle | None", self.cycle)  # None until the first request

    def _make_room(self) -> bool:
        """Return whether there is room for the connection, after dropping another one if necessary."""
        others = [one for one in cast("Iterable[_Guard]", self.connections) if one is not self and not one.dropped]
        of_peer = [one for one in others if one.peer == self.peer]
        if len(of_peer) >= self.limits.max_per_peer:
            crowd = of_peer
        elif len(others) >= self.limits.max_connections:
            largest = Counter(one.peer for one in others).most_common(1)[0][0]
            crowd = [one for one in others if one.peer == largest]
        else:
            return True
        victim = min((one for one in crowd if one.may_go), key=lambda one: one.since, default=None)
        type(self).on_full(victim is None)
        if victim is not None:
            victim.drop()
        return victim is not None

    def _watch(self) -> None:
        """Run a clock whenever the peer is waited for. Only a whole request sets it back, never bytes alone."""
        if self.dropped:
            return
        cycle = self._cycle
        if self.flow.write_paused or self.transport.is_closing():
            self._writing = self._writing or self.loop.call_later(self.limits.patience_s, self.drop)
        else:
            self._writing = _stopped(self._writing)
        if cycle is not None and not cycle.response_complete:
            self._waiting = _stopped(self._waiting)
        elif self._waiting is None:
            allowed = self.limits.keep_alive_s if self._trusted else self.limits.patience_s
            self._waiting = self.loop.call_later(allowed, self.drop)

    def drop(self) -> None:
        """Close the connection now, whatever is still to be read or written."""
        self.dropped = True
        self.transport.abort()


def _is_trusted(cycle: _Cycle) -> bool:
    return bool(cycle.scope.get("state", {}).get(TRUSTED))


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
