"""An asyncio event loop in virtual time whose one seed decides what runs next, and the simulated processes on it.

Real coroutines of the daemon and the runner run here unchanged. A process is a tag in the context of its callbacks: killing
it drops them, freezing it keeps them back. Nothing here sleeps, opens a file or starts a thread.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import anyio._backends._asyncio as anyio_backend

TICK_S: Final = 20e-6  # what one callback takes
START_S: Final = 1000.0


@dataclass(eq=False)
class Process:
    """One simulated process. `role` is daemon, runner or program; a dead one never runs again, a frozen one later.

    `pause` of a program lets time pass in the middle of its synchronous code (programs.py).
    """

    name: str
    role: str
    context: Context
    dead: bool = False
    frozen: bool = False
    pause: Callable[[], None] | None = None
    parked: list[asyncio.Handle] = field(default_factory=list[asyncio.Handle])


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class StuckError(Exception):
    """Nothing is left that could ever happen."""


class SimTask(asyncio.Task[Any]):
    """Hashed by its number, so that sets of tasks iterate in the same order in every run."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, number: int, **options: Any) -> None:
        self.number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """`shuffle`: how often, of a hundred times, the next ready callback is not the oldest one."""

    _ready: Any
    _scheduled: Any
    _stopping: bool
    _timer_cancelled_count: int

    def __init__(self, rng: Random, shuffle: int) -> None:
        super().__init__()
        self._rng = rng
        self._shuffle = shuffle / 100
        self._virtual = START_S
        self._tasks_made = itertools.count(1)
        self.callbacks = 0
        self.kept: list[SimTask] = []
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> SimTask:
        task = SimTask(coro, number=next(self._tasks_made), loop=loop, **options)
        # A killed process's coroutines must not even be closed: their `finally` blocks are its code.
        self.kept.append(task)
        return task

    def time(self) -> float:
        """Virtual seconds; they pass only here."""
        return self._virtual

    def _process_events(self, event_list: object) -> None: ...

    def _write_to_self(self) -> None: ...

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                if self._stopping:
                    return
                raise StuckError("no callback and no timer is left")
            self._virtual = max(self._virtual, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._virtual:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            else:
                ready.append(handle)
        if len(ready) > 1 and self._rng.random() < self._shuffle:
            index = self._rng.randrange(len(ready))
            ready[0], ready[index] = ready[index], ready[0]
        handle = ready.popleft()
        if handle._cancelled:
            return
        process = handle._context.get(PROCESS)
        if process is not None:
            if process.dead:
                return
            if process.frozen:
                process.parked.append(handle)
                return
        self.callbacks += 1
        self._virtual += TICK_S
        handle._run()

    # --- processes

    def new_process(self, name: str, role: str) -> Process:
        """A process without code yet."""
        context = copy_context()
        process = Process(name, role, context)
        context.run(PROCESS.set, process)
        return process

    def spawn(self, process: Process | None, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine as (a part of) a process; None: as the world itself, which nothing kills."""
        context = process.context.copy() if process is not None else copy_context()
        if process is None:
            context.run(PROCESS.set, None)
        return self.create_task(coro, name=name, context=context)

    def world_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Call something as the world, whoever asks."""
        context = Context()
        return self.call_later(delay, callback, *args, context=context)

    def thaw(self, process: Process) -> None:
        """Let a frozen process go on."""
        process.frozen = False
        self._ready.extend(process.parked)
        process.parked.clear()


class ScopeNumbers:
    """Gives anyio's cancel scopes a hash that is the same in every run (they are kept in sets, and hashed by address)."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._counter = itertools.count(1)
        self._init = anyio_backend.CancelScope.__init__

    def install(self) -> None:
        """For the whole process; to be called once."""
        numbers, counter, init = self._numbers, self._counter, self._init

        def numbered(scope: Any, *args: Any, **options: Any) -> None:
            numbers[id(scope)] = next(counter)
            init(scope, *args, **options)

        anyio_backend.CancelScope.__init__ = numbered  # pyright: ignore[reportAttributeAccessIssue]
        anyio_backend.CancelScope.__hash__ = lambda scope: numbers[id(scope)]  # pyright: ignore[reportAttributeAccessIssue]

    def reset(self) -> None:
        """Before each run."""
        self._numbers.clear()
