"""What one stranger may hold of the webhook listener: nothing that the clock does not end, and no other sender's room."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest
import structlog

from daemon.channels.webhook import WebhookChannel
from tests.integration.test_webhook_in import FAR, Served, signed, table
from tests.support.channels import Bus, SetClock, build, running

pytestmark = pytest.mark.anyio

GET = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def serving(tmp_path: Path, bus: Bus | None = None, **changes: object) -> AsyncGenerator[Served]:
    clock = SetClock()
    channel: WebhookChannel = build(WebhookChannel, "webhook", table(**changes), tmp_path, clock)
    async with running(channel, bus or Bus()) as taken:
        assert channel.bound_address is not None
        base = "http://{}:{}".format(*channel.bound_address)
        async with httpx.AsyncClient(base_url=base, timeout=FAR) as client:
            yield Served(channel, taken, client, clock)


@contextmanager
def peer(served: Served, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection from that address, which reads nothing by itself."""
    assert served.channel.bound_address is not None
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.bind((address, 0))
        made.connect(served.channel.bound_address)
        made.setblocking(False)
        yield made


async def until_cut(sock: socket.socket, *, sending: bytes = b"") -> None:
    """Until the other side has ended the connection; meanwhile sends as much as is taken, and reads nothing."""
    with anyio.fail_after(FAR):
        while True:
            try:
                if sending:
                    sock.send(sending)
                elif sock.recv(1) == b"":
                    return
            except BlockingIOError:
                pass
            except OSError:
                return
            await anyio.sleep(0.005)


async def test_a_peer_that_never_reads_its_answers_is_ended_by_the_clock(tmp_path: Path) -> None:
    async with serving(tmp_path, body_timeout_s=0.3) as served:
        with peer(served) as stubborn:
            await until_cut(stubborn, sending=GET * 1000)
        assert (await served.send()).status_code == 202


@pytest.mark.parametrize(
    "sent", [b"", GET, GET[:-2], b"POST /hooks/ours HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"]
)
async def test_a_connection_without_a_further_request_is_ended_by_the_clock(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path, body_timeout_s=0.3) as served:
        with peer(served) as idle:
            if sent:
                idle.send(sent)
            with anyio.fail_after(FAR):
                while True:
                    try:
                        if idle.recv(65536) == b"":
                            break
                    except BlockingIOError:
                        await anyio.sleep(0.005)
                    except ConnectionResetError:
                        break


async def test_a_sender_that_has_signed_keeps_its_connection_for_longer(tmp_path: Path) -> None:
    async with serving(tmp_path, body_timeout_s=1.0) as served:
        assert served.channel.bound_address is not None
        async with await anyio.connect_tcp(*served.channel.bound_address) as known:
            head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"{}").items())
            request = f"POST /hooks/ours HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n{head}\r\n{{}}".encode()
            await known.send(request)
            assert b" 202 " in await known.receive()
            with peer(served) as stranger:  # came later, and goes first
                stranger.send(GET)
                with anyio.fail_after(FAR):
                    while stranger.fileno() >= 0:
                        try:
                            if stranger.recv(65536) == b"":
                                break
                        except BlockingIOError:
                            await anyio.sleep(0.005)
                        except ConnectionResetError:
                            break
            await known.send(request)
            assert b" 202 " in await known.receive()


async def test_signed_posts_get_through_while_one_peer_holds_all_connections(tmp_path: Path) -> None:
    """No clock helps here: every wait is far longer than the test."""
    async with serving(tmp_path, max_connections=6) as served:
        held = [peer(served) for _ in range(8)]
        for number, one in enumerate(held):
            stubborn = one.__enter__()
            for _ in range(20 if number % 2 else 0):
                try:
                    stubborn.send(GET * 200)
                except OSError:
                    break
                await anyio.lowlevel.checkpoint()
        try:
            for number in range(10):
                async with httpx.AsyncClient(base_url=served.client.base_url, timeout=FAR) as client:
                    body = b'{"n":%d}' % number
                    response = await client.post("/hooks/ours", content=body, headers=signed(body))
                    assert response.status_code == 202
        finally:
            for one in held:
                one.__exit__(None, None, None)


async def test_one_address_makes_room_among_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections=6, max_connections_per_peer=2) as served:
        with peer(served, "127.0.0.2") as other, peer(served) as first, peer(served) as second, peer(served) as third:
            await until_cut(first)
            for one in (other, second, third):
                one.send(GET)
                with anyio.fail_after(FAR):
                    while True:
                        try:
                            assert b" 404 " in one.recv(65536)
                            break
                        except BlockingIOError:
                            await anyio.sleep(0.005)


async def test_a_request_that_the_bus_works_on_is_never_cut_for_a_new_connection(tmp_path: Path) -> None:
    bus = Bus()
    bus.gate = anyio.Event()
    statuses: list[int] = []
    with structlog.testing.capture_logs() as logs:
        async with serving(tmp_path, bus, max_connections=1) as served:

            async def post() -> None:
                statuses.append((await served.send()).status_code)

            async with anyio.create_task_group() as clients:
                clients.start_soon(post)
                await bus.entered.wait()
                with peer(served) as late:
                    await until_cut(late)
                bus.gate.set()
    assert statuses == [202]
    [full] = [one for one in logs if one["event"] == "webhook_connections_full"]
    assert full["turned_away"] is True
