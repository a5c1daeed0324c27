"""The HTTP client of the webhook channel's way out: connections with names looked up by our resolver, and no queue.

httpx's pool makes a request wait for a slot, and a request that is cancelled just when it is given one keeps the slot for
ever. So the pool is unlimited here, the bus bounds the sends under way, and a pool that holds more connections than the
sends under way can account for is replaced.
"""

from __future__ import annotations

import importlib.util
import ssl
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import ModuleType
from typing import Final, cast

import anyio
import httpcore
import httpx
import structlog

from daemon.http.resolver import Resolver
from schema.os_faults import is_exhausted

KEPT: Final = 20  # idle connections
_SPARE: Final = 10  # connections beyond those in use and idle, which a cancelled send may leave
_STAGGER_S: Final = 0.25
_AGAIN_S: Final = 0.2  # between two tries of a host that is short of something


def spare_searches() -> None:
    """Let httpcore's imports of sniffio, four for each request, fail without a search of the whole path.

    It asks there for the async library and takes asyncio where sniffio is missing; each search took 170 us. An entry of None means
    that a module is not there (docs.python.org/3/reference/import.html, "The module cache").
    """
    if importlib.util.find_spec("sniffio") is None:
        cast("dict[str, ModuleType | None]", sys.modules)["sniffio"] = None


class HostShortError(httpcore.ConnectError):
    """The host could not connect: it was short of open files, memory or threads. The other end was not asked."""


class Backend(httpcore.AsyncNetworkBackend):
    """httpcore's own network, but for names, which our resolver looks up."""

    def __init__(self, resolver: Resolver, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        spare_searches()
        self._resolver = resolver
        self._inner = inner or cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Look up and connect, within `timeout` seconds in all, and try again for as long while this host is short of something.

        Raises httpcore.ConnectError, ConnectTimeout or HostShortError.
        """
        options = list(socket_options or ())
        short: OSError | None = None
        try:
            with anyio.fail_after(timeout):
                while True:
                    try:
                        addresses = await self.addresses(host, port)
                        return await self._first(addresses, port, local_address, options)
                    except (OSError, httpcore.ConnectError) as error:
                        short = _shortage(error)
                        if short is None or timeout is None:
                            raise
                    await anyio.sleep(_AGAIN_S)
        except (TimeoutError, OSError, httpcore.ConnectError) as error:
            if short is not None:
                raise HostShortError(f"this host cannot connect now: {short.strerror}") from error
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from error
            raise httpcore.ConnectError(str(error)) from error

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Return the addresses to connect to; a subclass may refuse some. Raise OSError."""
        del port
        return await self._resolver.resolve(host)

    async def _first(
        self, addresses: tuple[str, ...], port: int, local: str | None, options: list[httpcore.SOCKET_OPTION]
    ) -> httpcore.AsyncNetworkStream:
        """Return the first address that answers.

        Try a new one every quarter of a second, or when the last one failed.
        """
        if len(addresses) == 1:
            return await self._inner.connect_tcp(addresses[0], port, None, local, options)
        found: list[httpcore.AsyncNetworkStream] = []
        errors: list[str] = []
        short: list[OSError] = []

        async def attempt(address: str, failed: anyio.Event) -> None:
            try:
                stream = await self._inner.connect_tcp(address, port, None, local, options)
            except httpcore.NetworkError as error:
                errors.append(f"{address}: {error}")
                short.extend(filter(None, [_shortage(error)]))
            else:
                found.append(stream)
                tasks.cancel_scope.cancel()
            failed.set()

        try:
            async with anyio.create_task_group() as tasks:
                for address in addresses:
                    failed = anyio.Event()
                    tasks.start_soon(attempt, address, failed)
                    with anyio.move_on_after(_STAGGER_S):
                        await failed.wait()
        except BaseException:
            await _close(found)
            raise
        await _close(found[1:])
        if not found:
            raise httpcore.ConnectError("; ".join(errors)[:300]) from (short[0] if short else None)
        return found[0]

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await anyio.sleep(seconds)


def _shortage(error: BaseException | None) -> OSError | None:
    """Return what in an error's causes says that this host is short of something; None where the other end is the cause."""
    while error is not None:
        if isinstance(error, OSError) and is_exhausted(error.errno):
            return error
        error = error.__cause__
    return None


async def _close(streams: list[httpcore.AsyncNetworkStream]) -> None:
    with anyio.CancelScope(shield=True):
        for stream in streams:
            await stream.aclose()


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own transport, over a pool of ours: it has no parameter for the network."""

    def __init__(self, trust: ssl.SSLContext, backend: Backend) -> None:
        super().__init__(verify=trust, trust_env=False)
        self.pool = httpcore.AsyncConnectionPool(
            ssl_context=trust,
            max_connections=None,
            max_keepalive_connections=KEPT,
            keepalive_expiry=5.0,
            network_backend=backend,
        )
        self._pool = self.pool


@dataclass(slots=True)
class _Generation:
    client: httpx.AsyncClient
    transport: _Transport
    under_way: int = 0
    retired: bool = False

    @property
    def broken(self) -> bool:
        """Whether the pool holds connections that belong to no send."""
        return len(self.transport.pool.connections) > self.under_way + KEPT + _SPARE


class HttpPool:
    """Usable inside `open()`; `lease` gives the client for one send."""

    def __init__(self, name: str, timeout: httpx.Timeout, trust: ssl.SSLContext, resolver: Resolver) -> None:
        self._name = name
        self._timeout = timeout
        self._trust = trust
        self._backend = Backend(resolver)
        self._now = self._make()
        self.replaced = 0

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[HttpPool]:
        """Close every connection at the end."""
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._now.client.aclose()

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[httpx.AsyncClient]:
        """Lend the client for one send; replace a broken one first."""
        if self._now.broken:
            await self._replace()
        mine = self._now
        mine.under_way += 1
        try:
            yield mine.client
        finally:
            mine.under_way -= 1
            if mine.retired and not mine.under_way:
                with anyio.CancelScope(shield=True):
                    await mine.client.aclose()

    async def _replace(self) -> None:
        old, self._now = self._now, self._make()
        old.retired = True
        self.replaced += 1
        structlog.get_logger("webhook").warning(
            "webhook_pool_replaced", channel=self._name, connections=len(old.transport.pool.connections),
            under_way=old.under_way,
        )  # fmt: skip
        if not old.under_way:
            with anyio.CancelScope(shield=True):
                await old.client.aclose()

    def _make(self) -> _Generation:
        transport = _Transport(self._trust, self._backend)
        client = httpx.AsyncClient(
            transport=transport,
            follow_redirects=False,
            trust_env=False,
            # A receiver's cookie must not be sent to anyone else, nor with the next request to the same receiver.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=self._timeout,
        )
        return _Generation(client, transport)
