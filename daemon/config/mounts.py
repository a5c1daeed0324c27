"""Decides which paths of the host an agent may mount, and where. Its only I/O is resolving symbolic links.

A mount must not give a container control of the host. So it may not expose the data folder (every session's files, the
control socket) or a container engine's socket.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Final, Protocol

from schema.frozen import frozen
from schema.layout import CONTAINER_GATE, CONTAINER_SECRETS, CONTAINER_WORKSPACE

# clawbus mounts these, or the system in the container needs them. No mount may lie over, inside or above one of them.
_TAKEN: Final = tuple(
    PurePosixPath(path)
    for path in (
        *(f"{CONTAINER_WORKSPACE}/{name}" for name in ("in", "out", "agent", "home")), CONTAINER_SECRETS, CONTAINER_GATE,
        "/tmp", "/proc", "/sys", "/dev", "/etc/passwd", "/etc/group", "/opt/clawbus",  # noqa: S108
    )
)  # fmt: skip
_ENGINE_SOCKETS: Final = tuple(
    Path(path) for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock")
)
_SOCKET_NAMES: Final = ("docker.sock", "podman.sock", "containerd.sock")


class MountTable(Protocol):
    """An entry of [[agents.NAME.mounts]]: the keys that this module checks."""

    @property
    def source(self) -> str:
        """The path on the host."""
        ...

    @property
    def target(self) -> str:
        """The path in the container."""
        ...


class AgentTable(Protocol):
    """[agents.NAME]: the keys that this module checks."""

    @property
    def mounts(self) -> Sequence[MountTable]:
        """The agent's mounts."""
        ...

    @property
    def runner(self) -> Sequence[str]:
        """The operator's own runner."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """The environment variables that the table itself sets."""
        ...

    @property
    def env_file(self) -> str:
        """The path of a file with environment variables, or an empty text."""
        ...

    @property
    def secret_file(self) -> Mapping[str, str]:
        """{name of a secret: path of its file on the host}."""
        ...


@frozen
class HostPlaces:
    """Paths that no container may see. `docker_host` is the engine's address; `sockets` are this daemon's own."""

    data_dir: Path
    docker_host: str
    sockets: tuple[Path, ...] = ()


def agent_faults(name: str, agent: AgentTable, places: HostPlaces, *, mountable: bool) -> Iterator[str]:
    """Yield an error text, which begins with the key, for each fault in an agent's mounts, secrets or environment file.

    `mountable`: whether the runtime can mount at all.
    """
    if agent.mounts and not mountable:
        yield f"agents.{name}.mounts: the runtime `process` has no mounts; name the host's path in the command"
    for number, mount in enumerate(agent.mounts):
        where = f"agents.{name}.mounts[{number}]"
        source, target = source_fault(mount.source, places), _target_fault(agent, number)
        if source is not None:
            yield f"{where}.source: {source}"
        if target is not None:
            yield f"{where}.target: {target}"
    files = {f"secret_file.{secret}": path for secret, path in agent.secret_file.items()}
    for key, path in {**files, **({"env_file": agent.env_file} if agent.env_file else {})}.items():
        if not path.startswith("/"):
            yield f"agents.{name}.{key}: must be an absolute path"
    for variable in sorted({f"{secret}_FILE" for secret in agent.secret_file} & set(agent.env)):
        yield f"agents.{name}.env.{variable}: is set by agents.{name}.secret_file; rename one of them"


def source_fault(source: str, places: HostPlaces) -> str | None:
    """Return why this path of the host may not be mounted, or None. Judge the path that its symbolic links lead to."""
    if not source.startswith("/"):
        return "must be an absolute path"
    real = Path(source).resolve()
    if _overlap(real, places.data_dir.resolve()):
        return f"must not overlap clawbus's data folder {places.data_dir}, which holds all sessions"
    if real.name in _SOCKET_NAMES:
        return "must not be a container engine's socket, which makes its holder root on the host"
    host = places.docker_host
    named = (Path(host.removeprefix("unix://")),) if host.startswith("unix://") else ()
    for socket in (*_ENGINE_SOCKETS, *named, *places.sockets):
        if socket.resolve().is_relative_to(real):
            return f"must not contain the socket {socket}, which gives its holder control of the host"
    return None


def _target_fault(agent: AgentTable, number: int) -> str | None:
    target = agent.mounts[number].target
    path = PurePosixPath(target)
    if not path.is_absolute() or ".." in path.parts or "//" in target or str(path) != target.rstrip("/"):
        return "must be an absolute path without `..` or doubled slashes"
    taken = next((one for one in _TAKEN if _overlap(path, one)), None)
    if taken is not None:
        return f"overlaps {taken}, which the container already has"
    if agent.runner and path.is_relative_to(CONTAINER_WORKSPACE):
        return f"must not lie in {CONTAINER_WORKSPACE}, which is read-only for an agent with a `runner`"
    if any(PurePosixPath(other.target) == path for other in agent.mounts[:number]):
        return "is the target of an earlier mount"
    return None


def _overlap(one: PurePath, other: PurePath) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
