"""The connection to dockerd: made on first use, dropped when it fails, and made again by the next call.

Every failure that says "Docker does not answer" becomes RuntimeUnavailableError here; what Docker refuses (4xx) passes
through as docker.errors.APIError for the caller to judge. Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import docker
from docker.errors import APIError, DockerException
from docker.transport import unixconn

from daemon.config.addresses import docker_address_fault
from daemon.config.models import Config, EngineKind
from daemon.config.policies import engine_of
from daemon.core.errors import ContainerTroubleError, RuntimeUnavailableError
from daemon.runtimes import docker_podman
from daemon.runtimes.docker_host import DockerHost, resolve, unavailable, was_silent

# What a stream that breaks in mid-answer raises. requests' own errors are OSErrors, these are not.
_StreamError: Final[type[Exception]] = cast("Any", unixconn).urllib3.exceptions.HTTPError

T = TypeVar("T")


class DockerClient:
    """A lazy, thread-safe docker.APIClient of an `engine`. Without a `base_url`, the environment names it (docker_host.py).

    `name` is the engine's, for people. Seconds.
    """

    def __init__(self, *, base_url: str | None = None, timeout_s: float = 30.0, engine: EngineKind = "docker") -> None:
        self._base_url = base_url
        self.engine: Final = engine
        self.name: Final = "Podman" if engine == "podman" else "Docker"
        self._timeout_s = timeout_s
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def host(self) -> DockerHost:
        """The engine's address. Raise RuntimeUnavailableError when the environment names no usable one."""
        if self.engine == "podman":
            return docker_podman.resolve(self._base_url or "", os.environ, os.getuid())
        return resolve(self._base_url or "", os.environ)

    def call(self, use: Callable[[Any], T]) -> T:
        """Return `use(client)`. Raise RuntimeUnavailableError, or APIError for a refusal (its status is 4xx)."""
        client: Any = None
        try:
            client = self._connected()
            return use(client)
        except APIError as error:
            if error.is_server_error():
                raise RuntimeUnavailableError(f"{self.name} failed: {_why(error)}.") from error
            raise
        except (DockerException, OSError, _StreamError, ValueError) as error:
            self._drop(client)
            raise unavailable(self.host, error, tls=bool(os.environ.get("DOCKER_TLS_VERIFY"))) from error

    def call_about(self, use: Callable[[Any], T]) -> T:
        """As `call`, for a call about one container. Raise ContainerTroubleError if the engine fails at this one alone."""
        try:
            return self.call(use)
        except RuntimeUnavailableError as error:
            if not self.answers_in_spite_of(error):
                raise
            cause = error.__cause__
            why = _why(cause) if isinstance(cause, APIError) else "no answer in time"
            raise ContainerTroubleError(f"{self.name} answers, but failed at a container: {why}.") from cause

    def answers_in_spite_of(self, error: RuntimeUnavailableError) -> bool:
        """Return whether this error, a 5xx or a silence, was about one thing: the engine answers a ping."""
        cause = error.__cause__
        if cause is None or not (isinstance(cause, APIError) or was_silent(cause)):
            return False
        try:
            self.call(lambda api: api.ping())
        except (RuntimeUnavailableError, APIError):
            return False
        return True

    def close(self) -> None:
        """Close the idle connections. A later call makes new ones."""
        self._drop(self._client)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        arguments = _arguments(self.host)
        # The version is asked for through our own adapter: docker-py's leaks its socket when the connection is refused.
        client: Any = docker_podman.PodmanAPI if self.engine == "podman" else cast("Any", docker).APIClient
        api: Any = client(version="1.41", timeout=self._timeout_s, **arguments)
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


def engine_client(config: Config, timeout_s: float | None = None) -> DockerClient:
    """Return a client of the engine that the configuration names. `timeout_s` overrides the configured time-out."""
    kind, url = engine_of(config)
    return DockerClient(base_url=url, timeout_s=timeout_s or config.docker.timeout_s, engine=kind)


def _arguments(host: DockerHost) -> dict[str, Any]:
    """Return docker-py's arguments. Use TLS for network addresses only, whatever the environment says about a local socket."""
    if docker_address_fault(host.url) is not None:
        raise ValueError(host.url)
    if host.is_local:
        return {"base_url": host.url}
    library = cast("Any", docker)
    if host.tls is not None:
        names = [str(host.tls / name) for name in ("cert.pem", "key.pem")]
        tls = library.tls.TLSConfig(client_cert=tuple(names), ca_cert=str(host.tls / "ca.pem"), verify=True)
        return {"base_url": host.url.replace("tcp://", "https://", 1), "tls": tls}
    return library.utils.kwargs_from_env(environment={**os.environ, "DOCKER_HOST": host.url})


def _why(error: Exception) -> str:
    explanation = getattr(error, "explanation", None)
    return str(explanation or error).strip().rstrip(".")


class _UnixConnection(unixconn.UnixHTTPConnection):
    """Closes its socket when the connection is refused. docker-py's own adapter leaves it to the garbage collector."""

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
    """docker-py's adapter with our connections."""

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """Return the pool of this URL. `proxies` mean nothing to a unix socket."""
        pools = cast("Any", self.pools)
        with pools.lock:
            pool = pools.get(url)
            if pool is None:
                pool = pools[url] = _UnixPool(url, self.socket_path, self.timeout, maxsize=self.max_pool_size)
            return pool
