"""The conductor's gates with a standby and a bus that are as a test says; the states on disk are real."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import pytest

import daemon.deploy.conductor as module
from daemon.config.models import Config
from daemon.core.bake import Health
from daemon.core.clock import SystemClock
from daemon.core.deploy_errors import DeployRefusedError, DeployRunningError, SlotStateError
from daemon.core.deploy_pace import ACCEPTANCE, ROUND_TRIP, Pace
from daemon.core.errors import RuntimeUnavailableError
from daemon.core.release import ImageFound
from daemon.core.slot_steps import claim, cut_over, roll_back, served
from daemon.core.slots import BLUE, Deploy, SlotState
from daemon.deploy import drift, slot_record
from daemon.deploy.conductor import Conductor, Place
from daemon.deploy.releases import Releases
from daemon.deploy.state_file import read_state, state_path, write_state
from tests.support.releases import small_release

IMAGE: Final = f"sha256:{'1' * 64}"

pytestmark = pytest.mark.anyio


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a state on disk."""
    while not holds():  # noqa: ASYNC110 - a file has no event
        await anyio.sleep(0.01)


class FakeEngine:
    """A bus of which a test says what is under way and how it is."""

    def __init__(self) -> None:
        self.held = False
        self.left = 0
        self.first = Health()
        self.between: list[Health] = []  # what the looks after the first one see, one each
        self.later = Health()  # what every look after those sees
        self.looks = 0
        self.reported: list[str] = []
        self.states: list[SlotState] = []

    def report(self, deploy: Deploy, at: int) -> None:
        self.reported.append(deploy.state)

    def seen(self, state: SlotState) -> None:
        self.states.append(state)

    def hold(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False

    def in_flight(self) -> dict[str, int]:
        return {"sends": self.left}

    def carried(self) -> int:
        return 3

    def health(self) -> Health:
        self.looks += 1
        if self.looks == 1:
            return self.first
        return self.between.pop(0) if self.between else self.later


class FakeStandby:
    """A standby that answers what `look` returns; its probe passes unless it was told otherwise."""

    def __init__(self, stage: "Stage", probe: dict[str, Any]) -> None:
        self._stage, self._probe = stage, probe
        self.looks = 0

    def look(self) -> dict[str, Any] | None:
        self.looks += 1
        return self._stage.look(self.looks)

    def why_absent(self, patience_s: float) -> str:
        assert patience_s > 0
        return "" if self.look() is not None else "no daemon answers in the other slot"

    def probe(self, limit_s: float) -> dict[str, Any]:
        assert limit_s > 0
        return self._probe


class Stage:
    """Two releases, blue serving the first one and green linked to the second, and a conductor in blue."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, **deploy: Any) -> None:
        self.data = root / "data"
        self.data.mkdir()
        quick = {"warm_s": 0.0, "warm_limit_s": 20.0, "drain_s": 0.1, "bake_s": 0.2, "bake_check_s": 0.02} | deploy
        self.config = Config.model_validate(
            {"data_dir": str(self.data), "runtime": {"kind": "process"}, "deploy": {"root": str(root / "opt"), **quick}}
        )
        self.old, self.new = small_release(root / "opt", "one"), small_release(root / "opt", "two")
        self.releases = Releases(root / "opt")
        for slot, path in (("blue", self.old), ("green", self.new)):
            self.releases.link(slot, self.releases.find(path.name))
        self.engine, self.left = FakeEngine(), False
        self._conductor: Conductor | None = None
        self.new_id = self.manifest(self.new)
        self.look: Callable[[int], dict[str, Any] | None] = lambda _: {"release": self.new_id, "process": "p"}
        self.probe: dict[str, Any] = {"ok": True, "reason": "", "plain": {}, "interrupted": {}}
        standby = FakeStandby(self, self.probe)
        monkeypatch.setattr(module, "StandbyClient", lambda *_: standby)
        write_state(self.data, claim(SlotState(), BLUE, self.manifest(self.old), 1, "boot"))
        self.clock = SystemClock()

    @property
    def conductor(self) -> Conductor:
        """The conductor in blue, with the clock of now."""
        if self._conductor is None:
            self._conductor = Conductor(Place(self.config, BLUE, self.clock, self.leave), self.engine)
        return self._conductor

    def use(self, release: Path) -> None:
        """Deploy this release in place of the second one."""
        self.new, self.new_id = release, self.manifest(release)
        self.releases.link("green", self.releases.find(release.name))

    def manifest(self, path: Path) -> str:
        found = self.releases.find(path.name).manifest
        assert found is not None
        return found.release

    def leave(self) -> None:
        self.left = True

    async def deploy(self, *, no_rollback: bool = False) -> SlotState:
        """Start the deploy of the second release and wait until it is over or cut over."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.conductor.run)
            await self.conductor.start(self.new.name, force=False, no_rollback=no_rollback)
            with anyio.fail_after(60):
                await until(lambda: (active := self.state().active) is None or active.is_cut_over)
                await until(lambda: self.state().active is None or self.left)
            tasks.cancel_scope.cancel()
        return self.state()

    def state(self) -> SlotState:
        return read_state(self.data)


@pytest.fixture(name="stage")
def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


async def test_every_gate_passes_and_the_cutover_is_one_state(stage: Stage) -> None:
    state = await stage.deploy()
    assert state.deploy is not None
    assert [one.status for one in state.deploy.gates] == [*["pass"] * 4, "running", "pending", "pending"]
    assert (state.serving, state.release, state.epoch, stage.left) == ("green", stage.new_id, 2, True)
    assert stage.engine.held, "it starts nothing new on its way out"
    assert state.deploy.gate("drain").measured["agents_carried"] == 3


def change_a_file(stage: Stage) -> None:
    next(stage.new.rglob("schema/__init__.py")).write_text("changed\n")


def remove_the_release(stage: Stage) -> None:
    (stage.new / "release.json").write_text("{}")


def die_once(stage: Stage) -> None:
    stage.look = lambda count: {"release": stage.new_id, "process": str(count)}


def run_another(stage: Stage) -> None:
    stage.look = lambda _: {"release": "other", "process": "p"}


def not_answer(stage: Stage) -> None:
    stage.look = lambda _: None


def fail_the_probe(stage: Stage) -> None:
    stage.probe.update(ok=False, reason="2 answers were delivered instead of one")


def be_slow(stage: Stage) -> None:
    stage.probe.update(warm={"local": 4, "webhook": 5001})


def hang_in_a_send(stage: Stage) -> None:
    stage.engine.left = 1


def raise_a_bug(stage: Stage) -> None:
    def look(_: int) -> dict[str, Any] | None:
        raise RuntimeError("a bug")

    stage.look = look


@pytest.mark.parametrize(
    ("spoil", "gate"),
    [
        (change_a_file, "preflight"), (die_once, "warm"), (run_another, "warm"), (not_answer, "warm"),
        (fail_the_probe, "callback_probe"), (be_slow, "callback_probe"), (hang_in_a_send, "drain"), (raise_a_bug, "warm"),
    ],
)  # fmt: skip
async def test_a_gate_that_fails_leaves_the_old_slot_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Stage], None], gate: str
) -> None:
    stage = Stage(tmp_path, monkeypatch, warm_s=0.1, warm_limit_s=0.3 if gate == "warm" else 20.0)
    spoil(stage)
    state = await stage.deploy()
    assert state.deploy is not None
    assert (state.deploy.gate(gate).status, state.deploy.state) == ("fail", "failed")
    assert state.deploy.gate(gate).reason
    assert (state.serving, state.epoch, stage.left, stage.engine.held) == ("blue", 1, False, False)


