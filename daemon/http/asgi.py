"""Runs an ASGI app on a socket that is already bound, as one structured task. Used for unix and TCP sockets alike.

uvicorn does HTTP; what it does around that is left out: no signal handlers (the daemon has its own), no logging, no
tick ten times a second. It must never outlive its caller's scope: after `serve` returned, no request runs.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Literal

import anyio
import anyio.lowlevel
import uvicorn
from anyio.abc import TaskStatus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSING: Final = "clawbus.closing"  # scope key: an anyio.Event, set when the server wants to end
# asyncio also tries that often in a row to take a connection in, each time with an error, when no descriptor is left.
_BACKLOG: Final = 256
_SETTLE_TURNS: Final = 5  # asyncio makes a transport in a task and reports it with call_soon
_GONE: Final = b'{"ok":false,"error":{"code":"DAEMON_STOPPING","message":"the daemon is stopping."},"fix":"Ask again."}'


async def serve(
    app: ASGIApp,
    sock: socket.socket,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    grace_s: float = 1.0,
    http: type[asyncio.Protocol] | Literal["h11"] = "h11",
) -> None:
    """Serve `app` on `sock` (bound; closed at the end) until cancelled.

    At the end the event in `scope[CLOSING]` ends long polls; whatever still runs after `grace_s` seconds is
    cancelled and its client gets a 503. `http` is uvicorn's protocol class, for a listener that bounds its connections.
    """
    gate = _Gate(app)
    config = uvicorn.Config(
        gate,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # uvicorn logs nothing at this level; the app reports its own failures
        access_log=False,
        backlog=_BACKLOG,
        proxy_headers=False,  # no header decides whom a request comes from
        date_header=False,
        server_header=False,
        timeout_keep_alive=60,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    try:
        await server.startup(sockets=[sock])
        task_status.started()
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(server, gate, sock, grace_s)


async def _end(server: uvicorn.Server, gate: _Gate, sock: socket.socket, grace_s: float) -> None:
    listeners = list(server.servers) if server.started else []
    # Stop accepting, let what was just accepted become a connection, and only then close the listener: asyncio loses a
    # connection whose listener is closed between its accept and its transport.
    asyncio.get_running_loop().remove_reader(sock)
    for _ in range(_SETTLE_TURNS):
        await anyio.lowlevel.checkpoint()
    for listener in listeners:
        listener.close()
    sock.close()
    # Idle connections close now; busy ones after their response.
    for connection in list(server.server_state.connections):
        connection.shutdown()
    await gate.close(grace_s)
    # A client that does not read its response must not hold the daemon.
    if server.server_state.tasks:
        await asyncio.wait(server.server_state.tasks, timeout=grace_s)
    for connection in list(server.server_state.connections):
        transport = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()
    with anyio.move_on_after(grace_s):
        for listener in listeners:
            await listener.wait_closed()


class _Gate:
    """Counts the requests in flight, signals the server's end to them, and cancels those that go on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._closing = anyio.Event()
        self._idle = anyio.Event()
        self._scopes: set[anyio.CancelScope] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        scope[CLOSING] = self._closing
        with anyio.CancelScope() as cancel:
            self._scopes.add(cancel)
            try:
                await self._app(scope, receive, sending)
            finally:
                self._scopes.discard(cancel)
                if not self._scopes and self._closing.is_set():
                    self._idle.set()
        if cancel.cancelled_caught and not started:
            await _unavailable(send)

    async def close(self, grace_s: float) -> None:
        """Signal the stop to every request, wait `grace_s` seconds, cancel the rest."""
        self._closing.set()
        if not self._scopes:
            return
        with anyio.move_on_after(grace_s):
            await self._idle.wait()
        for cancel in tuple(self._scopes):
            cancel.cancel()


async def _unavailable(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _GONE})
