"""The supervisor's record of one incarnation, and its intervals. No behaviour here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from daemon.core.errors import ClawbusError
from daemon.engine.session import Session
from schema.frozen import frozen


class Phase(StrEnum):
    """The phase of a slot's life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"  # confirmed; the exit is being settled


AgentImage = tuple[str, bool]  # an image's name, and whether it contains an agent's own runner


@dataclass(eq=False, slots=True)
class Slot:
    """One supervised incarnation.

    `started_at` is when the runtime started it; None before that is known, and after others restarted the container: then any
    exit counts. `exited`: its exit is confirmed. `done`: the exit has been settled. `forced`: it is being killed. `overdue`: it
    was killed, but its exit is still not confirmed. `unsettled`: why settling its exit failed the last time. `refusal`: why
    the last signal could not be sent. `draining`: it is being stopped between two turns, because its agent's budget is used up.
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
    unsettled: ClawbusError | None = None
    refusal: ClawbusError | None = None
    draining: bool = False
    exited: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)


@frozen
class Timings:
    """The supervisor's internal intervals in seconds; those that an operator would change are in the configuration.

    `soft_backoff_max_s`: longest back-off for a cause that a person repairs (an image, the runtime). `healthy_s`: an exit
    before this age is a failed start. `look_s`: timeout for checking whether a container is idle. `drain_s`: how often a
    container that is to be replaced is checked. `reconcile_s`: how often the runtime's listing is compared with the slots
    without an event. `settle_s`: how long events are collected before a comparison. `files_s`: how long
    the files that an agent's table names may take to be read.
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
    files_s: float = 10.0