async def test_a_release_that_cannot_be_used_begins_no_deploy(stage: Stage) -> None:
    remove_the_release(stage)
    with pytest.raises(module.ClawbusError):
        await stage.conductor.start(stage.new.name, force=False, no_rollback=False)
    assert stage.state().deploy is None


@pytest.mark.parametrize("kind", ["the same release", "a slot that points elsewhere"])
async def test_what_cannot_be_deployed_is_refused(stage: Stage, kind: str) -> None:
    wanted = stage.old
    if kind == "the same release":
        stage.releases.link("green", stage.releases.find(stage.old.name))
    else:
        wanted = stage.new
        stage.releases.link("green", stage.releases.find(stage.old.name))
    with pytest.raises(DeployRefusedError):
        await stage.conductor.start(wanted.name, force=False, no_rollback=False)
    assert stage.state().deploy is None


async def test_an_abort_before_the_cutover_ends_the_deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, warm_s=60, warm_limit_s=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.conductor.run)
        await stage.conductor.start(stage.new.name, force=False, no_rollback=False)
        with anyio.fail_after(60):
            await until(
                lambda: not ((active := stage.state().active) is None or active.gate("warm").status != "running")
            )
            for name in (stage.new.name, stage.old.name):
                with pytest.raises(DeployRunningError):  # whatever the slots point at
                    await stage.conductor.start(name, force=True, no_rollback=False)
            ended = await stage.conductor.abort("ann")
            assert (ended["deploy"]["state"], ended["deploy"]["reason"]) == ("aborted", "aborted by ann in warm")
        with pytest.raises(DeployRefusedError):
            await stage.conductor.abort("ann")
        with pytest.raises(DeployRefusedError):
            await stage.conductor.rollback("ann")
        tasks.cancel_scope.cancel()
    state = stage.state()
    assert state.deploy is not None
    assert (state.deploy.state, state.deploy.gate("warm").reason) == ("aborted", "aborted by ann")


