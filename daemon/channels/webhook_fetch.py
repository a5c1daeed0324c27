"""Downloads the files that a signed request names by URL, from the hosts that its hook allows.

A name is looked up once: when any of its addresses is not a public one, nothing is connected, as at the agents' gate
(`core/public_addresses.py`). No redirect is followed, nothing is sent along, and size and time are limited.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpcore
import httpx

from daemon.channels.webhook_refusals import BodyRefusedError, FileFetchError
from daemon.channels.webhook_uploads import NamedUrl
from daemon.config.egress import split_target
from daemon.core.attachments import Attachment, FilesToFetch
from daemon.core.errors import BodyTooLargeError
from daemon.core.public_addresses import is_public
from daemon.http.pool import Backend, HostShortError
from daemon.http.resolver import Resolver
from schema.errors import HostTroubleError
from schema.plain_names import clean_name, looks

MAX_URLS: Final = 20
_STEP_S: Final = 10.0


class _PrivateError(Exception):
    """A name leads to an address that is not public."""


class _PublicBackend(Backend):
    """Connects to allowed addresses alone."""

    def __init__(self, resolver: Resolver, allowed: Callable[[str], bool]) -> None:
        super().__init__(resolver)
        self._allowed = allowed

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Return the addresses. Raise OSError, and _PrivateError if one of them is not allowed."""
        found = await super().addresses(host, port)
        if not all(self._allowed(one) for one in found):
            raise _PrivateError
        return found


class FileFetcher:
    """Downloads files inside `open()`. `max_bytes` limits all files of one request, `total_s` their time in seconds."""

    def __init__(
        self, resolver: Resolver, max_bytes: int, total_s: float, allowed: Callable[[str], bool] = is_public
    ) -> None:
        self._backend = _PublicBackend(resolver, allowed)
        self._max_bytes = max_bytes
        self._total_s = total_s
        self._pool: httpcore.AsyncConnectionPool | None = None

    @asynccontextmanager
    async def open(self, trust: ssl.SSLContext) -> AsyncGenerator[None]:
        """Open the client until this context ends."""
        async with httpcore.AsyncConnectionPool(
            ssl_context=trust, max_connections=None, max_keepalive_connections=0, network_backend=self._backend
        ) as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None

    def later(
        self, wanted: Sequence[NamedUrl], hosts: Sequence[str], before: Sequence[Attachment]
    ) -> FilesToFetch | None:
        """Return the files for `fetch` to get when they are needed, once for all agents of an event. None if there are none."""
        if not wanted:
            return None
        lock, found = anyio.Lock(), list[tuple[Attachment, ...]]()

        async def fetch() -> tuple[Attachment, ...]:
            async with lock:
                if not found:
                    found.append(await self.fetch(wanted, hosts, before))
            return found[0]

        return FilesToFetch(len(wanted), fetch)

    async def fetch(
        self, wanted: Sequence[NamedUrl], hosts: Sequence[str], before: Sequence[Attachment]
    ) -> tuple[Attachment, ...]:
        """Return the files. `hosts` are HOST:PORT, `before` files that came with the request.

        Raise BodyRefusedError for a URL that is not allowed, BodyTooLargeError, and FileFetchError when the host fails.
        """
        if len(wanted) > MAX_URLS:
            raise BodyRefusedError(f"more than {MAX_URLS} files are named by URL.")
        files = list(before)
        try:
            with anyio.fail_after(self._total_s):
                for one in wanted:
                    url = checked_url(one.url, hosts)
                    room = self._max_bytes - sum(len(file.data) for file in files)
                    data = await self._download(url, room)
                    files.append(Attachment(clean_name(one.name, {looks(file.name) for file in files}), data))
        except TimeoutError as error:
            raise FileFetchError(f"the files did not come within {self._total_s:g} s.") from error
        return tuple(files[len(before) :])

    async def _download(self, url: httpcore.URL, room: int) -> bytes:
        where = url.host.decode("ascii")
        if self._pool is None:
            raise FileFetchError("the channel is not running.")
        step = {"connect": _STEP_S, "read": _STEP_S, "write": _STEP_S, "pool": _STEP_S}
        headers = [(b"accept-encoding", b"identity")]
        try:
            async with self._pool.stream("GET", url, headers=headers, extensions={"timeout": step}) as response:
                if response.status != 200:
                    raise _refusal(where, response.status)
                data = bytearray()
                async for chunk in response.aiter_stream():
                    data += chunk
                    if len(data) > room:
                        raise BodyTooLargeError(
                            "the files named by URL are over max_body_bytes together.",
                            hint="Send fewer, or raise the channel's max_body_bytes.",
                        )
                return bytes(data)
        except _PrivateError as error:
            raise BodyRefusedError(f"{where} is not at a public address.", hint="Send the file itself.") from error
        except HostShortError as error:
            raise HostTroubleError(f"the files of a request cannot be fetched: {error}.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise FileFetchError(f"{where}: {type(error).__name__}.") from error


def _refusal(where: str, status: int) -> Exception:
    if status in (408, 429) or status >= 500:
        return FileFetchError(f"{where} answered {status}.")
    return BodyRefusedError(f"{where} answered {status} for a file.", hint="Name a URL that gives the file at once.")


def checked_url(text: str, hosts: Sequence[str]) -> httpcore.URL:
    """Return the URL, if the hook allows its host and port. Raise BodyRefusedError."""
    try:
        parsed = httpx.URL(text)  # escapes what no request line may hold
        parts = urlsplit(str(parsed))
        host, port = (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    except (httpx.InvalidURL, ValueError) as error:
        raise BodyRefusedError("a file's `url` is not a URL.") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or not host.isascii():
        raise BodyRefusedError("a file's `url` needs http or https, a host, and no user name.")
    if not any(_is_host(host, port, split_target(one, wildcard=True)) for one in hosts):
        raise BodyRefusedError(
            f"files from {host[:100]}:{port} are not taken.", hint="The hook's file_hosts names the hosts that are."
        )
    target = parsed.raw_path
    return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target)


def _is_host(host: str, port: int, entry: tuple[str, int]) -> bool:
    wanted, wanted_port = entry
    if port != wanted_port:
        return False
    return host.endswith(wanted[1:]) if wanted.startswith("*.") else host == wanted
