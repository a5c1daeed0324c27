"""Podman behind Docker's API: where its socket is, how to start it, and its answers in Docker's words.

Everything that differs is here, so that the runtime is the same code for both engines. Seen with Podman 4.3.1
(`podman system service`, API 1.41); the API is described by podman-system-service(1).
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from docker.api.client import APIClient
from docker.errors import APIError, NotFound

from daemon.runtimes.docker_host import DockerHost

ROOTFUL: Final = "/run/podman/podman.sock"

# Where a process of the container's lives or may come to live. Podman's API calls a paused or a stopping one "not running".
_ALIVE: Final = frozenset({"running", "paused", "stopping"})
_NOT_STARTED: Final = frozenset({"created", "configured", "initialized"})
# Podman adds these to a read-only container, without a limit. Without write permission and copied contents they stay empty.
_UNWANTED: Final = dict.fromkeys(("/run", "/var/tmp"), "rw,noexec,nosuid,nodev,mode=755,size=64k,notmpcopyup")  # noqa: S108
_EVENT_NAMES: Final[Mapping[str, str]] = MappingProxyType({"die": "died", "destroy": "remove"})
_CONFLICT: Final = 409
_BOOTED: Final = "/run/systemd/system"  # exists where systemd is the init, sd_booted(3)
_USER_SERVICE: Final = "systemctl --user start podman.socket"


def resolve(configured: str, environ: Mapping[str, str], uid: int, *, booted: str = _BOOTED) -> DockerHost:
    """Return the Podman that `podman.host` and the environment name, else the user's own, else the machine's.

    The user's own service is chosen when its socket exists, or when the machine has none.
    """
    url, source = _address(configured, environ, uid)
    host = DockerHost(url, source, engine="Podman", look="podman system connection list", grant=_USER_SERVICE)
    return replace(host, start=_start(host, has_systemd=os.path.isdir(booted)))  # noqa: PTH112


def _address(configured: str, environ: Mapping[str, str], uid: int) -> tuple[str, str]:
    if configured:
        return configured, "podman.host"
    if environ.get("CONTAINER_HOST"):
        return environ["CONTAINER_HOST"], "CONTAINER_HOST"
    path = ROOTFUL
    if uid != 0:
        own = f"{environ.get('XDG_RUNTIME_DIR') or f'/run/user/{uid}'}/podman/podman.sock"
        path = own if os.path.exists(own) or not os.path.exists(ROOTFUL) else ROOTFUL  # noqa: PTH110 - PermissionError is False
    return f"unix://{path}", "the default"


def _start(host: DockerHost, *, has_systemd: bool) -> str:
    """Return the command that makes Podman answer at this address."""
    path = Path(host.url.removeprefix("unix://"))
    if not host.is_local:
        return host.look
    if has_systemd and str(path) in {ROOTFUL, f"/var{ROOTFUL}"}:
        return "systemctl start podman.socket"
    if has_systemd and path.parts[1:3] == ("run", "user") and path.parts[4:] == ("podman", "podman.sock"):
        return _USER_SERVICE
    folder, url = shlex.quote(str(path.parent)), shlex.quote(host.url)
    return f"mkdir -p {folder} && nohup podman system service --time=0 {url} >/dev/null 2>&1 &"


class PodmanAPI(APIClient):
    """docker-py's client for Podman, whose answers it changes into those that Docker would give."""

    _rootless: bool | None = None

    def info(self) -> dict[str, Any]:
        """Return `info` with an ID. Podman makes one up for each call: the host's name stands for it."""
        found: dict[str, Any] = cast("Any", super()).info()
        return {**found, "ID": f"Podman on {found.get('Name', '')}"}

    def containers(self, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
        """Return a listing. Without `all`, Podman would leave out containers that are paused or stopping."""
        wanted_all = bool(options.pop("all", False))
        found: list[dict[str, Any]] = cast("Any", super()).containers(*arguments, all=True, **options)
        return found if wanted_all else [one for one in found if str(one.get("State")).lower() in _ALIVE]

    def inspect_container(self, container: Any) -> dict[str, Any]:
        """Return an inspection in which `Running` is true while a process of the container may live."""
        details: dict[str, Any] = cast("Any", super()).inspect_container(container)
        state: dict[str, Any] = details["State"]
        status = str(state.get("Status")).lower()
        if status in _NOT_STARTED:
            status = "created"
        details["State"] = {**state, "Status": status, "Running": status in _ALIVE}
        return details

    def update_container(self, container: Any, *arguments: Any, **options: Any) -> Any:
        """Change a container. Podman 4 cannot change a restart policy; `kill` keeps to that."""
        with contextlib.suppress(NotFound):
            return cast("Any", super()).update_container(container, *arguments, **options)
        return {}

    def kill(self, container: Any, signal: Any = None) -> None:
        """Send a signal. A container that has ended is a conflict (409), as with Docker, not a failure of the engine.

        One with a restart policy, which clawbus never sets, gets SIGKILL: after any other signal Podman starts it again.
        """
        policy: dict[str, Any] = self.inspect_container(container)["HostConfig"].get("RestartPolicy") or {}
        if policy.get("Name") not in {None, "", "no"}:
            signal = "SIGKILL"
        try:
            cast("Any", super()).kill(container, signal)
        except APIError as error:
            if "can only kill running containers" in str(error.explanation):
                cast("Any", error.response).status_code = _CONFLICT
            raise

    def events(self, *arguments: Any, **options: Any) -> Any:
        """Return the stream. Podman's filter knows some events by names of its own."""
        filters: dict[str, Any] = dict(options.pop("filters", None) or {})
        names: list[str] = list(filters.get("event", ()))
        filters["event"] = [*names, *(_EVENT_NAMES[name] for name in names if name in _EVENT_NAMES)]
        return cast("Any", super()).events(*arguments, filters=filters, **options)

    def create_container_from_config(self, config: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Create a container. Podman would make a mount's missing source, as root, and map a rootless user to another."""
        host_config: dict[str, Any] = config.get("HostConfig") or {}
        for mount in host_config.get("Mounts") or ():
            if not os.path.lexists(mount["Source"]):
                why = f"the mount's source {mount['Source']} does not exist"
                raise APIError(why, explanation=why)
        if host_config.get("ReadonlyRootfs"):
            host_config["Tmpfs"] = {**_UNWANTED, **(host_config.get("Tmpfs") or {})}
        if self._is_rootless():
            host_config["UsernsMode"] = "keep-id"
        return cast("Any", super()).create_container_from_config(config, *arguments, **options)

    def _is_rootless(self) -> bool:
        if self._rootless is None:
            self._rootless = bool(cast("Any", super()).info().get("Rootless"))
        return self._rootless
