"""The connection to dockerd: made when first needed, dropped when it fails, made anew by the next call.

Every failure that says "Docker does not answer" becomes RuntimeUnavailableError here; what Docker refuses (4xx) passes
through as docker.errors.APIError for the caller to judge. Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import docker
from docker.errors import APIError, DockerException
from docker.transport import unixconn

from daemon.errors import RuntimeUnavailableError

# What a stream that breaks in mid-answer raises. requests' own errors are OSErrors, these are not.
_StreamError: Final[type[Exception]] = cast("Any", unixconn).urllib3.exceptions.HTTPError

T = TypeVar("T")


class DockerClient:
    """A lazy, thread-safe docker.APIClient. `base_url` None means $DOCKER_HOST or the usual socket; seconds."""

    def __init__(self, *, base_url: str | None = None, timeout_s: float = 30.0) -> None:
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._client: Any = None
        self._lock = threading.Lock()

    def call(self, use: Callable[[Any], T]) -> T:
        """`use(client)`. Raises RuntimeUnavailableError, or APIError for a refusal (its status is 4xx)."""
        client: Any = None
        try:
            client = self._connected()
            return use(client)
        except APIError as error:
            if error.is_server_error():
                raise RuntimeUnavailableError(f"Docker failed: {_why(error)}.") from error
            raise
        except (DockerException, OSError, _StreamError) as error:
            self._drop(client)
            raise RuntimeUnavailableError(f"Docker does not answer: {_why(error)}.") from error

    def close(self) -> None:
        """Close the idle connections. A later call makes new ones."""
        self._drop(self._client)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        arguments: dict[str, Any] = cast("Any", docker).utils.kwargs_from_env()
        if self._base_url is not None:
            arguments = {"base_url": self._base_url}
        # The version is asked for through our own adapter: docker-py's leaks its socket when nobody listens.
        api: Any = cast("Any", docker).APIClient(version="1.41", timeout=self._timeout_s, **arguments)
        socket_path = getattr(getattr(api, "_custom_adapter", None), "socket_path", None)
        if isinstance(socket_path, str):
            api.mount("http+docker://", _UnixAdapter(f"http+unix://{socket_path}", cast("Any", self._timeout_s)))
        try:
            api._version = str(api.version(api_version=False)["ApiVersion"])  # noqa: SLF001 - as its constructor does
        except BaseException:
            api.close()
            raise
        return api

    def _drop(self, client: Any) -> None:
        with self._lock:
            if client is None or client is not self._client:
                return
            self._client = None
        client.close()


def _why(error: Exception) -> str:
    explanation = getattr(error, "explanation", None)
    return str(explanation or error).strip().rstrip(".")


class _UnixConnection(unixconn.UnixHTTPConnection):
    """docker-py's, which leaves its socket to the garbage collector when nobody listens. This one closes it."""

    def connect(self) -> None:
        """Connect, or raise OSError."""
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(self.timeout)
            peer.connect(self.unix_socket)
        except BaseException:
            peer.close()
            raise
        self.sock = peer


class _UnixPool(unixconn.UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        timeout: Any = self.timeout
        return _UnixConnection(self.base_url, self.socket_path, timeout)


class _UnixAdapter(unixconn.UnixHTTPAdapter):
    """docker-py's, with our connections."""

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """The pool of this URL. `proxies` mean nothing to a unix socket."""
        pools = cast("Any", self.pools)
        with pools.lock:
            pool = pools.get(url)
            if pool is None:
                pool = pools[url] = _UnixPool(url, self.socket_path, self.timeout, maxsize=self.max_pool_size)
            return pool
