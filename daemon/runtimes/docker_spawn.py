"""Starts one container: removes the session's dead ones, creates the new one locked down, starts it. Blocks; use a thread.

Never removes or kills a container that runs: a running one of the same name is another container of the same session.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from typing import Any, Final, cast

from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import LogConfig
from docker.types import Mount as DockerMount

from daemon.core.command_words import two_words
from daemon.core.errors import ClawbusError, ContainerTroubleError, ImageError, RuntimeUnavailableError, SpawnError
from daemon.runtimes.docker_client import DockerClient
from daemon.runtimes.docker_image import UsableImage
from daemon.runtimes.protocol import ContainerSpec, Running
from daemon.runtimes.spec import (
    LABEL_AGENT,
    LABEL_FINGERPRINT,
    LABEL_INCARNATION,
    LABEL_INSTALL,
    LABEL_SESSION,
    labels,
)
from schema.errors import InvalidNameError
from schema.ids import check_name, check_session
from schema.instants import from_text, to_text
from schema.layout import CONTAINER_AGENT, CONTAINER_HOME, CONTAINER_OUT, HEARTBEAT, OUTBOUND_DB
from schema.os_faults import host_error, passes

ENDED: Final = frozenset({"exited", "dead"})  # states in the engine's listing
_TMP_BYTES_MAX: Final = 256 * 1024**2
_LOG_MAX_SIZE: Final = "5m"
_LOG_MAX_FILES: Final = "3"


class Spawner:
    """Creates and starts containers. `forget` gets what `docker inspect` says about a dead container and removes it."""

    def __init__(self, client: DockerClient, install_id: str, *, forget: Callable[[dict[str, Any]], None]) -> None:
        self._client = client
        self._install_id = install_id
        self._forget = forget

    def spawn(self, spec: ContainerSpec, image: UsableImage, cancelled: threading.Event) -> Running:
        """Start the container and return once Docker has started it. Raise as `ContainerRuntime.spawn` does.

        When `cancelled` is set before the start, remove the new container and raise SpawnError.
        """
        self._clear_leftovers(spec)
        _hand_over(spec)
        container_id = self._create(spec, image)
        if cancelled.is_set():
            self._undo(container_id)
            raise SpawnError(f"{spec.name} is no longer wanted.")
        return self._start(spec, container_id)

    def _clear_leftovers(self, spec: ContainerSpec) -> None:
        """Remove the session's dead containers, found by label or name. Raise SpawnError if one of them runs."""
        labelled = [
            f"{name}={labels(spec)[name]}" for name in (LABEL_INSTALL, LABEL_AGENT, LABEL_SESSION)
        ]  # fmt: skip
        found: list[dict[str, Any]] = self._asked(
            spec, lambda api: api.containers(all=True, filters={"label": labelled})
        )
        for summary in found:
            try:
                self._clear(spec, summary["Id"])
            except ContainerTroubleError as error:
                if summary.get("State") not in ENDED:
                    raise
                if f"/{spec.name}" in (summary.get("Names") or ()):
                    self._move_aside(spec, summary["Id"], error)
        self._clear(spec, spec.name)

    def _clear(self, spec: ContainerSpec, id_or_name: str) -> None:
        try:
            details: dict[str, Any] = self._asked(spec, lambda api: api.inspect_container(id_or_name))
        except NotFound:
            return
        found = labels_of(details)
        if found.get(LABEL_INSTALL) != self._install_id:
            raise SpawnError(
                f"the container name {spec.name} belongs to something else.",
                hint=f"See what it is: `docker inspect {spec.name}`. Then rename or remove it.",
            )
        if details["State"]["Running"] or details["State"].get("Restarting"):
            raise SpawnError(
                f"container {details['Id'][:12]} of this session still runs as incarnation"
                f" {found.get(LABEL_INCARNATION)}.",
                hint=f"The daemon ends it; if it does not: clawbus session kill {two_words(spec.agent, spec.session)}",
            )
        self._forget(details)

    def _move_aside(self, spec: ContainerSpec, container_id: str, why: ContainerTroubleError) -> None:
        """Rename a dead container that the engine cannot show or remove, so that its name is free for the session's next one."""
        try:
            self._client.call_about(lambda api: api.rename(container_id, f"{spec.name}-{container_id[:12]}"))
        except (APIError, ContainerTroubleError) as error:
            raise SpawnError(
                f"the dead container {container_id[:12]} is in the way: {why}",
                hint=f"docker rm -f {container_id[:12]}; if that fails as well, restart {self._client.name}.",
            ) from error

    def _asked(self, spec: ContainerSpec, call: Callable[[Any], Any]) -> Any:
        try:
            return self._client.call_about(call)
        except NotFound:
            raise
        except APIError as error:
            raise SpawnError(f"{self._client.name} could not look up {spec.name}: {error.explanation}.") from error

    def _create(self, spec: ContainerSpec, image: UsableImage) -> str:
        try:
            created: dict[str, Any] = self._client.call(
                lambda api: api.create_container(
                    image.id,
                    entrypoint=list(spec.runner) or None,  # None keeps the image's entrypoint
                    name=spec.name,
                    labels=labels(spec),
                    environment=_environment(spec),
                    user=spec.user,
                    working_dir=CONTAINER_AGENT,
                    host_config=_host_config(api, spec),
                )
            )
        except ImageNotFound as error:
            raise ImageError(f"the image {spec.image} is missing.") from error
        except APIError as error:
            raise SpawnError(f"{self._client.name} refused to create {spec.name}: {error.explanation}.") from error
        except RuntimeUnavailableError as error:
            raise self._judged(error, spec) from error
        return created["Id"]

    def _start(self, spec: ContainerSpec, container_id: str) -> Running:
        try:
            self._client.call(lambda api: api.start(container_id))
        except APIError as error:
            self._undo(container_id)
            raise SpawnError(f"{self._client.name} refused to start {spec.name}: {error.explanation}.") from error
        except RuntimeUnavailableError as error:
            judged = self._judged(error, spec)
            if isinstance(judged, SpawnError):
                self._undo(container_id)
            raise judged from error
        try:
            details = self._client.call(lambda api: api.inspect_container(container_id))
        except APIError as error:
            raise RuntimeUnavailableError(
                f"{self._client.name} started {spec.name} and could not inspect it: {error.explanation}."
            ) from error
        running = running_of(details)
        if running is None:
            raise RuntimeUnavailableError(f"{self._client.name} reported {spec.name} without its labels.")
        return running

    def _judged(self, error: RuntimeUnavailableError, spec: ContainerSpec) -> ClawbusError:
        """Return the error to raise: a SpawnError if Docker answers a ping, as the 5xx is then about this container.

        Docker answers 500 also for a cgroup that it cannot create, or for a program that the image lacks.
        """
        cause = error.__cause__
        if not isinstance(cause, APIError):
            return error
        if not self._client.answers_in_spite_of(error):
            return error
        return SpawnError(f"{self._client.name} failed to start {spec.name}: {cause.explanation}.")

    def _undo(self, container_id: str) -> None:
        """Remove a container that was created and does not run.

        If that fails, the container may still exist. The protocol allows that only with RuntimeUnavailableError.
        """
        try:
            self._client.call(lambda api: api.remove_container(container_id, v=True, force=False))
        except NotFound:
            return
        except APIError as error:
            raise RuntimeUnavailableError(
                f"{self._client.name} could not remove a container that did not start: {error.explanation}."
            ) from error