async def bake(
    stage: Stage, *, no_rollback: bool = False, limits: dict[str, int] | None = None, before: list[str] | None = None
) -> SlotState:
    """The bake in the new slot's daemon, from a cutover on; returns the state after it. `limits`: of its pace."""
    deploy = module.new_deploy("D", stage.state(), stage.new_id, 1, {}, no_rollback=no_rollback)
    moved = cut_over(replace(stage.state(), deploy=deploy), 2, limits, before)
    write_state(stage.data, claim(moved, "green", stage.new_id, 3, "boot"))
    conductor = Conductor(Place(stage.config, "green", stage.clock, stage.leave), stage.engine)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conductor.run)
        with anyio.fail_after(60):
            await until(lambda: stage.state().active is None)
        tasks.cancel_scope.cancel()
    return stage.state()


async def test_a_quiet_bake_passes(stage: Stage) -> None:
    state = await bake(stage)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, stage.left) == ("passed", "green", False)


@pytest.mark.parametrize(
    ("first", "before", "outcome"),
    [
        (Health(dead_letters=1), [], "rolled_back"),
        (Health(spawn_failures=1), None, "rolled_back"),
        (Health(degraded={"image": "missing"}), [], "rolled_back"),
        (Health(degraded={"image": "missing"}), ["image"], "passed"),
        (Health(degraded={"image": "missing"}), None, "passed"),
    ],
    ids=[
        "a dead letter",
        "a failed start",
        "an image",
        "an image that was missing",
        "a prior release that does not say",
    ],
)
async def test_what_goes_wrong_while_the_new_daemon_starts_is_the_release_s(
    stage: Stage, first: Health, before: list[str] | None, outcome: str
) -> None:
    """Its first answers and containers are sent and started before its bake begins."""
    stage.engine.first = stage.engine.later = first
    state = await bake(stage, before=before)
    assert state.deploy is not None
    assert state.deploy.state == outcome, state.deploy.reason


