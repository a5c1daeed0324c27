"""Alive and ready: each check with its state and reason, answered at once, whatever the disk does."""

import anyio
import pytest

from daemon.monitoring.health import OVERDUE_S, Check, Health, State, Views
from daemon.monitoring.looplag import LoopLag
from schema.errors import StorageError
from tests.support.clock import START, MovedClock

ALL = ["started", "loop_lag", "loops", "runtime", "database", "disk"]


class World:
    """A health with everything it looks at in the test's hands."""

    def __init__(self) -> None:
        self.clock = MovedClock()
        self.problems: list[tuple[str, int, str]] = []
        self.late: list[str] = []
        self.probe_error: Exception | None = None
        self.hang: anyio.Event | None = None
        self.lag = LoopLag(self.clock, lambda _: None)
        self.health = Health(Views(lambda: self.problems, lambda: self.late, self._probe), self.lag, self.clock)
        self.health.started = True

    async def _probe(self) -> None:
        if self.hang is not None:
            await self.hang.wait()
        if self.probe_error is not None:
            raise self.probe_error

    def check(self, name: str) -> Check:
        (found,) = [check for check in self.health.checks() if check.name == name]
        return found


@pytest.fixture
def world() -> World:
    return World()


def test_all_is_well(world: World) -> None:
    found = world.health.ready()
    assert (found["ready"], found["started"]) == (True, True)
    assert [(check["name"], check["state"], check["reason"]) for check in found["checks"]] == [
        (name, "ok", None) for name in ALL
    ]


def test_before_the_start_and_at_the_end_it_is_not_ready_and_alive(world: World) -> None:
    world.health.started = False
    found = world.health.ready()
    assert (found["ready"], found["started"]) == (False, False)
    assert world.check("started").state is State.FAILING
    assert world.health.alive() == {"lag_s": 0.0, "worst_lag_s": 0.0, "worker": {}}


@pytest.mark.parametrize(
    ("problem", "check", "state"),
    [
        ("runtime", "runtime", State.FAILING),
        ("image", "runtime", State.DEGRADED),
        ("registry", "database", State.FAILING),
        ("storage", "disk", State.FAILING),
        ("disk", "disk", State.DEGRADED),
        ("channel webhook", "channel webhook", State.DEGRADED),
    ],
)
def test_what_is_degraded_shows_in_its_check(world: World, problem: str, check: str, state: State) -> None:
    world.problems = [(problem, 7, "because")]
    assert world.check(check) == Check(check, state, "because", 7)
    assert world.health.ready()["ready"] is (state is not State.FAILING)
    others = [one.state for one in world.health.checks() if one.name != check]
    assert set(others) == {State.OK}


def test_the_worse_of_two_is_told(world: World) -> None:
    world.problems = [("disk", 1, "62 MiB are free"), ("storage", 2, "no space left")]
    assert world.check("disk") == Check("disk", State.FAILING, "no space left", 2)


def test_a_loop_without_progress_is_named(world: World) -> None:
    world.late = ["sweep"]
    assert world.check("loops") == Check("loops", State.FAILING, "no progress: sweep")


@pytest.mark.anyio
async def test_a_probe_that_fails_fails_the_database_until_one_succeeds(world: World) -> None:
    world.probe_error = StorageError("central.db: disk I/O error")
    await world.health.probe()
    world.clock.advance(60)
    await world.health.probe()
    assert world.check("database") == Check("database", State.FAILING, "central.db: disk I/O error", START)
    world.probe_error = None
    await world.health.probe()
    assert world.check("database").state is State.OK


@pytest.mark.anyio
async def test_a_defect_in_a_probe_is_a_finding_and_ends_nothing(world: World) -> None:
    world.probe_error = TypeError("a defect")
    await world.health.probe()
    assert world.check("database").reason == "TypeError: a defect"


@pytest.mark.anyio
async def test_a_probe_that_does_not_come_back_is_the_finding(world: World) -> None:
    world.hang = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.health.probe)
        await anyio.lowlevel.checkpoint()
        assert world.check("database").state is State.OK, "it has only just begun"
        world.clock.advance(OVERDUE_S + 2)
        found = world.check("database")
        assert (found.state, found.reason) == (State.FAILING, "a read of central.db has not returned for 12 s")
        world.hang.set()
    assert world.check("database").state is State.OK


@pytest.mark.anyio
async def test_run_probes_again_and_again() -> None:
    world = World()
    looks = 0

    async def probe() -> None:
        nonlocal looks
        looks += 1

    health = Health(Views(list, list, probe), world.lag, world.clock, probe_s=0.001)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.run)
        with anyio.fail_after(60):
            while looks < 3:  # noqa: ASYNC110 - a poll with a deadline
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_late_loop_is_not_ready_while_it_is_remembered(world: World) -> None:
    seen: list[float] = []
    lag = LoopLag(world.clock, seen.append, interval_s=0.001)
    assert (lag.now(), lag.worst()) == (0.0, 0.0), "not begun"
    health = Health(Views(list, list, world._probe), lag, world.clock)
    health.started = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lag.run)
        await anyio.lowlevel.checkpoint()
        world.clock.advance(3.001)  # the loop was elsewhere
        assert lag.now() == pytest.approx(3.0)
        with anyio.fail_after(60):
            while not seen:  # noqa: ASYNC110 - a poll with a deadline
                await anyio.sleep(0.001)
        assert seen[0] == pytest.approx(3.0)
        (check,) = [one for one in health.checks() if one.name == "loop_lag"]
        assert check.reason == "the event loop was 3.0 s late within the last half minute"
        assert not health.ready()["ready"]
        assert health.alive()["worst_lag_s"] == 3.0
        with anyio.fail_after(60):
            while len(seen) < 31:  # noqa: ASYNC110 - half a minute of measurements
                await anyio.sleep(0.001)
        assert health.ready()["ready"]
        tasks.cancel_scope.cancel()
