"""What the supervisor knows of one incarnation, what it asks of the house, and its figures. No behaviour here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from daemon.engine.sessions import Session
from daemon.runtimes.protocol import ContainerSpec, Exit
from daemon.store.registry import SessionKey
from daemon.store.session_files import SessionFiles


class Phase(StrEnum):
    """Where a slot is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"  # confirmed; what that entails is being done


AgentImage = tuple[str, bool]  # its name, and whether agents bring a runner of their own in it


@dataclass(eq=False, slots=True)
class Slot:
    """One incarnation under supervision, which is one life of one container.

    `started_at` is that life's beginning by the runtime; None before it is known, and once the container was restarted by
    others: then any end counts. `exited`: its exit is confirmed; `done`: all that entails is done, too.
    `forced`: it is being killed; `overdue`: that was done and its exit is still not confirmed.
    """

    session: Session
    incarnation: str
    spawned_at: int
    phase: Phase = Phase.STARTING
    container_id: str | None = None
    started_at: int | None = None
    reason: str | None = None
    exit_code: int | None = None
    forced: bool = False
    overdue: bool = False
    exited: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the supervisor reports to the other parts.

    `on_exit` does all that a confirmed exit entails and says whether the incarnation had claimed anything; when it raises
    it is called again. `why_it_may_go` says why a running session may lose its slot to one that waits: "idle", another
    reason to end it by force, or None. `drain` tells an incarnation to claim nothing more and returns whether it works on
    nothing. `cap_of` is how many containers an agent may have at once, None for no cap of its own. `images` are those that agents' containers are made from. `prepare` makes what a runner expects in a session's files, in a thread.
    """

    make_spec: Callable[[SessionKey, str], ContainerSpec]
    prepare: Callable[[SessionKey, SessionFiles], None]
    on_started: Callable[[Session], None]
    on_exit: Callable[[Session, str, str, Exit], Awaitable[bool]]
    after_exit: Callable[[Session], None]
    wake_at: Callable[[Session, int], None]
    why_it_may_go: Callable[[Session], Awaitable[str | None]]
    drain: Callable[[Session, str], Awaitable[bool]]
    cap_of: Callable[[str], int | None] = lambda _: None
    images: Callable[[], Collection[AgentImage]] = lambda: ()


@dataclass(frozen=True, slots=True)
class Timings:
    """The supervisor's own intervals in seconds; the configuration has those an operator would change.

    `soft_backoff_max_s` bounds the back-off where a person is about to repair the cause (an image, the runtime), `healthy_s`
    is how long a container must have lived for its end to be no failed start, `look_s` how long a look whether a
    container is idle may take, `drain_s` how often one that is to be replaced is looked at, `reconcile_s` how
    often the runtime's listing is compared with the slots although no event asked for it, `settle_s` how long events are collected before that.
    """

    probe_s: float = 5.0
    retry_s: float = 0.5
    retry_max_s: float = 30.0
    soft_backoff_max_s: float = 30.0
    healthy_s: float = 60.0
    look_s: float = 1.0
    drain_s: float = 1.0
    reconcile_s: float = 10.0
    settle_s: float = 0.2
