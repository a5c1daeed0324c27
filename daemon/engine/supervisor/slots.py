"""What the supervisor knows of one incarnation, and its intervals. No behaviour here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from daemon.engine.sessions import Session


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