async def test_what_a_stop_of_the_host_left_behind_is_not_the_release_s(stage: Stage) -> None:
    stage.engine.first = stage.engine.later = Health(dead_letters=1)
    deploy = module.new_deploy("D", stage.state(), stage.new_id, 1, {}, no_rollback=False)
    moved = claim(cut_over(replace(stage.state(), deploy=deploy), 2), "green", stage.new_id, 3, "boot")
    write_state(stage.data, claim(served(moved, 4), "green", stage.new_id, 5, "another boot"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Conductor(Place(stage.config, "green", stage.clock, stage.leave), stage.engine).run)
        with anyio.fail_after(60):
            await until(lambda: stage.state().active is None)
        tasks.cancel_scope.cancel()
    state = stage.state().deploy
    assert state is not None
    assert state.state == "passed", state.reason


async def test_the_prior_release_says_what_does_not_work_already(stage: Stage) -> None:
    stage.engine.first = Health(degraded={"image": "missing"})
    state = await stage.deploy()
    assert state.deploy is not None
    assert state.deploy.gate("bake").limit["degraded_before"] == ["image"]


async def test_a_breach_in_the_bake_goes_back_with_its_cooldown_in_the_same_state(stage: Stage) -> None:
    stage.engine.later = Health(dead_letters=2)
    state = await bake(stage)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, state.epoch, stage.left) == ("rolled_back", "blue", 3, True)
    assert state.cooldown.keys() == {stage.new_id}
    assert "2 new dead letters" in state.deploy.reason


async def test_a_receiver_that_is_down_during_the_bake_is_not_the_release_s_fault_and_is_named(stage: Stage) -> None:
    stage.engine.later = Health(dead_letters=2, degraded={"channel hook": "connection refused"})
    state = await bake(stage)
    assert state.deploy is not None
    assert state.deploy.state == "passed"
    assert state.deploy.gate("bake").measured["not_the_release"] == ["channel hook: connection refused"]


async def test_what_a_moment_without_docker_caused_is_not_held_against_the_release_afterwards(stage: Stage) -> None:
    stage.engine.between = [Health(spawn_failures=1, stuck=1, degraded={"runtime": "no answer"})]
    stage.engine.later = Health(spawn_failures=1, stuck=1)
    state = await bake(stage)
    assert state.deploy is not None
    assert state.deploy.state == "passed"
    assert state.deploy.gate("bake").measured["not_the_release"] == ["runtime: no answer"]


@pytest.mark.parametrize(
    ("later", "outcome"),
    [
        (Health(pace={ROUND_TRIP: Pace(50, 6001)}), "rolled_back"),
        (Health(pace={ROUND_TRIP: Pace(50, 6000)}), "passed"),
        (Health(pace={ROUND_TRIP: Pace(49, 60000)}), "passed"),
        (Health(pace={ACCEPTANCE: Pace(50, 60000)}), "passed"),
        (Health(pace={ROUND_TRIP: Pace(50, 6001)}, degraded={"channel hook": "refused"}), "passed"),
        (Health(stuck=1), "rolled_back"),
    ],
    ids=[
        "slow",
        "as fast as allowed",
        "too few",
        "the prior release has too few",
        "a receiver is down",
        "agents are stuck",
    ],
)
async def test_a_release_that_is_slow_or_whose_agents_are_stuck_goes_back(
    stage: Stage, later: Health, outcome: str
) -> None:
    stage.engine.later = later
    state = await bake(stage, limits={ROUND_TRIP: 6000})
    assert state.deploy is not None
    assert state.deploy.state == outcome, state.deploy.reason


async def test_the_bake_s_limits_are_what_the_prior_release_took(stage: Stage) -> None:
    stage.engine.first = Health(pace={ACCEPTANCE: Pace(50, 7), ROUND_TRIP: Pace(99, 4000)})
    state = await stage.deploy()
    assert state.deploy is not None
    assert state.deploy.gate("bake").limit["p95_ms"] == {ACCEPTANCE: 5000, ROUND_TRIP: 8000}


async def test_without_a_way_back_a_breach_leaves_the_new_slot_serving_and_unhealthy(stage: Stage) -> None:
    stage.engine.later = Health(quarantined=1)
    state = await bake(stage, no_rollback=True)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, stage.left) == ("unhealthy", "green", False)


