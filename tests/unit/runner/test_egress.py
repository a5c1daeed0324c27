"""The way out of the container: bytes to the gate's socket and back, a daemon that is away for a moment or for long."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import structlog

from container_runner import egress
from container_runner.egress import WayOut, with_way_out
from schema.layout import GATE_SOCKET

PATIENCE_S = 20.0


@asynccontextmanager
async def way_out(folder: Path, port: int = 0) -> AsyncGenerator[int]:
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(WayOut(folder, port, structlog.get_logger()).run)
        yield int(address.rpartition(":")[2])
        tasks.cancel_scope.cancel()


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A gate that answers in capitals until the other side ends."""
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.close()


async def ask(port: int, data: bytes) -> bytes:
    with anyio.fail_after(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writer.write_eof()
        found = await reader.read()
        writer.close()
        return found


@pytest.mark.anyio
async def test_a_connection_waits_for_a_daemon_that_restarts(tmp_path: Path) -> None:
    async with way_out(tmp_path) as port, anyio.create_task_group() as tasks:
        answers: list[bytes] = []

        async def one() -> None:
            answers.append(await ask(port, b"hello"))

        tasks.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        server = await asyncio.start_unix_server(shout, tmp_path / GATE_SOCKET)
        with anyio.fail_after(PATIENCE_S):
            while not answers:  # noqa: ASYNC110 - it is seen from outside only
                await anyio.sleep(0.005)
        assert answers == [b"HELLO"]
        server.close()


@pytest.mark.anyio
async def test_a_data_folder_s_long_path_does_not_shut_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{descriptor}/{GATE_SOCKET}")
        os.close(descriptor)
        server = await asyncio.start_unix_server(shout, sock=sock)
        async with way_out(folder) as port:
            assert await ask(port, b"hello") == b"HELLO"
        server.close()


@pytest.mark.anyio
async def test_without_a_daemon_the_client_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_GATE_S", 0.05)
    async with way_out(tmp_path) as port:
        found = await ask(port, b"GET / HTTP/1.1\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 503 ")
    assert b"EGRESS_NO_DAEMON" in found


@pytest.mark.anyio
async def test_a_port_that_is_taken_gives_way_to_a_free_one(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with way_out(tmp_path, taken.getsockname()[1]) as port:
            assert port != taken.getsockname()[1]


@pytest.mark.anyio
async def test_more_connections_than_allowed_wait_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_MAX_CONNECTIONS", 2)
    server = await asyncio.start_unix_server(shout, tmp_path / GATE_SOCKET)
    async with way_out(tmp_path) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in held:
            writer.write(b"a")
            assert await reader.read(1) == b"A"
        answers: list[bytes] = []
        async with anyio.create_task_group() as tasks:

            async def third() -> None:
                answers.append(await ask(port, b"third"))

            tasks.start_soon(third)
            await anyio.sleep(0.05)
            assert answers == []
            held[0][1].close()
        assert answers == [b"THIRD"]
        held[1][1].close()
    server.close()


def test_the_agent_s_own_variables_win() -> None:
    found = with_way_out(
        {"HTTP_PROXY": "mine", "PATH": "p"}, "http://127.0.0.1:1", ("A={gate}/model", "PATH=q", "B=x=y")
    )
    assert found == {
        "HTTP_PROXY": "mine", "PATH": "p", "A": "http://127.0.0.1:1/model", "B": "x=y",
        **dict.fromkeys(("HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:1"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost,::1"),
    }  # fmt: skip


@pytest.mark.anyio
async def test_an_answer_that_comes_before_the_whole_request_arrives(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"too large")
        writer.write_eof()
        while await reader.read(100_000):
            pass
        writer.close()

    server = await asyncio.start_unix_server(refuse, tmp_path / GATE_SOCKET)
    async with way_out(tmp_path) as port:
        assert await ask(port, b"x" * 3_000_000) == b"too large"
    server.close()
