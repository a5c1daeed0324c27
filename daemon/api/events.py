"""The daemon's log events as a stream over the control socket: what `clawbus watch` reads.

Never slows the daemon down: a watcher that does not keep up loses its oldest events, and learns how many. The events come
from the log pipeline, redacted and limited as there. Watchers alone also see what agents say while they work: that is their
users' talk, which has no place in a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping
from typing import Any, Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from daemon.core.events import AgentSaid, AgentWrote, SessionEvent, Subscriptions
from daemon.http.asgi import CLOSING
from daemon.logs.filter import LEVELS, EventFilter
from daemon.logs.render import ordered
from schema.instants import to_text

KEPT: Final = 1000  # events queued for one watcher
_ALIVE_S: Final = 10.0  # seconds between two empty lines, by which each side notices that the other one is gone


class Watcher:
    """One watcher's bounded queue, which any thread fills and one task empties."""

    def __init__(self, wanted: EventFilter) -> None:
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._queue: deque[Mapping[str, Any]] = deque()
        self._lost = 0
        self._rung = anyio.Event()

    def offer(self, event: Mapping[str, Any]) -> None:
        """Offer an event. May be called from any thread; never waits and never raises."""
        if not self._wanted.wants(event):
            return
        with self._lock:
            if len(self._queue) >= KEPT:
                self._queue.popleft()
                self._lost += 1
            self._queue.append(event)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._rung.set()

    async def take(self, closing: anyio.Event) -> tuple[list[Mapping[str, Any]], int]:
        """Return the events since the last call, and how many were lost before them. Wait some seconds at most for the first."""
        self._rung = anyio.Event()
        if not self._queue:
            with anyio.move_on_after(_ALIVE_S):
                async with anyio.create_task_group() as waits:
                    waits.start_soon(_end_with, closing, waits.cancel_scope)
                    await self._rung.wait()
                    waits.cancel_scope.cancel()
        with self._lock:
            taken, lost = list(self._queue), self._lost
            self._queue.clear()
            self._lost = 0
        return taken, lost


async def _end_with(closing: anyio.Event, scope: anyio.CancelScope) -> None:
    await closing.wait()
    scope.cancel()


class EventHub:
    """Passes every log event on to the watchers. `publish` is the log pipeline's listener."""

    def __init__(self) -> None:
        self._watchers: tuple[Watcher, ...] = ()
        self._lock = threading.Lock()

    def publish(self, event: Mapping[str, Any]) -> None:
        """Publish an event. May be called from any thread."""
        for watcher in self._watchers:
            watcher.offer(event)

    @property
    def watched(self) -> bool:
        """Whether somebody watches."""
        return bool(self._watchers)

    def follow(self, events: Subscriptions) -> None:
        """Subscribe to what agents say in the middle of a turn."""
        events.subscribe(AgentSaid, self._said)
        events.subscribe(AgentWrote, self._wrote)

    def _said(self, event: AgentSaid) -> None:
        edits = {"edits": event.edits} if event.edits is not None else {}
        about = {"message_out": event.message_out_id, "in_reply_to": event.in_reply_to, **edits}
        self._tell(event, "agent_said", {**about, "text": event.text})

    def _wrote(self, event: AgentWrote) -> None:
        name = "agent_stderr" if event.kind == "stderr" else "agent_progress"
        self._tell(event, name, {"messages": list(event.messages), "text": event.text})

    def _tell(self, event: SessionEvent, name: str, fields: Mapping[str, object]) -> None:
        if self._watchers:
            head = {"timestamp": to_text(event.at), "level": "info", "event": name}
            self.publish(ordered({**head, "agent": event.agent, "session": event.session, **fields}))

    @contextlib.contextmanager
    def watching(self, wanted: EventFilter) -> Generator[Watcher]:
        """Yield a watcher for as long as the context lasts."""
        watcher = Watcher(wanted)
        with self._lock:
            self._watchers = (*self._watchers, watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watchers = tuple(one for one in self._watchers if one is not watcher)


def events_route(hub: EventHub) -> Route:
    """Return the route GET /v1/events?session=A/S&message=ID&level=L: JSON lines until the client or the daemon goes.

    The first line is {"event": "watching"}: what is logged from then on is in the stream. Empty lines mean nothing.
    """

    async def events(request: Request) -> Response:
        query = request.query_params
        level = query.get("level", "debug")
        if level not in LEVELS:
            body = {
                "ok": False,
                "error": {"code": "REQUEST_REFUSED", "message": f"no such level: {level[:20]}"},
                "fix": "",
            }
            return Response(json.dumps(body), 400, media_type="application/json")
        wanted = EventFilter(query.get("session"), query.get("message"), level, query.get("agent"))
        closing = request.scope.get(CLOSING)
        stream = lines(hub, wanted, closing if isinstance(closing, anyio.Event) else anyio.Event())
        return StreamingResponse(stream, media_type="application/x-ndjson")

    return Route("/v1/events", events, methods=["GET"])


async def lines(hub: EventHub, wanted: EventFilter, closing: anyio.Event) -> AsyncIterator[bytes]:
    """Yield the stream as bytes until `closing` is set."""
    with hub.watching(wanted) as watcher:
        yield _line({"event": "watching"})
        while not closing.is_set():
            events, lost = await watcher.take(closing)
            if lost:
                yield _line({"event": "watch_fell_behind", "level": "warning", "lost": lost})
            yield b"".join(map(_line, events)) or b"\n"


def _line(event: Mapping[str, Any]) -> bytes:
    # ASCII, because a value may hold lone surrogates that UTF-8 cannot.
    return json.dumps(event, separators=(",", ":"), default=str).encode() + b"\n"
