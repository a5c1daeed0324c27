"""Runtimes `docker` and `podman`: agents in containers, locked down. With the docker_*.py beside it the sole caller of docker-py.

Every call blocks in a worker thread with the API's time-out; a cancelled caller leaves at once and the thread ends by
itself. Docker's own listing and inspection are the truth: nothing is remembered here about what runs.
Never kills a container in order to start another.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import structlog
from anyio import to_thread
from docker.errors import APIError, NotFound

from daemon.config.models import EngineKind
from daemon.core.errors import (
    ContainerGoneError,
    ContainerTroubleError,
    EngineChangedError,
    NotConfirmedError,
    RuntimeUnavailableError,
)
from daemon.runtimes import output_log
from daemon.runtimes.answering import answering
from daemon.runtimes.docker_client import DockerClient
from daemon.runtimes.docker_events import ExitEvents
from daemon.runtimes.docker_image import UsableImage, usable_image
from daemon.runtimes.docker_spawn import (
    ENDED,
    Spawner,
    details_of,
    labels_of,
    restarts_by_itself,
    running_of,
    started_ms,
)
from daemon.runtimes.protocol import ContainerSpec, Exit, Running
from daemon.runtimes.spec import LABEL_INCARNATION, LABEL_INSTALL, LABEL_STDERR_LOG

T = TypeVar("T")

_THREADS: Final = 16
_GONE: Final = frozenset(
    {304, 404, 409}
)  # not modified, no such container, not running: all mean there is nothing to do
_LOG_LINES: Final = 2000


class DockerRuntime:
    """ContainerRuntime over dockerd, or over Podman's service (docker_podman.py).

    `image` is the default agent image; every image must carry `source_digest` (runtimes/image_source.py). Seconds:
    `timeout_s` is for one API call, `poll_s` is how often a wait polls without an event.
    """

    def __init__(
        self,
        install_id: str,
        *,
        image: str,
        source_digest: str,
        timeout_s: float = 30.0,
        base_url: str | None = None,
        poll_s: float = 5.0,
        engine: EngineKind = "docker",
    ) -> None:
        self.name = engine
        self._pinned: str | None = None
        self._install_id = install_id
        self._image = image
        self._source_digest = source_digest
        self._poll_s = poll_s
        self._client = DockerClient(base_url=base_url, timeout_s=timeout_s, engine=engine)
        self._events = ExitEvents(self._client, install_id)
        self._spawner = Spawner(self._client, install_id, forget=partial(self._forget, at_last=True))
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._log = structlog.get_logger(runtime=self.name)

    @property
    def address(self) -> str:
        """The engine's address, and where it is configured."""
        return str(self._client.host)

    async def identity(self) -> str:
        """Return the ID that `docker info` shows, and the engine's data folder.

        Until Docker 24 the ID is the machine's: two engines on it share /etc/docker/key.json, and never a data folder.
        """
        return await self._in_thread(self._identity)

    def pin(self, identity: str | None) -> None:
        """See the protocol."""
        self._pinned = identity

    async def may_live(self, incarnation: str) -> bool:
        """Return whether a container with this incarnation's label exists that runs or may start."""
        return await self._in_thread(partial(self._may_live, incarnation))

    async def check(self, image: str | None = None, *, own_runner: bool = False) -> None:
        """Raise RuntimeUnavailableError if Docker does not answer, ImageError if the image cannot be used."""
        await self._in_thread(partial(self._usable, image or self._image, own_runner=own_runner))

    async def spawn(self, spec: ContainerSpec) -> Running:
        """Start a container from an image that was just checked.

        SpawnError when a container of this session runs already, or Docker refuses. A cancelled spawn does not start
        what it has not started yet; what was already starting shows in `find_or_cancel_spawn`.
        """
        cancelled = threading.Event()
        try:
            return await self._in_thread(partial(self._spawn, spec, cancelled))
        except BaseException:
            cancelled.set()
            raise

    async def stop(self, container_id: str) -> None:
        """Send SIGTERM to the container's init, which passes it to the runner."""
        await self._in_thread(partial(self._signal, container_id, "SIGTERM"))

    async def kill(self, container_id: str) -> None:
        """Send SIGKILL to the container's init. The kernel then ends everything in its namespace."""
        await self._in_thread(partial(self._signal, container_id, "SIGKILL"))

    async def wait(self, container_id: str, started_at: int | None = None) -> Exit:
        """Return once Docker says that it does not run. While Docker is away nothing is known, so this waits on.

        A container that is gone when Docker answers: code None. Signals are 128 + number.
        """
        with self._events.waiter(container_id) as waiter:
            while True:
                try:
                    ended = await self._in_thread(partial(self._exit_of, container_id, started_at))
                except RuntimeUnavailableError:
                    ended = None
                if ended is not None:
                    return ended
                with anyio.move_on_after(self._poll_s):
                    await waiter.rung()

    async def forbid_restart(self, container_id: str) -> None:
        """Set the container's restart policy to `no`."""
        await self._in_thread(partial(self._forbid_restart, container_id))

    async def changed(self) -> None:
        """Wait until Docker reports an event of a container of this install."""
        with self._events.waiter(None) as waiter:
            await waiter.rung()

    async def list_running(self) -> list[Running]:
        """Return every running container with this install's label; one with broken labels is logged and left out."""
        return await self._in_thread(self._list_running)

    async def find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        """Remove a container that was created and not started: Docker then refuses a start that is still under way."""
        return await self._in_thread(partial(self._find_or_cancel_spawn, incarnation))

    async def logs(self, container_id: str, *, max_bytes: int = 65_536) -> str:
        """Return the end of the container's stdout and stderr. Raise ContainerGoneError for an unknown container."""
        data = await self._in_thread(partial(self._output, container_id))
        return data[-max_bytes:].decode("utf-8", "replace")

    async def remove(self, container_id: str) -> None:
        """Keep the container's output in the session's log, then remove it. Raise NotConfirmedError while it runs."""
        await self._in_thread(partial(self._remove, container_id))

    async def aclose(self) -> None:
        """End the event thread, close the connections, kill nothing."""
        with anyio.CancelScope(shield=True):
            # Not through the limiter: threads that hang on Docker must not keep the daemon from ending.
            await to_thread.run_sync(self._events.close, limiter=anyio.CapacityLimiter(1))
            self._client.close()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        with answering(self.name):
            return await to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)

    def _usable(self, image: str, *, own_runner: bool = False) -> UsableImage:
        return usable_image(self._client, image, None if own_runner else self._source_digest)

    def _identity(self) -> str:
        try:
            info: dict[str, Any] = self._client.call(lambda api: api.info())
        except APIError as error:
            raise RuntimeUnavailableError(f"{self._client.name} did not say who it is: {error.explanation}.") from error
        return f"{info['ID']} in {info.get('DockerRootDir')}" if info.get("ID") else ""

    def _believe(self) -> None:
        """Check the engine before treating something as absent. Raise EngineChangedError if another engine answers."""
        pinned = self._pinned
        if pinned and (found := self._identity()) != pinned:
            raise EngineChangedError(
                f"the {self._client.name} engine at {self.address} is {found}, and the containers of this installation run on {pinned}."
            )

    def _is_listed_as_ended(self, container_id: str) -> bool:
        listed = self._listed({"id": container_id}, all=True)
        if not listed:
            self._believe()
        return all(one.get("State") in ENDED for one in listed)

    def _listed(self, filters: dict[str, Any], *, all: bool = False) -> list[dict[str, Any]]:  # noqa: A002 - docker-py's name
        """Return the summaries of containers. Raise RuntimeUnavailableError."""
        try:
            found: list[dict[str, Any]] = self._client.call(lambda api: api.containers(all=all, filters=filters))
        except APIError as error:
            raise RuntimeUnavailableError(
                f"{self._client.name} did not list containers: {error.explanation}."
            ) from error
        return found

    def _may_live(self, incarnation: str) -> bool:
        found = self._listed({"label": f"{LABEL_INCARNATION}={incarnation}"}, all=True)
        return any(one.get("State") not in ENDED for one in found)

    def _spawn(self, spec: ContainerSpec, cancelled: threading.Event) -> Running:
        self._believe()
        return self._spawner.spawn(spec, self._usable(spec.image, own_runner=bool(spec.runner)), cancelled)

    def _signal(self, container_id: str, signal: str) -> None:
        with contextlib.suppress(ContainerTroubleError):  # what cannot be shown may be ended all the same
            self._forbid_restart(container_id)
        try:
            self._client.call_about(lambda api: api.kill(container_id, signal=signal))
        except APIError as error:
            if error.status_code not in _GONE:
                raise RuntimeUnavailableError(
                    f"{self._client.name} did not send {signal}: {error.explanation}."
                ) from error

    def _exit_of(self, container_id: str, started_at: int | None) -> Exit | None:
        try:
            details = self._inspect(container_id)
        except ContainerTroubleError:
            # What cannot be shown is listed all the same.
            return Exit(code=None) if self._is_listed_as_ended(container_id) else None
        if details is None:
            self._believe()
            return Exit(code=None)
        state = details["State"]
        another_life = started_at is not None and started_ms(details) != started_at
        if state.get("Restarting"):
            # Between two lives. A caller that waits for the container's end keeps waiting.
            return Exit(_code_of(state), restarted=True) if started_at is not None else None
        if state["Running"]:
            return Exit(code=None, restarted=True) if another_life else None
        if another_life or state["Status"] == "created":
            return Exit(code=None)  # the code is another life's, or of one that never was
        return Exit(_code_of(state), out_of_memory=bool(state.get("OOMKilled")))

    def _forbid_restart(self, container_id: str) -> None:
        details = self._inspect(container_id)
        if details is None or not restarts_by_itself(details):
            return
        self._log.warning("container_restart_policy_removed", container_id=container_id)
        try:
            self._client.call_about(lambda api: api.update_container(container_id, restart_policy={"Name": "no"}))
        except APIError as error:
            if error.status_code not in _GONE:
                raise RuntimeUnavailableError(
                    f"{self._client.name} did not change a container: {error.explanation}."
                ) from error

    def _inspect(self, container_id: str) -> dict[str, Any] | None:
        try:
            return self._client.call_about(lambda api: api.inspect_container(container_id))
        except NotFound:
            return None
        except APIError as error:
            raise RuntimeUnavailableError(
                f"{self._client.name} did not show a container: {error.explanation}."
            ) from error

    def _list_running(self) -> list[Running]:
        result: list[Running] = []
        for summary in self._listed({"label": f"{LABEL_INSTALL}={self._install_id}"}):
            try:
                details = self._inspect(summary["Id"])  # the summary has no start time
            except ContainerTroubleError:
                details = details_of(summary)  # one that cannot be shown must not hide the others
            if details is None or not details["State"]["Running"]:
                continue
            running = running_of(details)
            if running is None:
                self._log.warning("container_labels_broken", container_id=summary["Id"], names=summary.get("Names"))
                continue
            result.append(running)
        self._believe()
        return result

    def _find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        wanted = [f"{LABEL_INSTALL}={self._install_id}", f"{LABEL_INCARNATION}={incarnation}"]
        for summary in self._listed({"label": wanted}, all=True):
            details = self._inspect(summary["Id"])
            if details is None:
                continue
            if details["State"]["Status"] == "created":
                self._withdraw(summary["Id"])
            elif (running := running_of(details)) is not None:
                return running
        self._believe()
        return None

    def _withdraw(self, container_id: str) -> None:
        """Remove a container that was not started. Docker locks it while it starts: it is either removed here, or running."""
        try:
            self._client.call_about(lambda api: api.remove_container(container_id, v=True, force=False))
        except NotFound:
            return
        except APIError as error:
            raise RuntimeUnavailableError(
                f"{self._client.name} is busy with a container: {error.explanation}."
            ) from error

    def _output(self, container_id: str) -> bytes:
        try:
            return self._client.call_about(
                lambda api: api.logs(container_id, stdout=True, stderr=True, stream=False, tail=_LOG_LINES)
            )
        except NotFound as error:
            raise ContainerGoneError(f"no container {container_id} in Docker.") from error
        except APIError as error:
            raise RuntimeUnavailableError(f"{self._client.name} did not give the log: {error.explanation}.") from error

    def _remove(self, container_id: str) -> None:
        details = self._inspect(container_id)
        if details is None:
            self._believe()
            return
        if details["State"]["Running"]:
            raise NotConfirmedError(f"container {container_id} still runs.", hint="Stop or kill it first.")
        self._forget(details)

    def _forget(self, details: dict[str, Any], *, at_last: bool = False) -> None:
        """Keep a dead container's output in the session's log, then remove it.

        With `at_last`, remove it also when the engine fails to give the output: the session's next container waits for that.
        """
        container_id = details["Id"]
        kept_in = labels_of(details).get(LABEL_STDERR_LOG)
        if kept_in:
            try:
                output_log.append(Path(kept_in), self._output(container_id))
            except (OSError, ContainerGoneError) as error:
                self._log.warning("container_output_not_kept", container_id=container_id, error=str(error))
            except ContainerTroubleError as error:
                if not at_last:
                    raise
                self._log.warning("container_output_not_kept", container_id=container_id, error=str(error))
        try:
            self._client.call_about(lambda api: api.remove_container(container_id, v=True, force=False))
        except APIError as error:
            if error.status_code == 409 and "already in progress" not in str(error.explanation):
                raise NotConfirmedError(f"container {container_id} is not removable: {error.explanation}.") from error
            if error.status_code not in _GONE:
                raise RuntimeUnavailableError(
                    f"{self._client.name} did not remove a container: {error.explanation}."
                ) from error


def _code_of(state: dict[str, Any]) -> int:
    return int(state["ExitCode"])
