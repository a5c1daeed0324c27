"""The HTTP client with which the webhook channel sends. Our resolver looks up its names, and no send waits for a connection.

A pool with a limit makes requests wait for a slot. httpx has a defect there: a request that is cancelled just as it gets a
slot keeps it for ever. So this pool has no limit; the bus limits how many sends are under way. A pool with more
connections than these sends explain has leaked some, and is replaced.
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

KEPT: Final = 20  # the most idle connections
_SPARE: Final = 10  # leaked connections that are tolerated; a cancelled send may leave one
_STAGGER_S: Final = 0.25  # head start of an address over the next one
_AGAIN_S: Final = 0.2  # between two tries of a host that is short of something


def disable_sniffio() -> None:
    """Make httpcore's `import sniffio` fail at once where sniffio is not installed.

    httpcore tries it four times for each request to learn the async library, and falls back to asyncio. Each failed search of
    sys.path took 170 us. None in sys.modules makes an import fail (docs.python.org/3/reference/import.html, "The module cache").
    """
    if importlib.util.find_spec("sniffio") is None:
        cast("dict[str, ModuleType | None]", sys.modules)["sniffio"] = None


class HostShortError(httpcore.ConnectError):
    """The host could not connect: it was short of open files, memory or threads. The other end was not asked."""


class Backend(httpcore.AsyncNetworkBackend):
    """httpcore's own network backend, except that our resolver looks up the names."""

    def __init__(self, resolver: Resolver, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        disable_sniffio()
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
        """Look up the name and connect, within `timeout` seconds in all (None: no limit).

        While this host is short of something, try again within that time. Raise httpcore.ConnectError,
        httpcore.ConnectTimeout or HostShortError.
        """
        options = list(socket_options or ())
        short: OSError | None = None
        try:
            with anyio.fail_after(timeout):
                while True:
                    try:
                        addresses = await self.addresses(host, port)
                        return await self._connect_any(addresses, port, local_address, options)
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
        """Return the addresses of a host name, best first; a subclass may refuse some. Raise OSError."""
        del port
        return await self._resolver.resolve(host)

    async def _connect_any(
        self, addresses: tuple[str, ...], port: int, local: str | None, options: list[httpcore.SOCKET_OPTION]
    ) -> httpcore.AsyncNetworkStream:
        """Return a connection to the address that accepts first. Raise httpcore.ConnectError if none does.

        Try the next address after _STAGGER_S, or as soon as the last one tried has failed.
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
        """Sleep for this many seconds."""
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
    """httpx's transport with a pool that uses our backend; httpx has no parameter for one."""

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
    """One client and its pool. A retired one takes no new sends, and is closed when its last one ends."""

    client: httpx.AsyncClient
    transport: _Transport
    under_way: int = 0
    retired: bool = False

    @property
    def broken(self) -> bool:
        """Whether the pool holds too many connections that belong to no send."""
        return len(self.transport.pool.connections) > self.under_way + KEPT + _SPARE


class HttpPool:
    """Lends an HTTP client for each send. Usable only inside `open()`."""

    def __init__(self, name: str, timeout: httpx.Timeout, trust: ssl.SSLContext, resolver: Resolver) -> None:
        self._name = name
        self._timeout = timeout
        self._trust = trust
        self._backend = Backend(resolver)
        self._current = self._make()
        self.replaced = 0  # how often the pool was replaced

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[HttpPool]:
        """Return a context manager. It closes the connections when it ends."""
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._current.client.aclose()

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[httpx.AsyncClient]:
        """Return a context manager that lends the client for one send. Replace a broken pool first."""
        if self._current.broken:
            await self._replace()
        mine = self._current
        mine.under_way += 1
        try:
            yield mine.client
        finally:
            mine.under_way -= 1
            if mine.retired and not mine.under_way:
                with anyio.CancelScope(shield=True):
                    await mine.client.aclose()

    async def _replace(self) -> None:
        old, self._current = self._current, self._make()
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
