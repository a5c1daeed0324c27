"""Makes container specs in threads: an agent's table names files of the host, whose disk or mount may hang.

Such a file holds up its own agent only, and takes few threads. Once it answers, the agent's containers start again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio import to_thread

from daemon.core.errors import AgentFileError
from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.needs import Specs
from daemon.runtimes.protocol import ContainerSpec

_AT_ONCE: Final = 4  # the most specs of one agent that are made at once


@dataclass(slots=True, eq=False)
class _Call:
    """One call in its thread. `hung`: nobody waits for it any more."""

    hung: bool = False


@dataclass(slots=True)
class _OfAgent:
    """The calls of one agent: `under_way` is changed by their threads."""

    room: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(_AT_ONCE))
    under_way: set[_Call] = field(default_factory=set)


class SpecThreads:
    """Built once. Called in the event loop. A call may take `limit_s` seconds."""

    def __init__(self, specs: Specs, limit_s: float) -> None:
        self._specs = specs
        self._limit_s = limit_s
        self._agents: dict[str, _OfAgent] = {}
        self._unbounded = anyio.CapacityLimiter(math.inf)  # `room` bounds the threads

    async def make(self, key: SessionKey, incarnation: str) -> ContainerSpec:
        """Return the spec of a session's next container. Raise AgentFileError for a file that hangs, and as `Specs.make` does."""
        mine = self._agents.setdefault(key.agent, _OfAgent())
        call = _Call()

        def work() -> ContainerSpec:
            mine.under_way.add(call)
            try:
                return self._specs.make(key, incarnation)
            finally:
                mine.under_way.discard(call)

        async with mine.room:
            if any(one.hung for one in mine.under_way.copy()):
                raise self._silent(key.agent)
            try:
                with anyio.fail_after(self._limit_s):
                    return await to_thread.run_sync(work, limiter=self._unbounded, abandon_on_cancel=True)
            except TimeoutError as error:
                raise self._silent(key.agent) from error
            finally:
                call.hung = True  # of no account unless its thread is still under way

    def _silent(self, agent: str) -> AgentFileError:
        named = ", ".join(self._specs.named_files(agent)) or "a file of the data folder"
        return AgentFileError(
            f"agents.{agent}: {named}: not read within {self._limit_s:g} s.",
            hint="A disk or mount hangs. Repair it; the daemon tries again by itself.",
        )
