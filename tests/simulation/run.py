"""One seed from start to verdict: set up, play, heal, wait for rest, check, stop, tear down."""

from __future__ import annotations

import contextlib
import gc
import shutil
import sqlite3
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import anyio
import anyio._backends._asyncio as anyio_backend

from container_runner.store import Store
from daemon.channels.protocol import Outgoing
from schema.rows import RunnerSettings
from tests.simulation.bus import SimDaemon, draw_config
from tests.simulation.checks import Claims, forgotten, unrest, violations
from tests.simulation.disk import Disk
from tests.simulation.host import SimHost
from tests.simulation.loop import PROCESS, ScopeNumbers, SimLoop, StuckError
from tests.simulation.patches import configure_logs, patched
from tests.simulation.pruning import Witness, draw_retention, witnessed
from tests.simulation.receivers import Receivers
from tests.simulation.scenario import Scenario
from tests.simulation.world import World

HEAL_LIMIT_S: Final = 4 * 3600.0
SCOPES: Final = ScopeNumbers()


@dataclass
class Result:
    """What one seed came to. `findings` empty: all invariants held."""

    seed: int
    steps: int = 0
    callbacks: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    accepted: int = 0
    effects: int = 0
    doubles: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    findings: list[str] = field(default_factory=list[str])
    trace: list[str] = field(default_factory=list[str])


def base_folder() -> Path:
    """Memory where the machine offers it: a simulated disk need not be a real one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def run_seed(seed: int, *, trace: bool = False) -> Result:
    """Run one seed. The same seed and code give the same run, in every process whose PYTHONHASHSEED is 0."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="clawbus-simulation-", dir=base_folder()))
    root = folder / "data"
    root.mkdir(mode=0o700)
    SCOPES.reset()
    gc.disable()
    world = World(seed, root, tracing=trace)
    try:
        return _run(world, began)
    finally:
        _tear_down(world)
        shutil.rmtree(folder, ignore_errors=True)
        gc.enable()


def _run(world: World, began: float) -> Result:
    receivers = Receivers(world, lambda message: _tracked(world.root, message))
    settings = RunnerSettings(
        provider="echo",
        max_batch=world.rng.choice((1, 3, 10)),
        poll_s=world.rng.choice((4.0, 12.0, 30.0)),
        grace_s=world.rng.choice((1.0, 8.0)),
        keep_s=draw_retention(world.seed).messages_s,
        prune_batch=draw_retention(world.seed).batch,
    )
    host = SimHost(world, lambda: settings)
    disk = Disk(world, lambda path, what: _guard(world, host, path, what))
    disk.living = lambda path: host.living(path.parent.parent) is not None
    claims = Claims()
    witness = Witness(world, receivers)
    daemon = SimDaemon(world, host, draw_config(world))
    scenario = Scenario(world, daemon, host, receivers)

    def left_behind() -> None:
        for text in forgotten(daemon.layout, scenario.sessions, world.clock.now_ms()):
            world.broken(f"at a daemon's end: {text}")

    daemon.left_behind = left_behind
    configure_logs(world)
    world.loop.set_exception_handler(lambda _, context: _unexpected(world, context))
    with patched(world, disk, receivers), _watch_claims(world, claims, witness), witnessed(witness):
        scenario.prepare()
        try:
            world.loop.run_until_complete(_play(world, scenario, claims, witness))
        except StuckError as error:
            world.broken(f"nothing moves any more: {error}")
    return Result(
        seed=world.seed,
        steps=world.steps,
        callbacks=world.loop.callbacks,
        virtual_s=world.loop.time() - 1000.0,
        wall_s=time.monotonic() - began,
        accepted=len(scenario.ledger.accepted),
        effects=sum(len(effects) for effects in receivers.effects.values()),
        doubles=sum(max(len(effects) - 1, 0) for effects in receivers.effects.values()),
        counts=world.counts,
        findings=[f"at {item.at - 1000:.4f}: {item.text}" for item in world.findings],
        trace=world.trace_lines,
    )


async def _play(world: World, scenario: Scenario, claims: Claims, witness: Witness) -> None:
    scenario.daemon.start()
    await scenario.play()
    scenario.heal()
    limit = world.loop.time() + HEAL_LIMIT_S + scenario.clock_back_ms / 1000
    quiet = False
    while world.loop.time() < limit:
        await anyio.sleep(5.0)
        why = unrest(scenario)
        if (why is None and quiet) or world.findings:
            break
        quiet = why is None
    else:
        world.broken(f"stuck: {unrest(scenario)}")
    scenario.daemon.enabled = False
    scenario.daemon.stop()
    with anyio.move_on_after(200.0):
        while scenario.daemon.process is not None and not scenario.daemon.process.dead:
            await anyio.sleep(1.0)
    if world.findings:
        return
    if world.counts["daemon_stopped"] == 0 or (scenario.daemon.process and not scenario.daemon.process.dead):
        world.broken("the daemon did not stop when asked to")
    for text in violations(scenario, claims, witness):
        world.broken(text)


def _guard(world: World, host: SimHost, path: Path, what: str) -> None:
    """No host write to outbound.db while its container lives."""
    container = host.living(path.parent.parent)
    if container is not None:
        world.broken(f"the host {what} {path.parent.parent.name}/{path.name} while {container.id} lives")


def _tracked(root: Path, message: Outgoing) -> tuple[str | None, str | None]:
    """What inbound.db says of an outbound row: its receipt's status, and its state while it is open."""
    path = root / "sessions" / message.agent / message.session / "in" / "inbound.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        receipt = db.execute(
            "SELECT status FROM delivered WHERE message_out_id = ?", (message.message_out_id,)
        ).fetchone()
        state = db.execute(
            "SELECT state FROM delivery_attempts WHERE message_out_id = ?", (message.message_out_id,)
        ).fetchone()
    return (receipt and receipt[0], state and state[0])


@contextlib.contextmanager
def _watch_claims(world: World, claims: Claims, witness: Witness) -> Generator[None]:
    """Note every claim that a runner was about to commit: a superset of those it committed."""
    real = Store._insert_claims

    def insert(store: Store, db: Any, messages: Any) -> None:
        session = store._outbound.parent.parent.name
        claims.note(world, store, db, session, messages)
        real(store, db, messages)
        for message in messages:
            if witness.final(session, message.id, message.seq):
                world.broken(f"{session}: {message.id} is claimed, and was acked as finished before")
        claims.pairs.update((session, message.id, store._incarnation) for message in messages)

    with mock.patch.object(Store, "_insert_claims", insert):
        yield


def _unexpected(world: World, context: dict[str, Any]) -> None:
    error = context.get("exception")
    world.broken(f"{context.get('message')}: {type(error).__name__}: {error}")


def _tear_down(world: World) -> None:
    """End what was killed and what was never finished, without letting any of it say so."""
    loop = world.loop
    world.closed = True
    loop.set_exception_handler(lambda _, __: None)
    for program in tuple(world.programs):
        program.close()
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # some never ran at all
            _close_all(loop)
        loop.close()
        world.on_death.clear()
        world.watchers.clear()
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _close_all(loop: SimLoop) -> None:
    for task in loop.kept:
        # A task that never ended is held by its own cancel scope, and that one by anyio's table, forever.
        anyio_backend._task_states.pop(task, None)
        task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(20):
            with contextlib.suppress(BaseException):
                task.get_coro().close()  # type: ignore[union-attr]
                break
    loop.kept.clear()


__all__ = ["PROCESS", "Result", "run_seed"]
