"""The protocol that a container runtime implements for the supervisor. One contract suite (tests/contract) runs over every implementation.

A runtime knows nothing of messages, claims or sessions' files. The listing is the truth about what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from schema.frozen import frozen


@frozen
class Mount:
    """A host folder seen in the container."""

    source: Path
    target: str
    read_only: bool


@frozen
class Limits:
    """What one container may use. Bytes; cores; processes."""

    memory_bytes: int
    cpus: float
    pids: int


@frozen
class ContainerSpec:
    """Everything a runtime needs to start one incarnation. Built by `spec.build_spec`, which is pure.

    `fingerprint` covers all that would make a running container another one (image, mounts, limits, environment) but
    not the incarnation, so that a restarted daemon can tell whether a container it finds is still the one it wants.
    """

    install_id: str
    agent: str
    session: str
    incarnation: str
    name: str
    fingerprint: str
    image: str
    environment: Mapping[str, str]
    mounts: tuple[Mount, ...]
    limits: Limits
    network: str
    user: str
    stderr_log: Path
    runner: tuple[str, ...] = ()  # a runner program of the operator's own; empty: clawbus's


@frozen
class Running:
    """A container that was running when the runtime looked.

    `started_at` (epoch milliseconds, by the runtime) tells one life of a container from the next: a restarted container
    keeps its id. `restarts`: something in the runtime would start it again by itself (a restart policy). `paused`: frozen.
    """

    container_id: str
    agent: str
    session: str
    incarnation: str
    fingerprint: str
    started_at: int
    restarts: bool = False
    paused: bool = False


@frozen
class Exit:
    """The confirmed end of one life.

    `code` is the program's own, or 128 + the signal that ended it (137 for SIGKILL); None when the runtime no longer
    knows it (the container was removed or restarted by others).

    `restarted`: that life is over, and the container runs again, or is about to.
    """

    code: int | None
    out_of_memory: bool = False
    restarted: bool = False


class WayOut(Protocol):
    """The gate between agents and the network, as far as a container's spec needs it (daemon/egress/gate.py)."""

    def folder(self, agent: str, session: str) -> Path | None:
        """Return the folder of the session's socket, to be mounted; None where the agent may reach nothing."""
        ...

    def open(self, agent: str, session: str) -> None:
        """Make the folder and listen in it. Call it in a worker thread, before the container starts."""
        ...


class ContainerRuntime(Protocol):
    """Starts, stops and watches containers of one install.

    Every method may raise RuntimeUnavailableError when the runtime does not answer; that says nothing about whether
    containers live. All calls have time-outs of the implementation's own and may be cancelled.
    """

    name: str

    @property
    def address(self) -> str:
        """How it is reached, for people."""
        ...

    async def identity(self) -> str:
        """Return the engine's own id, which tells it from others of its kind; empty where it has none.

        Raise RuntimeUnavailableError.
        """
        ...

    def pin(self, identity: str | None) -> None:
        """From now on, accept only from this engine that something does not exist. None: accept it from any engine.

        Another one's empty listing raises EngineChangedError, and so does a spawn.
        """
        ...

    async def may_live(self, incarnation: str) -> bool:
        """Return whether this engine has a container of the incarnation, of whichever install, that runs or may start."""
        ...

    async def check(self, image: str | None = None, *, own_runner: bool = False) -> None:
        """Raise RuntimeUnavailableError or ImageError when nothing could be spawned now; else return.

        `image` is the one to check instead of the default; `own_runner`: it need not carry clawbus's runner.
        """
        ...

    async def spawn(self, spec: ContainerSpec) -> Running:
        """Start a container.

        When this raises (SpawnError, ImageError, RuntimeUnavailableError), a container of this incarnation may still
        exist, or start later, only in the RuntimeUnavailableError case; `find_or_cancel_spawn` settles it.
        """
        ...

    async def find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        """Return the container of this incarnation if it was ever started, whether it still runs or not.

        None is a promise: there is none and none will start. What was asked for and has not begun (by a daemon that died,
        by a call that timed out) is withdrawn first.
        """
        ...

    async def stop(self, container_id: str) -> None:
        """Ask for a graceful end (SIGTERM) and return without waiting. A container already gone is not an error."""
        ...

    async def kill(self, container_id: str) -> None:
        """Send SIGKILL to everything in it and return without waiting. A container already gone is not an error."""
        ...

    async def wait(self, container_id: str, started_at: int | None = None) -> Exit:
        """Return once the exit is CONFIRMED by the runtime: no process of the container lives any more.

        With `started_at`, also once that life is over although the container lives again: then `Exit.restarted` is set.
        Survives a runtime that goes away and comes back: it waits on, and never guesses an exit.
        """
        ...

    async def forbid_restart(self, container_id: str) -> None:
        """Take away what would start it again by itself. A container already gone is not an error."""
        ...

    async def changed(self) -> None:
        """Return when a container of this install may have been started, changed or ended by others.

        A hint only: a runtime without events never returns.
        """
        ...

    async def list_running(self) -> list[Running]:
        """Return every container of this install that runs now, adopted or not."""
        ...

    async def logs(self, container_id: str, *, max_bytes: int = 65_536) -> str:
        """Return the last of its stderr (and stdout), at most `max_bytes`, also after its exit.

        ContainerGoneError when there is no such container.
        """
        ...

    async def remove(self, container_id: str) -> None:
        """Forget an exited container, which can never run again after this.

        One already removed is not an error; NotConfirmedError for one that lives (again).
        """
        ...

    async def aclose(self) -> None:
        """Release the runtime's own resources. Kills nothing."""
        ...
