"""Name lookups: one that hangs keeps its own thread, and nobody else waits for it."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import httpcore
import pytest

from daemon.http import resolver as module
from daemon.http.pool import Backend
from daemon.http.resolver import Resolver
from tests.support.clock import MovedClock

pytestmark = pytest.mark.anyio


class NameServer:
    """`getaddrinfo` over a table; names that begin with "hung" do not come back before `release`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.release = threading.Event()
        self.begun = threading.Event()
        self.table: dict[str, list[str]] = {"good.test": ["127.0.0.1"], "two.test": ["127.0.0.9", "127.0.0.1"]}

    def __call__(self, host: str, port: object, **more: Any) -> Sequence[tuple[Any, ...]]:
        self.asked[host] += 1
        if host.startswith("hung"):
            self.begun.set()
            self.release.wait(30)
        if host not in self.table:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.table[host]]


@pytest.fixture
def names() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.release.set()


async def test_forty_sends_to_a_name_that_hangs_keep_one_thread_and_delay_no_other_name(names: NameServer) -> None:
    resolver = Resolver(MovedClock(), names)
    results: list[tuple[str, ...]] = []

    async def wait_for_it() -> None:
        with anyio.fail_after(25):
            results.append(await resolver.resolve("hung.test"))

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(wait_for_it)
        await anyio.to_thread.run_sync(names.begun.wait)
        for _ in range(20):
            assert await resolver.resolve("good.test") == ("127.0.0.1",)
        assert await resolver.resolve("10.1.2.3") == ("10.1.2.3",)
        assert names.asked["hung.test"] == 1
        names.table["hung.test"] = ["127.0.0.7"]
        names.release.set()
    assert results == [("127.0.0.7",)] * 40


async def test_after_a_while_a_name_that_hangs_is_refused_at_once_and_heals(names: NameServer) -> None:
    clock = MovedClock()
    resolver = Resolver(clock, names)
    with anyio.move_on_after(0):
        await resolver.resolve("hung.test")
    clock.advance(module.HUNG_S + 1)
    with pytest.raises(OSError, match=r"the lookup of hung\.test has not finished after 5 s"):
        await resolver.resolve("hung.test")
    names.table["hung.test"] = ["127.0.0.7"]
    names.release.set()
    with anyio.fail_after(60):
        while True:
            try:
                assert await resolver.resolve("hung.test") == ("127.0.0.7",)
            except OSError:
                await anyio.lowlevel.checkpoint()
            else:
                break


async def test_more_names_than_threads_is_an_error_and_no_queue(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOOKUPS", 3)
    resolver = Resolver(MovedClock(), names)
    for number in range(3):
        with anyio.move_on_after(0):
            await resolver.resolve(f"hung{number}.test")
    with pytest.raises(OSError, match="3 lookups of other names"):
        await resolver.resolve("good.test")
    assert await resolver.resolve("127.0.0.1") == ("127.0.0.1",)


async def test_one_agent_s_names_that_hang_leave_threads_for_the_others(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OF_ONE", 3)
    resolver = Resolver(MovedClock(), names)
    refused: list[str] = []

    async def hog() -> None:
        module.lookups_are_of("hog")
        for number in range(4):
            with anyio.move_on_after(0):
                try:
                    await resolver.resolve(f"hung{number}.test")
                except OSError as error:
                    refused.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hog)
    assert refused == ["3 lookups of other names for hog have not finished"]
    assert await resolver.resolve("good.test") == ("127.0.0.1",)


async def test_a_failure_is_remembered_for_a_moment_and_a_success_is_not(names: NameServer) -> None:
    clock = MovedClock()
    resolver = Resolver(clock, names)
    for _ in range(3):
        with pytest.raises(OSError, match=r"missing\.test failed: .*not known"):
            await resolver.resolve("missing.test")
    assert names.asked["missing.test"] == 1
    clock.advance(module.FAILED_S + 0.1)
    names.table["missing.test"] = ["127.0.0.3"]
    assert await resolver.resolve("missing.test") == ("127.0.0.3",)
    names.table["missing.test"] = ["127.0.0.4"]
    assert await resolver.resolve("missing.test") == ("127.0.0.4",)


async def test_a_connection_goes_to_the_first_address_that_takes_it(names: NameServer) -> None:
    backend = Backend(Resolver(MovedClock(), names))
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - no Django
        stream = await backend.connect_tcp("two.test", port, timeout=10)
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", port)
        await stream.aclose()
    with pytest.raises(httpcore.ConnectError, match=r"127\.0\.0\.9"):
        await backend.connect_tcp("two.test", port, timeout=10)
    with pytest.raises(httpcore.ConnectError, match="not known"):
        await backend.connect_tcp("missing.test", port, timeout=10)
    with pytest.raises(httpcore.ConnectTimeout, match=r"no connection within 0\.05 s"):
        await backend.connect_tcp("hung.test", port, timeout=0.05)


async def test_a_lookup_without_a_thread_fails_and_the_next_one_works(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = MovedClock()
    resolver = Resolver(clock, names)

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(OSError, match=r"the lookup of good\.test cannot start"):
            await resolver.resolve("good.test")
    clock.advance(module.HUNG_S + 1)
    assert await resolver.resolve("good.test") == ("127.0.0.1",)
