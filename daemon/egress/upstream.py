"""The gate's way to the targets: names are looked up once and checked, and the connection goes to what was checked.

A connection may serve several sessions in turn: each request is parsed and framed again, so none can smuggle in a second one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import anyio
import httpcore

from daemon.core.public_addresses import is_public
from daemon.egress.headers import Headers
from daemon.egress.refusals import HostTroubledError, PrivateTargetError, UpstreamError, UpstreamTimeoutError
from daemon.egress.rules import Target
from daemon.http.pool import Backend, HostShortError
from daemon.http.resolver import Resolver

_KEPT: Final = 64  # idle connections
_KEPT_S: Final = 15.0  # shorter than what servers allow, so that few requests meet a connection that is being closed


class GuardedBackend(Backend):
    """Connects to public addresses and to the named exceptions (host and port as the configuration writes them)."""

    def __init__(self, resolver: Resolver, private_targets: frozenset[tuple[str, int]]) -> None:
        super().__init__(resolver)
        self._private_targets = private_targets

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Return the checked addresses. Raise OSError, and PrivateTargetError if one of them is not public."""
        found = await super().addresses(host, port)
        if (host.lower(), port) not in self._private_targets:
            for address in found:
                if not is_public(address):
                    resolved = "" if address == host else f" resolves to {address}, which"
                    raise PrivateTargetError(f"{host}:{port}{resolved} is not a public address.")
        return found


class Upstream:
    """Usable until `aclose`. Raises EgressRefusals only."""

    def __init__(self, backend: GuardedBackend, trust: ssl.SSLContext, *, connect_s: float, silence_s: float) -> None:
        self._backend = backend
        self._connect_s = connect_s
        self._timeouts = {"connect": connect_s, "read": silence_s, "write": silence_s, "pool": connect_s}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust,
            max_connections=None,  # the gate bounds its clients' connections, and each uses one
            max_keepalive_connections=_KEPT,
            keepalive_expiry=_KEPT_S,
            network_backend=backend,
        )

    @asynccontextmanager
    async def request(
        self, target: Target, method: bytes, headers: Headers, body: AsyncIterable[bytes] | None
    ) -> AsyncGenerator[httpcore.Response]:
        """Send a request and yield the response as soon as its head has arrived; its body is read with `aiter_stream`."""
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        request = httpcore.Request(
            method, url, headers=headers, content=body, extensions={"timeout": self._timeouts}
        )  # fmt: skip
        with as_refusals(f"{target.host}:{target.port}"):
            response = await self._pool.handle_async_request(request)
        try:
            yield response
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    async def connect(self, target: Target) -> httpcore.AsyncNetworkStream:
        """Open a connection for a tunnel."""
        with as_refusals(f"{target.host}:{target.port}"):
            return await self._backend.connect_tcp(target.host, target.port, self._connect_s)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


@contextmanager
def as_refusals(where: str) -> Generator[None]:
    """Turn httpcore's errors about the target into ours."""
    try:
        yield
    except HostShortError as error:
        raise HostTroubledError(str(error)) from error
    except httpcore.TimeoutException as error:
        raise UpstreamTimeoutError(f"{where} did not answer in time: {str(error) or type(error).__name__}.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise UpstreamError(f"{where}: {str(error)[:200] or type(error).__name__}.") from error