async def test_a_deploy_that_is_over_is_reported_once_also_when_a_start_ended_it(stage: Stage) -> None:
    """A standby that goes back has no telemetry: the daemon that serves afterwards reports the deploy."""
    deploy = module.new_deploy("D", stage.state(), stage.new_id, 1, {}, no_rollback=False)
    moved = cut_over(replace(stage.state(), deploy=deploy), 2)
    write_state(stage.data, roll_back(moved, "no daemon of the new release ran", 3, 0))
    for _ in range(2):
        conductor = Conductor(Place(stage.config, BLUE, SystemClock(), stage.leave), stage.engine)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conductor.run)
            with anyio.fail_after(60):
                await until(lambda: (found := stage.state().deploy) is not None and found.reported)
            tasks.cancel_scope.cancel()
    assert stage.engine.reported == ["rolled_back"]
    assert stage.engine.states[-1] == stage.state()


class SetBack(SystemClock):
    """A clock that somebody sets back by an hour again and again."""

    hours = 0

    def now_ms(self) -> int:
        self.hours += 1
        return super().now_ms() - self.hours * 3_600_000


async def test_a_clock_that_is_set_back_stops_no_deploy_and_no_bake(stage: Stage) -> None:
    stage.clock = SetBack()
    state = await stage.deploy()
    assert (state.serving, stage.left) == ("green", True)
    write_state(stage.data, roll_back(state, "to bake again", 1, 0))
    stage.left = False
    state = await bake(stage)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving) == ("passed", "green")
    assert state.deploy.gate("cutover").measured["took_ms"] >= 0


class Other(Protocol):
    """What the engine says of the images."""

    def __call__(self, config: Config, names: Iterable[str]) -> dict[str, ImageFound]: ...


def away(config: Config, names: Iterable[str]) -> dict[str, ImageFound]:
    raise RuntimeUnavailableError("Docker does not answer.")


def another_source(config: Config, names: Iterable[str]) -> dict[str, ImageFound]:
    return dict.fromkeys(names, ImageFound(IMAGE, "f" * 64))


def gone(config: Config, names: Iterable[str]) -> dict[str, ImageFound]:
    return dict.fromkeys(names, ImageFound(error="there is no such image"))


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (away, "images: Docker does not answer"),
        (another_source, "found ffffffffffff"),
        (gone, "there is no such image"),
    ],
)
async def test_a_release_whose_images_are_not_its_own_is_blocked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, engine: Other, reason: str
) -> None:
    monkeypatch.setattr(drift, "look_at_images", engine)
    stage.use(small_release(stage.releases.root, "imaged", images={"agent:1": IMAGE}))
    state = await stage.deploy()
    assert state.deploy is not None
    assert (state.deploy.gate("preflight").status, state.serving) == ("fail", "blue")
    assert reason in state.deploy.reason


