"""What our network does to httpcore: it spares a search for its async library, and does not blame a peer for this host's lack."""

import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import anyio
import httpcore
import pytest
from httpcore._synchronization import AsyncLock

from daemon.http import pool
from daemon.http.pool import Backend, HostShortError, disable_sniffio
from daemon.http.resolver import Resolver
from tests.support.clock import MovedClock


@pytest.mark.anyio
async def test_a_missing_sniffio_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    installed = importlib.util.find_spec("sniffio") is not None
    for _ in range(2):
        disable_sniffio()
        assert ("sniffio" in sys.modules and sys.modules["sniffio"] is None) is not installed
    async with AsyncLock():  # httpcore's own: it takes asyncio
        await anyio.lowlevel.checkpoint()


async def connected(make: type[socket.socket], timeout_s: float, host: str = "127.0.0.1") -> None:
    """Connect to a listener of this host, while the event loop makes its sockets with `make`."""
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        port = server.getsockname()[1]
        patch.setattr(socket, "socket", make)
        stream = await Backend(Resolver(MovedClock(), lookup)).connect_tcp(host, port, timeout_s)
        await stream.aclose()


def lookup(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


def scarce(number: int, times: int) -> type[socket.socket]:
    """A kind of socket of which the first cannot be made."""
    left = [times]

    class Scarce(socket.socket):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            if left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            super().__init__(*arguments, **more)

    return Scarce


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_a_host_that_is_short_of_something_for_a_moment_connects_a_moment_later(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(pool, "_AGAIN_S", 0.01)
    await connected(scarce(number, 3), 30.0)
    with pytest.raises(HostShortError, match=os.strerror(number)):
        await connected(scarce(number, 10**9), 0.1)


@pytest.mark.anyio
async def test_a_peer_that_refuses_is_told_at_once() -> None:
    with pytest.raises(httpcore.ConnectError) as told:
        await connected(scarce(errno.ECONNREFUSED, 10**9), 30.0)
    assert not isinstance(told.value, HostShortError)


@pytest.mark.anyio
async def test_a_lookup_without_a_descriptor_is_no_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library reports a missing descriptor as an unknown name."""

    def refuse(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    short = Backend(Resolver(MovedClock(), refuse))
    monkeypatch.setattr("daemon.http.resolver.probe", lambda _: OSError(errno.EMFILE, "Too many open files"))
    with pytest.raises(HostShortError, match="Too many open files"):
        await short.connect_tcp("a.example", 80, 0.1)
    monkeypatch.setattr("daemon.http.resolver.probe", lambda _: None)
    with pytest.raises(httpcore.ConnectError, match="not known") as told:
        await Backend(Resolver(MovedClock(), refuse)).connect_tcp("a.example", 80, 0.1)
    assert not isinstance(told.value, HostShortError)
