"""A command that works on the files while no daemon runs, as a simulated process: synchronous code, interrupted anywhere.

It is a thread that runs only while the loop waits for it, one of them at a time, so that the same seed is the same run. At
every opening of a file and every call to the runtime the loop goes on: containers work, die and are started meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import Any, Final

from daemon.config.models import Config
from daemon.core.errors import RuntimeUnavailableError
from daemon.core.facts import Container as Listed
from daemon.core.verb import Verb
from daemon.inspect.containers import RuntimeSeen
from daemon.maintenance.offline import offline_executor
from daemon.runtimes.protocol import Exit
from tests.simulation.host import SimHost, SimRuntime
from tests.simulation.world import ProcessKilledError, World

_PATIENCE_S: Final = 600.0  # of real time, for a thread that does not come back: a defect of the harness


class Program:
    """One synchronous program. `work` runs in its thread; `ended` is called in the loop with what came of it."""

    def __init__(self, world: World, name: str, rng: Random, work: Callable[[], Any]) -> None:
        self.process = world.loop.new_process(name, "program")
        self.process.pause = self.pause
        self._world = world
        self._rng = rng
        self._work = work
        self._go, self._back = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self.process.context.copy().run, args=(self._run,), daemon=True)
        self._wait_s = 0.0
        self._done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended: Callable[[], None] = lambda: None
        self.runtime: Callable[..., Any] | None = None  # what it builds to ask for containers
        world.programs.append(self)

    def start(self) -> None:
        """Begin soon."""
        self._world.loop.world_later(self._rng.uniform(0.0, 0.05), self._turn)

    def pause(self, seconds: float | None = None) -> None:
        """Let virtual time pass, at most so much or as long as an ordinary operation takes. Called by the program."""
        if self.process.dead:
            raise ProcessKilledError
        self._wait_s = self._rng.expovariate(100.0) if seconds is None else seconds
        self._back.set()
        self._wait(self._go)
        if self.process.dead:
            raise ProcessKilledError

    def close(self) -> None:
        """Kill it wherever it is."""
        self.process.dead = True
        while self._thread.ident is not None and not self._done:
            self._hand_over()
        self._finish()

    def _turn(self) -> None:
        """Let it run until it pauses or ends."""
        if self.process.frozen:
            self._world.loop.world_later(0.5, self._turn)
            return
        if self not in self._world.programs:
            return  # it was killed meanwhile
        if self._thread.ident is None:
            self._thread.start()
            self._wait(self._back)
        else:
            self._hand_over()
        if self._done:
            self._finish()
        else:
            self._world.loop.world_later(self._wait_s, self._turn)

    def _hand_over(self) -> None:
        self._go.set()
        self._wait(self._back)

    def _finish(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        self._world.programs.remove(self)
        self.process.dead = True
        self.ended()

    @staticmethod
    def _wait(event: threading.Event) -> None:
        if not event.wait(_PATIENCE_S):
            raise RuntimeError("a simulated program does not come back")
        event.clear()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self._done = True
        self._back.set()


class ProgramRuntime(SimRuntime):
    """The runtime as a program asks for it, in an event loop of its own: each call is a pause, then done at once."""

    def __init__(self, host: SimHost, install_id: str, program: Program, confirm_s: float) -> None:
        super().__init__(host, install_id)
        self._program = program
        self._confirm_s = confirm_s

    async def wait(self, container_id: str, started_at: int | None = None) -> Exit:
        """Until the exit is confirmed; TimeoutError once that takes too long, as the caller's own deadline would."""
        until = self._world.loop.time() + self._confirm_s
        while self._world.loop.time() < until:
            await self._call(f"wait {container_id}")
            container = self._host.containers.get(container_id)
            if container is None:
                return Exit(code=None)
            if container.state == "exited" and container.exit is not None:
                return container.exit
        raise TimeoutError

    async def _call(self, what: str) -> None:
        world = self._world
        world.step(self._program.process.name, f"dockerd: {what}")
        self._program.pause()
        if not self._host.available:
            raise RuntimeUnavailableError("dockerd is away.")

    async def _crash_point(self, where: str) -> None:
        world, process = self._world, self._program.process
        if world.chance(world.crash_probability(process)):
            world.kill(process, f"at {where}")
            raise ProcessKilledError


def carry_out_offline(world: World, host: SimHost, config: Config, program: Program, verb: Verb) -> dict[str, Any]:
    """Carry a verb out as the command line does while no daemon runs. Called by the program."""

    def look(_: Config, install_id: str | None) -> RuntimeSeen:
        world.step(program.process.name, "dockerd: list")
        program.pause()
        if install_id is None or not host.available:
            return RuntimeSeen(None, "dockerd is away.")
        running = [one for one in host.running() if one.spec.install_id == install_id]
        return RuntimeSeen(
            tuple(
                Listed(one.id, one.spec.agent, one.spec.session, one.spec.incarnation, one.started_at, one.restarts)
                for one in running
            )
        )

    with offline_executor(config, world.clock, recover=True, look=look) as executor:
        return executor.execute(verb)