async def test_a_full_disk_at_the_cutover_leaves_the_old_slot_serving(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(data: Path, state: SlotState) -> None:
        if state.serving == "green":
            raise SlotStateError(f"{state_path(data)} cannot be written: No space left on device.")
        write_state(data, state)

    monkeypatch.setattr(slot_record, "write_state", write)
    state = await stage.deploy()
    assert state.deploy is not None
    assert (state.serving, state.deploy.state, stage.left, stage.engine.held) == ("blue", "failed", False, False)
    assert [one.name for one in state.deploy.gates if one.status == "fail"] == ["cutover"]


async def test_a_cutover_that_is_written_and_reported_as_failed_is_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(data: Path, state: SlotState) -> None:
        write_state(data, state)
        if state.serving == "green":
            raise SlotStateError("the folder cannot be synced: Input/output error.")

    monkeypatch.setattr(slot_record, "write_state", write)
    state = await stage.deploy()
    assert state.active is not None
    assert (state.serving, stage.left, stage.engine.held) == ("green", True, True)


def test_a_state_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    path = state_path(tmp_path)
    path.parent.mkdir()
    for text in ("", "[]", '{"serving": "red"}', "\x00"):
        path.write_text(text)
        with pytest.raises(SlotStateError):
            read_state(tmp_path)
    path.unlink()
    assert read_state(tmp_path) == SlotState()


async def test_a_record_that_somebody_removed_is_written_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else no deploy begins, and after a restart any slot serves."""
    monkeypatch.setattr("daemon.deploy.conductor._RECORD_S", 0.01)
    place = Place(stage.config, BLUE, stage.clock, stage.leave, "r", 7)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Conductor(place, stage.engine).run)
        with anyio.fail_after(60):
            state_path(stage.data).unlink()
            await until(lambda: state_path(stage.data).exists())
        tasks.cancel_scope.cancel()
    assert stage.state() == SlotState(epoch=7, serving=BLUE, release="r")


@pytest.mark.parametrize("outcome", ["failed", "passed", "rolled_back"])
async def test_an_outcome_that_cannot_be_written_for_a_while_ends_no_daemon(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    refused = 0

    def write(data: Path, state: SlotState) -> None:
        nonlocal refused
        if state.active is None and refused < 2:
            refused += 1
            raise SlotStateError(f"{state_path(data)} cannot be written: No space left on device.")
        write_state(data, state)

    monkeypatch.setattr(slot_record, "write_state", write)
    monkeypatch.setattr(slot_record, "_RETRY_S", 0.01)
    if outcome == "failed":
        fail_the_probe(stage)
    if outcome == "rolled_back":
        stage.engine.later = Health(dead_letters=2)
    state = await (stage.deploy() if outcome == "failed" else bake(stage))
    assert state.deploy is not None
    assert (state.deploy.state, refused) == (outcome, 2)


async def test_a_begin_that_is_written_and_reported_as_failed_is_carried_out_and_can_be_aborted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would end it: a second start is refused while it is on record."""
    stage = Stage(tmp_path, monkeypatch, warm_s=60, warm_limit_s=60)
    failures = iter([True])

    def write(data: Path, state: SlotState) -> None:
        write_state(data, state)
        if next(failures, False):
            raise SlotStateError("the folder cannot be synced: Input/output error.")

    monkeypatch.setattr(slot_record, "write_state", write)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.conductor.run)
        with pytest.raises(SlotStateError):
            await stage.conductor.start(stage.new.name, force=False, no_rollback=False)
        with anyio.fail_after(60):
            await until(lambda: (active := stage.state().active) is not None and active.gate("warm").since is not None)
            assert (await stage.conductor.abort("ann"))["deploy"]["state"] == "aborted"
        tasks.cancel_scope.cancel()


async def test_of_two_starts_at_once_one_begins_and_its_state_is_whole(stage: Stage) -> None:
    said: list[str] = []

    async def start() -> None:
        try:
            found = await stage.conductor.start(stage.new.name, force=False, no_rollback=False)
            said.append(str(found["deploy"]["id"]))
        except DeployRunningError as error:
            said.append(error.code)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(start)
    (begun,) = [one for one in said if one != "DEPLOY_RUNNING"]
    assert (stage.state().active or pytest.fail("none")).id == begun


