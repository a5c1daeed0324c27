"""Forwards connections on 127.0.0.1 to the gate's socket on the host, without reading their content.

While the daemon restarts, its socket is gone for a moment: a new connection waits for it. One that was open is cut, so that the
agent's client sees it and tries again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskStatus

from container_runner.logs import Logger
from schema.layout import GATE_SOCKET

_HOST: Final = "127.0.0.1"
_MAX_CONNECTIONS: Final = 120  # below the gate's own limit, and far below the container's descriptors
_BACKLOG: Final = 256
_GATE_S: Final = 30.0  # how long a connection waits for a daemon that restarts
_AGAIN_S: Final = 0.05
_RETRY_S: Final = 1.0
_LINGER_S: Final = 1.0
_PIECE: Final = 64 * 1024
_WHY: Final = b'{"ok":false,"error":{"code":"EGRESS_NO_DAEMON","message":"the clawbus daemon does not run."}}'
_ABSENT: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
) % (len(_WHY), _WHY)


class WayOut:
    """Listens until it is cancelled. `folder` holds the gate's socket; `port` 0 means any free one."""

    def __init__(self, folder: Path, port: int, log: Logger) -> None:
        self._folder = folder
        self._port = port
        self._log = log
        self._slots = anyio.Semaphore(_MAX_CONNECTIONS)

    async def run(self, *, task_status: TaskStatus[str | None]) -> None:
        """Report the address, `http://127.0.0.1:PORT`, or None where nothing can listen; then serve."""
        try:
            listener = self._listen()
        except OSError as error:
            self._log.error("egress_cannot_listen", port=self._port, error=str(error))
            task_status.started(None)
            return
        with listener:
            task_status.started(f"http://{_HOST}:{listener.getsockname()[1]}")
            async with anyio.create_task_group() as self._tasks:
                while True:
                    await self._accept(listener)

    def _listen(self) -> socket.socket:
        try:
            return _bound(self._port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._port:
                raise
        self._log.warning("egress_port_taken", port=self._port, hint="another port is used; the variables name it")
        return _bound(0)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept one connection when there is room for it: what is beyond waits in the kernel and costs no descriptor."""
        await self._slots.acquire()
        try:
            inner, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            self._slots.release()
            self._log.warning("egress_accept_failed", error=str(error))
            await anyio.sleep(_RETRY_S)
        else:
            self._tasks.start_soon(self._serve, inner)

    async def _serve(self, inner: socket.socket) -> None:
        try:
            with inner:
                inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                gate = await self._gate()
                if gate is None:
                    await asyncio.get_running_loop().sock_sendall(inner, _ABSENT)
                    await _drain(inner)
                else:
                    with gate:
                        await _join(inner, gate)
        except OSError:
            pass  # the gate or the client has closed its end, so close the other one
        finally:
            self._slots.release()

    async def _gate(self) -> socket.socket | None:
        """Return a connection to the gate, or None if the gate does not accept one in time."""
        with anyio.move_on_after(_GATE_S):
            while True:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                try:
                    _connect(sock, self._folder)
                except OSError:
                    sock.close()
                else:
                    return sock
                await anyio.sleep(_AGAIN_S)
        return None


def _connect(sock: socket.socket, folder: Path) -> None:
    """Connect to the gate without waiting: EAGAIN when its queue is full. Raise OSError.

    By the folder's descriptor, because a socket's path has at most 107 bytes and a data folder's may be longer.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{descriptor}/{GATE_SOCKET}")
    finally:
        os.close(descriptor)


async def _join(inner: socket.socket, gate: socket.socket) -> None:
    """Pass bytes on in both directions until the gate ends.

    What the client still sends then is taken for a moment: closed with unread bytes in it, its socket would lose the answer.
    """
    async with anyio.create_task_group() as both:
        both.start_soon(_pump, inner, gate)
        await _pump(gate, inner)
        both.cancel_scope.deadline = anyio.current_time() + _LINGER_S


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until the source ends, then the end itself."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(source, _PIECE):
            await loop.sock_sendall(target, data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _drain(inner: socket.socket) -> None:
    """End our side, and take what the client still sends for a moment."""
    inner.shutdown(socket.SHUT_WR)
    with anyio.move_on_after(_LINGER_S):
        while await asyncio.get_running_loop().sock_recv(inner, _PIECE):
            pass


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((_HOST, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def with_way_out(environ: Mapping[str, str], address: str, variables: Sequence[str]) -> dict[str, str]:
    """Return the environment for agents' programs. What it has already wins: the agent's own table, the image."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), address)
    local = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost,::1")
    pairs = (entry.partition("=") for entry in variables)
    routes = {name: text.replace("{gate}", address) for name, _, text in pairs}
    return {**proxies, **local, **routes, **environ}
