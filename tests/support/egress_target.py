"""A target behind the gate: a real HTTP/1.1 server on loopback that says what it received. For tests of the gate.

`/echo` answers with the request as JSON, `/stream` with server-sent events, one a `step`, `/redirect?to=URL` with a redirect,
`/cut` breaks its answer off, `/sink` counts a body, `/slow` never answers.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import anyio
import h11


@dataclass
class Target:
    port: int = 0
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0
    gone: anyio.Event = field(default_factory=anyio.Event)  # a client hung up on /slow or /stream
    step: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(0))
    bodies: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)  # path -> status, content type, body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._one(connection, reader, writer):
                connection.start_next_cycle()
        except (ConnectionError, h11.RemoteProtocolError):
            pass
        finally:
            writer.close()

    async def _one(  # noqa: PLR0912 - a path, an answer
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        request: h11.Request | None = None
        body = b""
        size = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size < 1_000_000:
                    body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        url = urlsplit(request.target.decode())
        headers = {name.decode(): value.decode() for name, value in request.headers}
        self.seen.append((request.method.decode(), request.target.decode(), headers, body))

        async def send(*events: h11.Event) -> None:
            for event in events:
                writer.write(connection.send(event) or b"")
            await writer.drain()

        def plain(status: int, text: bytes, *more: tuple[bytes, bytes]) -> tuple[h11.Event, ...]:
            length = (b"content-length", str(len(text)).encode())
            return (
                h11.Response(status_code=status, headers=[length, *more]),
                h11.Data(data=text),
                h11.EndOfMessage(),
            )

        if url.path in self.bodies:
            status, kind, text = self.bodies[url.path]
            await send(*plain(status, text, (b"content-type", kind.encode())))
        elif url.path.endswith("/stream"):
            await send(h11.Response(status_code=200, headers=[(b"content-type", b"text/event-stream")]))
            for number in range(3):
                if not await self._stepped(reader):
                    return False
                await send(h11.Data(data=b"data: %d\n\n" % number))
            await send(h11.EndOfMessage())
        elif url.path.endswith("/redirect"):
            await send(*plain(302, b"", (b"location", parse_qs(url.query)["to"][0].encode())))
        elif url.path.endswith("/cut"):
            await send(h11.Response(status_code=200, headers=[(b"content-length", b"100")]), h11.Data(data=b"half"))
            return False
        elif url.path.endswith("/slow"):
            await self._stepped(reader)
            return False
        elif url.path.endswith("/sink"):
            await send(*plain(200, str(size).encode()))
        else:
            answer = {"method": request.method.decode(), "target": request.target.decode(), "headers": headers}
            text = json.dumps({**answer, "body": body.decode("utf-8", "replace")}).encode()
            await send(*plain(200, text, (b"content-type", b"application/json"), (b"x-key", b"k")))
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    async def _stepped(self, reader: asyncio.StreamReader) -> bool:
        """Wait for a step of the test; False when the client hung up instead."""
        hung_up = False
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal hung_up
                hung_up = not await reader.read(1)
                self.gone.set()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self.step.acquire()
            tasks.cancel_scope.cancel()
        return not hung_up


@asynccontextmanager
async def target() -> AsyncGenerator[Target]:
    found = Target()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
