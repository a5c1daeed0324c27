"""What tests of channels share: a clock to set, a channel that runs, messages to deliver, and a real HTTP receiver."""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from starlette.types import Receive, Scope, Send

from daemon.channels.protocol import Accepted, Channel, ChannelContext, Incoming, Outgoing
from daemon.core.clock import Clock
from daemon.core.errors import IdConflictError
from daemon.http.asgi import serve
from schema.rows import Address

NOW_MS = 1_790_000_000_000
SECRET = "a secret for tests, in"
REPLY_SECRET = "a secret for tests, out"


class SetClock:
    """Stands still until a test moves it."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.now = now_ms

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000

    def slept_s(self) -> float:
        return 0.0


class Bus:
    """An `accept` that keeps what it was given, as the bus does: same id and content is one message."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str, str], Incoming] = {}
        self.error: Exception | None = None
        self.failed = False  # whether what is known has failed meanwhile
        self.gate: anyio.Event | None = None
        self.entered = anyio.Event()

    async def __call__(self, incoming: Incoming) -> Accepted:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        message_id = incoming.message_id or f"made-{len(self.stored)}"
        key = (incoming.agent, incoming.session, message_id)
        if incoming.to_fetch is not None and key not in self.stored:
            files = (*incoming.files, *await incoming.to_fetch.fetch())
            incoming = replace(incoming, files=files, to_fetch=None)
        known = self.stored.setdefault(key, incoming)
        if known.content != incoming.content:
            raise IdConflictError(f"message id {message_id!r} was used for other content.")
        again = known is not incoming
        accepted = Accepted(message_id, incoming.agent, incoming.session, len(self.stored) * 2, again)
        return (
            replace(accepted, previous="failed", requeued_as=f"{message_id}+r1") if again and self.failed else accepted
        )

    @property
    def messages(self) -> list[Incoming]:
        return list(self.stored.values())


def build(cls: type[Channel], name: str, table: dict[str, Any], data_dir: Path, clock: Clock) -> Any:
    settings = cls.Settings.model_validate(table)
    return cls(ChannelContext(name, settings, data_dir, clock, max_content_bytes=1024**2))


@asynccontextmanager
async def running(channel: Channel, accept: Bus | None = None) -> AsyncGenerator[Bus]:
    """The channel, serving until the end of the block."""
    bus = accept or Bus()
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await channel.run(bus, task_status=task_status)

        await tasks.start(run)
        try:
            yield bus
        finally:
            tasks.cancel_scope.cancel()


def outgoing(channel: str = "local", place: str = "me", **changes: Any) -> Outgoing:
    values: dict[str, Any] = {
        "key": f"a/s/{changes.get('message_out_id', 'out-1')}",
        "message_out_id": "out-1",
        "agent": "a",
        "session": "s",
        "kind": "chat",
        "address": Address(channel, place),
        "content": '{"text":"hello"}',
        "timestamp": "2026-11-21T02:20:32.123Z",
        "in_reply_to": "in-1",
    }
    return Outgoing(**{**values, **changes})


@dataclass
class Answer:
    """What the receiver does next. `stall`: nothing at all. `gate`: it waits for it before it answers."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b"{}"
    stall: bool = False
    stall_body: bool = False
    gate: anyio.Event | None = None


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes
    path: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A real HTTP server on loopback that works each idempotency key once, as a good receiver does."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.effects: list[str] = []
        self.script: deque[Answer] = deque()
        self.arrived = anyio.Event()
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
        self.requests.append(Received(headers, body, scope["path"]))
        self.arrived.set()
        answer = self.script.popleft() if self.script else Answer()
        key = headers.get("idempotency-key", "")
        if answer.status < 300 and key not in self.effects:
            self.effects.append(key)
        if answer.gate is not None:
            await answer.gate.wait()
        if answer.stall:
            await anyio.sleep_forever()
        raw = [(key.lower().encode(), value.encode()) for key, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.body, "more_body": answer.stall_body})
        if answer.stall_body:
            await anyio.sleep_forever()


@asynccontextmanager
async def receiver() -> AsyncGenerator[Receiver]:
    """A receiver that listens; its `url` says where."""
    app = Receiver()
    sock = loopback_socket()
    app.url = f"http://127.0.0.1:{sock.getsockname()[1]}/answers?token=not-for-logs"
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await serve(app, sock, task_status=task_status, grace_s=0.01)

        await tasks.start(run)
        try:
            yield app
        finally:
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def resetting_receiver() -> AsyncGenerator[str]:
    """The URL of a server that takes a request and resets the connection."""

    async def reset(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            raw: socket.socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django's
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, reset)
        port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's
        yield f"http://127.0.0.1:{port}/"
        tasks.cancel_scope.cancel()


def loopback_socket() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    sock.setblocking(False)
    return sock


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