async def test_an_abort_before_the_first_gate_ends_the_deploy_and_no_other(stage: Stage) -> None:
    await stage.conductor.start(stage.new.name, force=False, no_rollback=False)
    ended: list[dict[str, Any]] = []

    async def abort() -> None:
        ended.append(await stage.conductor.abort("ann"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(stage.conductor.run)
        with anyio.fail_after(60):
            await until(lambda: bool(ended))
        tasks.cancel_scope.cancel()
    assert ended[0]["deploy"]["state"] == "aborted"
    assert (await stage.deploy()).serving == "green"


async def test_an_abort_that_comes_too_late_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cutover is under way when it is asked for: it is not undone, and the command must not end as done."""
    release, refusal = threading.Event(), list[DeployRefusedError]()

    def write(data: Path, state: SlotState) -> None:
        if state.serving == "green":
            assert release.wait(60)
        write_state(data, state)

    async def abort() -> None:
        try:
            await stage.conductor.abort("ann")
        except DeployRefusedError as error:
            refusal.append(error)

    monkeypatch.setattr(slot_record, "write_state", write)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.conductor.run)
        await stage.conductor.start(stage.new.name, force=False, no_rollback=False)
        with anyio.fail_after(60):
            await until(
                lambda: (
                    stage.engine.held and (d := stage.state().active) is not None and d.gate("drain").status == "pass"
                )
            )
            tasks.start_soon(abort)
            await anyio.sleep(0.05)  # it has asked; what follows does not depend on it
            release.set()
            await until(lambda: bool(refusal))
        tasks.cancel_scope.cancel()
    assert stage.state().serving == "green"
    assert "cutover" in str(refusal[0])
    assert "deploy rollback" in (refusal[0].hint or "")


async def test_a_rollback_by_hand_and_a_breach_at_once_are_one_rollback(stage: Stage) -> None:
    """The bake ends at the breach that an operator was quicker with; the daemon must not."""
    stage.engine.later = Health(dead_letters=1)
    deploy = module.new_deploy("D", stage.state(), stage.new_id, 1, {}, no_rollback=False)
    write_state(stage.data, claim(cut_over(replace(stage.state(), deploy=deploy), 2), "green", stage.new_id, 3, "boot"))
    conductor = Conductor(Place(stage.config, "green", stage.clock, stage.leave), stage.engine)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conductor.run)
        with anyio.fail_after(60):
            await until(lambda: (d := stage.state().active) is not None and d.gate("bake").status == "running")
            with contextlib.suppress(DeployRefusedError):
                await conductor.rollback("ann")
            await anyio.sleep(stage.config.deploy.bake_s * 2)
        tasks.cancel_scope.cancel()
    state = stage.state()
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, state.epoch) == ("rolled_back", "blue", 3)


async def test_a_rollback_of_a_deploy_without_a_way_back_is_refused(stage: Stage) -> None:
    deploy = module.new_deploy("D", stage.state(), stage.new_id, 1, {}, no_rollback=True)
    write_state(stage.data, claim(cut_over(replace(stage.state(), deploy=deploy), 2), "green", stage.new_id, 3, "boot"))
    conductor = Conductor(Place(stage.config, "green", stage.clock, stage.leave), stage.engine)
    with pytest.raises(DeployRefusedError, match="no way back"):
        await conductor.rollback("ann")
    assert stage.state().active is not None


async def test_a_breach_with_nobody_in_the_prior_slot_leaves_the_new_one_serving(stage: Stage) -> None:
    stage.look = lambda _: None
    stage.engine.later = Health(dead_letters=2)
    state = await bake(stage)
    assert state.deploy is not None
    assert (state.deploy.state, state.serving, state.epoch, stage.left) == ("unhealthy", "green", 2, False)
    assert (state.deploy.gate("bake").status, state.deploy.gate("rollback").status) == ("fail", "fail")
    assert "no daemon answers" in state.deploy.reason


async def test_what_the_bake_saw_is_kept_when_it_fails(stage: Stage) -> None:
    stage.engine.between = [Health(degraded={"channel hook": "refused"})]
    stage.engine.later = Health(quarantined=1, pace={ROUND_TRIP: Pace(3, 7)})
    state = await bake(stage)
    assert state.deploy is not None
    measured = state.deploy.gate("bake").measured
    assert (measured["checks"], measured["not_the_release"]) == (2, ["channel hook: refused"])
    assert measured["pace"] == {ROUND_TRIP: {"samples": 3, "p95_ms": 7}}


async def test_the_rollback_has_passed_when_the_prior_slot_s_daemon_is_ready(stage: Stage) -> None:
    stage.engine.later = Health(dead_letters=2)
    gone = (await bake(stage)).deploy
    assert gone is not None
    assert (gone.gate("rollback").status, gone.gate("rollback").limit) == ("running", {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Conductor(Place(stage.config, BLUE, stage.clock, stage.leave), stage.engine).run)
        with anyio.fail_after(60):
            await until(lambda: (d := stage.state().deploy) is not None and d.reported)
        tasks.cancel_scope.cancel()
    back = stage.state().deploy
    assert back is not None
    assert back.gate("rollback").status == "pass"
    assert back.gate("rollback").measured["took_ms"] >= 0
