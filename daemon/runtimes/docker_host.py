"""Finds the configured Docker engine, and explains why it does not answer: addresses, contexts, and a fix for each failure.

Precedence: `docker.host`, $DOCKER_HOST, $DOCKER_CONTEXT, the context that `docker context use` chose, the usual socket.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from daemon.config.addresses import docker_address_fault
from daemon.core.errors import RuntimeUnavailableError
from schema.frozen import frozen
from schema.os_faults import hint_of, is_exhausted

DEFAULT: Final = "unix:///var/run/docker.sock"


@frozen
class DockerHost:
    """An engine's address, and what named it. `tls` is a context's folder of ca.pem, cert.pem and key.pem.

    `engine` is its name for people, `start` the command that starts it, `look` one that lists the known engines, `grant` the
    command that lets this process use its socket.
    """

    url: str
    source: str = "the default"
    tls: Path | None = None
    engine: str = "Docker"
    start: str = "systemctl start docker"
    look: str = "docker context ls"
    grant: str = ""

    def __str__(self) -> str:
        return f"{self.url} ({self.source})"

    @property
    def is_local(self) -> bool:
        """Reached through a socket file of this machine."""
        return self.url.startswith("unix:")


def resolve(configured: str, environ: Mapping[str, str]) -> DockerHost:
    """Return the engine that `docker.host` and the environment name.

    Raise RuntimeUnavailableError for no such context.
    """
    if configured:
        return DockerHost(configured, "docker.host")
    if environ.get("DOCKER_HOST"):
        return DockerHost(environ["DOCKER_HOST"], "DOCKER_HOST")
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or "/") / ".docker")
    name, source = environ.get("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
    if not name:
        name, source = _read(folder / "config.json").get("currentContext"), str(folder / "config.json")
    if not isinstance(name, str) or name in {"", "default"}:
        return DockerHost(DEFAULT)
    return _context(folder, name, source)


def unavailable(host: DockerHost, error: BaseException, *, tls: bool) -> RuntimeUnavailableError:
    """Return the error for a Docker that does not answer, with the reason and its fix. `tls`: $DOCKER_TLS_VERIFY is set."""
    fault = docker_address_fault(host.url)
    key = f"{host.engine.lower()}.host"
    if fault is not None:
        return RuntimeUnavailableError(
            f"{host.url!r} from {host.source} is not the address of a {host.engine} engine: {fault}.",
            hint=f"Correct it; {key} in clawbus.toml is for service and shell alike.",
            command="clawbus config check",
        )
    why, hint, command = _judged(host, error, tls=tls)
    return RuntimeUnavailableError(f"{host.engine} does not answer at {host}: {why}.", hint=hint, command=command)


def _judged(host: DockerHost, error: BaseException, *, tls: bool) -> tuple[str, str, str]:
    start = f"Start {host.engine} (`{host.start}`), or name another engine with {host.engine.lower()}.host."
    codes = {getattr(one, "errno", None) for one in _causes(error)}
    names = {type(one).__name__ for one in _causes(error)}
    for number in codes:
        if isinstance(number, int) and is_exhausted(number) and number != errno.EAGAIN:  # ours, not Docker's
            logs = "clawbus logs -n 50 --level warning"
            return f"{os.strerror(number)} in this process", hint_of(number) or start, logs
    if names & {"TLSParameterError", "SSLError", "SSLCertVerificationError"}:
        named = "DOCKER_TLS_VERIFY is set, and its certificates do not fit" if tls else "TLS fails"
        return (
            named,
            "Set DOCKER_CERT_PATH to ca.pem, cert.pem and key.pem of that engine, or unset DOCKER_TLS_VERIFY.",
            host.look,
        )
    if not host.is_local and errno.ENOENT not in codes and errno.EACCES not in codes:
        reached = "nobody listens there" if errno.ECONNREFUSED in codes else _plain(error)
        return reached, f"Start the engine there, or correct {host.source}.", host.look
    if errno.ENOENT in codes:
        return "there is no such socket", start, host.start
    if errno.ECONNREFUSED in codes:
        return "the socket exists, and no process listens on it", start, host.start
    if codes & {errno.EACCES, errno.EPERM}:
        who = _user()
        if host.grant:
            return f"the user {who} may not use this socket", f"Use this user's own: `{host.grant}`.", host.grant
        hint = f"Let the daemon's user use it (`usermod -aG docker {who}`), then start the daemon again."
        return f"the user {who} may not use this socket", hint, f"sudo usermod -aG docker {who}"
    return _plain(error), start, host.start


def was_silent(error: BaseException) -> bool:
    """Return whether the engine took the call and did not answer in time."""
    return any(isinstance(one, TimeoutError) or "timed out" in str(one).lower() for one in _causes(error))


def _plain(error: BaseException) -> str:
    """Return a sentence without a Python exception's name."""
    if was_silent(error):
        return "no answer in time"
    for one in _causes(error):
        text = getattr(one, "strerror", None)
        if text:
            return str(text).rstrip(".")
    explanation = getattr(error, "explanation", None)
    if explanation:
        return str(explanation).strip().rstrip(".")
    return "the connection broke"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return the error and all that it wraps: requests and urllib3 keep the cause in their arguments."""
    pending, seen = [error], set[int]()
    while pending:
        one = pending.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = (*one.args, one.__cause__, one.__context__, getattr(one, "reason", None))
        pending += [item for item in inner if isinstance(item, BaseException)]


def _context(folder: Path, name: str, source: str) -> DockerHost:
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = _read(folder / "contexts" / "meta" / digest / "meta.json")
    endpoints = cast("dict[str, Any]", meta.get("Endpoints") or {})
    endpoint = cast("dict[str, Any]", endpoints.get("docker") or {})
    url = endpoint.get("Host")
    if not isinstance(url, str) or not url:
        raise RuntimeUnavailableError(
            f"the Docker context {name!r} of {source} does not exist.",
            hint="`docker context ls` lists them; or set docker.host.",
            command="docker context ls",
        )
    tls = folder / "contexts" / "tls" / digest / "docker"
    return DockerHost(url, f"context {name}", tls if tls.is_dir() else None)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        loaded: object = json.loads(path.read_bytes()[:1_000_000])
        if isinstance(loaded, dict):
            return cast("dict[str, Any]", loaded)
    return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "of the daemon"