def _hand_over(spec: ContainerSpec) -> None:
    """Give the mounted folders and the runner's files to the container's user.

    They belong to another user after a change of docker.user, or when the `process` runtime ran as root. No container of the
    session runs now. Only folders and regular files without a second hard link change hands: the agent may have put a link
    to any file in their place.
    """
    uid, _, gid = spec.user.partition(":")
    owner = int(uid), int(gid or uid)
    for mount in (mount for mount in spec.mounts if mount.target in (CONTAINER_OUT, CONTAINER_HOME)):
        names = (OUTBOUND_DB, f"{OUTBOUND_DB}-journal", HEARTBEAT) if mount.target == CONTAINER_OUT else ()
        files = (mount.source / name for name in names)
        for path in (mount.source, *files):
            try:
                status = path.lstat()
                safe = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
                if safe and status.st_uid != owner[0]:
                    os.chown(path, *owner, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                if passes(error):
                    raise host_error(error, f"{path} cannot be given to {spec.user}") from error
                raise SpawnError(
                    f"{path} belongs to another user, and cannot be given to {spec.user}: {error.strerror}.",
                    hint=f"As root: chown {spec.user} {path}",
                ) from error


def labels_of(details: dict[str, Any]) -> dict[str, str]:
    """Return the labels from `docker inspect`. Docker writes null when there are none."""
    return cast("dict[str, str]", details["Config"].get("Labels") or {})


def details_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the listing says about a running container in the form of `docker inspect`, which failed at it.

    It was created just before its start, and a restart policy is not listed.
    """
    started = to_text(int(summary.get("Created") or 0) * 1000)
    state = {"Running": True, "Paused": summary.get("State") == "paused", "StartedAt": started}
    return {"Id": summary["Id"], "Config": {"Labels": summary.get("Labels")}, "State": state, "HostConfig": {}}


def running_of(details: dict[str, Any]) -> Running | None:
    """Return a Running from `docker inspect`, or None when one of clawbus's labels is missing or invalid."""
    found = labels_of(details)
    try:
        return Running(
            container_id=details["Id"],
            agent=check_name("agent", found[LABEL_AGENT]),
            session=check_session(found[LABEL_SESSION]),
            incarnation=found[LABEL_INCARNATION],
            fingerprint=found[LABEL_FINGERPRINT],
            started_at=started_ms(details),
            restarts=restarts_by_itself(details),
            paused=bool(details["State"].get("Paused")),
        )
    except (KeyError, InvalidNameError):
        return None


def started_ms(details: dict[str, Any]) -> int:
    """Return when the container was last started, in epoch milliseconds; 0 if Docker does not say."""
    found = from_text(_to_milliseconds(details["State"].get("StartedAt")))
    return found if found is not None else 0


def restarts_by_itself(details: dict[str, Any]) -> bool:
    """Return whether the container has a restart policy. clawbus never sets one, but someone else may have."""
    policy = cast("dict[str, Any]", details["HostConfig"].get("RestartPolicy") or {})
    return policy.get("Name") not in {None, "", "no"}


def _to_milliseconds(text: object) -> object:
    """Cut a timestamp's fraction of a second to three digits. Docker writes up to nine; Python reads at most six."""
    if not isinstance(text, str) or "." not in text:
        return text
    head, _, tail = text.partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    return f"{head}.{digits[:3].ljust(3, '0')}{tail[len(digits) :]}"


def _environment(spec: ContainerSpec) -> dict[str, str]:
    # Override a HOME of the image: that folder is read-only here, and does not belong to the session.
    return {"HOME": CONTAINER_HOME, **spec.environment}


def _host_config(api: Any, spec: ContainerSpec) -> Any:
    limits = spec.limits
    tmp_bytes = min(limits.memory_bytes // 2, _TMP_BYTES_MAX)
    return api.create_host_config(
        init=True,
        read_only=True,
        tmpfs={"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={tmp_bytes}"},  # noqa: S108 - the container's, not ours
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        pids_limit=limits.pids,
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,  # the sum of both: no swap
        nano_cpus=int(limits.cpus * 1_000_000_000),
        network_mode=spec.network,
        mounts=[
            # Not `binds`: Docker would create a missing source folder, owned by root.
            DockerMount(mount.target, str(mount.source), type="bind", read_only=mount.read_only)
            for mount in spec.mounts
        ],
        log_config=LogConfig(type="json-file", config={"max-size": _LOG_MAX_SIZE, "max-file": _LOG_MAX_FILES}),
        restart_policy={"Name": "no"},
    )
