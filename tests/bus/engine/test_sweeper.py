"""The sweep in a whole bus: isolation, healing, jumps of the clock, idle stop, and what follows an exit."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import ReleaseSession
from daemon.engine import session_sweep
from daemon.engine import sweeper as sweeper_module
from daemon.engine.supervisor.slots import Phase
from daemon.engine.sweeper import _pass_pause
from daemon.engine.troubles import ACCEPT
from daemon.store.registry import Registry
from schema.errors import ReadDeadlineError, StorageError
from tests.support.bus_kit import AGENT, SECONDS, BusKit, until

pytestmark = [pytest.mark.anyio]


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(tmp_path / "data")
    async with made.running():
        yield made


class SweepScript:
    """Stands between the sweeper and the files: counts looks per session and lets a test break or hold them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, threading.Event] = {}
        real = session_sweep.sweep_files

        def sweep(files: Any, *arguments: Any, **named: Any) -> Any:
            name = files.folder.root.name
            self.looks.append(name)
            if name in self.gates:
                self.gates[name].wait(3 * SECONDS)
            if name in self.errors:
                raise self.errors[name]
            return real(files, *arguments, **named)

        monkeypatch.setattr(session_sweep, "sweep_files", sweep)


async def running(kit: BusKit, session: str = "main") -> Any:
    """A session with a running container that has claimed its message."""
    await kit.send(session, message_id="m1")
    await kit.started(session)
    agent = kit.agent(session)
    assert agent.claim() is not None
    await until(lambda: (slot := kit.slot(session)) is not None and slot.phase is Phase.RUNNING)
    await kit.settle()
    return agent


async def test_a_failed_accept_is_forgotten_once_the_session_can_be_swept_although_no_message_comes(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender was informed and may never come back: the finding must end with its cause."""
    sessions, key, unregistered = kit.bus.sessions, SessionKey(AGENT, "new"), SessionKey(AGENT, "never made")
    with monkeypatch.context() as patched:

        async def fails(*_: object) -> None:
            raise StorageError("no thread can be started")

        patched.setattr(type(sessions), "activate", fails)
        with pytest.raises(StorageError):
            await kit.send("new")
    sessions.troubles.failed(unregistered, ACCEPT, StorageError("no thread can be started"), kit.clock.now_ms())
    assert list(sessions.troubles.all()) == [unregistered, key]
    await kit.bus.sweeper.tick()
    assert sessions.troubles.all() == {}


@pytest.mark.parametrize("error", [StorageError("disk I/O error"), ValueError("a bug")])
async def test_a_session_that_raises_keeps_no_other_from_being_swept(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in ("bad", "good"):
        await running(kit, name)
    script = SweepScript(monkeypatch)
    script.errors["bad"] = error
    await kit.bus.sweeper.tick()
    assert sorted(script.looks) == ["bad", "good"]
    assert (kit.bus.sweeper.last.sessions, kit.bus.sweeper.last.errors) == (2, 1)
    del script.errors["bad"]
    await kit.bus.sweeper.tick()
    assert kit.bus.sweeper.last.errors == 0


async def test_a_pass_is_begun_over_its_time_and_not_all_at_once(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        await running(kit, name)
    begun: list[float] = []
    real, me = anyio.sleep, anyio.get_current_task().id

    async def sleep(seconds: float) -> None:
        if anyio.get_current_task().id != me:  # others of the bus sleep, too
            await real(seconds)
            return
        begun.append(round(seconds, 3))
        await real(0)

    monkeypatch.setattr(sweeper_module.anyio, "sleep", sleep)
    await kit.bus.sweeper.tick(0.3)
    assert begun == [0.1, 0.1, 0.1]
    begun.clear()
    await kit.bus.sweeper.tick(3600)
    assert begun == [0.2, 0.2, 0.2], "few sessions need no hour"
    begun.clear()
    await kit.bus.sweeper.tick()
    assert begun == [], "and none when there is no time to spread it over"


async def test_a_session_that_hangs_keeps_no_other_from_being_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data", sweep={"session_timeout_s": 0.5})
    async with kit.running():
        for name in ("bad", "good"):
            await running(kit, name)
        script = SweepScript(monkeypatch)
        gate = script.gates["bad"] = threading.Event()
        try:
            bad = await kit.session("bad")
            with anyio.fail_after(SECONDS):
                # A slow machine may need more rounds: a look that found no thread in time does not count.
                while script.looks.count("good") < 2 or bad.consecutive_timeouts.get("sweep", 0) < 2:
                    await kit.bus.sweeper.tick()
            assert script.looks.count("bad") == 1, "a second thread on the same files"
        finally:
            del script.gates["bad"]
            gate.set()


async def test_a_session_whose_files_are_held_keeps_no_other_from_being_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data", sweep={"session_timeout_s": 3.0})
    async with kit.running():
        for name in ("bad", "good"):
            await running(kit, name)
        script = SweepScript(monkeypatch)
        async with (await kit.session("bad")).lock:
            with anyio.fail_after(SECONDS), capture_logs() as logs:
                await kit.bus.sweeper.tick()
        assert script.looks == ["good"]
        assert [entry["session"] for entry in logs if entry["event"] == "sweep_timeout"] == ["bad"]
        assert kit.bus.sweeper.last.errors == 1


async def test_a_full_pass_heals_a_wrongly_inactive_session(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.send()
        kit.crash()
    Registry(kit.root / "central.db").deactivate(SessionKey(AGENT, "main"), None)
    kit.host.containers.clear()
    for row in Registry(kit.root / "central.db").live_incarnations():
        Registry(kit.root / "central.db").end_incarnation(row.id, 1, None, "a test")
    async with kit.running():
        await kit.started()
        await kit.settle()
        assert (await kit.row()).active is True


async def test_a_full_pass_that_cannot_read_the_registry_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise StorageError("disk I/O error")

    monkeypatch.setattr(Registry, "all_keys", broken)
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await anyio.wait_all_tasks_blocked()
        await kit.send()
        await kit.started()


@pytest.mark.parametrize("hours", [5, -5])
async def test_a_jump_of_the_clock_kills_nothing(kit: BusKit, hours: float) -> None:
    agent = await running(kit)
    agent.beat()
    await kit.bus.sweeper.tick()
    container = kit.host.of_session("main")
    kit.clock.jump(hours * 3600)
    await kit.bus.sweeper.tick()
    await kit.settle()
    assert container.signals == []
    kit.clock.advance(30)
    await kit.bus.sweeper.tick()
    assert container.signals == []


@pytest.mark.parametrize("hours", [5, -5])
async def test_a_hung_agent_is_found_after_a_jump_of_the_clock_too(kit: BusKit, hours: float) -> None:
    await running(kit)
    await kit.bus.sweeper.tick()
    container = kit.host.of_session("main")
    kit.clock.jump(hours * 3600)
    await kit.bus.sweeper.tick()
    kit.clock.advance(1860)
    await kit.bus.sweeper.tick()
    await until(lambda: container.exit is not None)


async def test_a_stuck_claim_is_ended_and_costs_one_try(kit: BusKit) -> None:
    await running(kit)
    container = kit.host.of_session("main")
    kit.clock.advance(61)
    await kit.bus.sweeper.tick()
    await until(lambda: container.exit is not None)
    await kit.gone()
    assert container.signals == ["TERM"]
    message = await kit.message("m1")
    assert (message["tries"], message["status"]) == (1, "pending")
    for _ in range(3):
        await kit.bus.sweeper.tick()
    assert (await kit.message("m1"))["tries"] == 1


async def test_a_kill_hits_the_incarnation_that_was_judged_and_no_other(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(kit)
    old = kit.host.of_session("main")
    kit.clock.advance(61)
    session = await kit.session()
    real = type(kit.bus.sessions).activate

    async def exits_meanwhile(self: Any, which: Any) -> None:
        slot = kit.slot()
        assert slot is not None
        # As when its container ends and another one starts while the sweep writes to central.db.
        slot.incarnation = "01ANOTHER"
        await real(self, which)

    with monkeypatch.context() as patched:
        patched.setattr(type(kit.bus.sessions), "activate", exits_meanwhile)
        await kit.bus.sweeper.sweep(session.key)
    slot = kit.slot()
    assert slot is not None
    assert slot.phase is Phase.RUNNING
    assert old.signals == []
    slot.incarnation = old.spec.incarnation


async def test_a_quiet_container_is_stopped_and_costs_nothing(kit: BusKit) -> None:
    agent = await running(kit)
    container = kit.host.of_session("main")
    agent.store.release_all()
    batch = agent.claim()
    assert batch is not None
    agent.answer(batch)
    await until(lambda: len(kit.fake.sent) == 1)
    await kit.settle()
    kit.clock.advance(890)
    await kit.bus.sweeper.tick()
    assert container.signals == []
    kit.clock.advance(20)
    await kit.bus.sweeper.tick()
    await until(lambda: container.exit is not None)
    await kit.gone()
    assert container.signals == ["TERM"]
    assert (await kit.row()).spawn_failures == 0
    await kit.fence()
    assert kit.spawned() == 1
    assert (await kit.row()).active is False


async def test_a_poke_during_a_sweep_sweeps_once_more_and_not_more_often(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(kit)
    session = await kit.session()
    script = SweepScript(monkeypatch)
    gate = script.gates["main"] = threading.Event()
    kit.bus.sweeper.poke(session.key)
    await until(lambda: len(script.looks) == 1)
    for _ in range(50):
        kit.bus.sweeper.poke(session.key)
    gate.set()
    await kit.settle()
    assert len(script.looks) == 2


async def test_a_poke_during_a_sweep_that_fails_is_not_lost(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    await running(kit)
    session = await kit.session()
    script = SweepScript(monkeypatch)
    gate = script.gates["main"] = threading.Event()
    script.errors["main"] = StorageError("disk I/O error")
    kit.bus.sweeper.poke(session.key)
    await until(lambda: len(script.looks) == 1)
    kit.bus.sweeper.poke(session.key)
    gate.set()
    await kit.settle()
    assert len(script.looks) == 1, "at once it would fail again"
    script.errors.clear()
    kit.advance(6)
    await until(lambda: len(script.looks) == 2)


async def test_an_answer_that_was_not_delivered_yet_keeps_the_session_active(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await running(kit)
    batch = claimed_again(agent)
    retired: list[SessionKey] = []
    real = Registry.deactivate

    def noted(self: Registry, key: SessionKey, next_due_at: int | None) -> None:
        with kit.bus.sessions.files_of(key).inbound() as db:
            retired.append(key) if not db.all("SELECT 1 FROM delivered") else None
        real(self, key, next_due_at)

    monkeypatch.setattr(Registry, "deactivate", noted)
    kit.bus.watch.remove((await kit.session()).key)
    agent.answer(batch)
    kit.host.exit_now(kit.host.of_session("main").id)
    await kit.gone()
    await until(lambda: len(kit.fake.sent) == 1)
    assert retired == [], "retired with an answer that nobody had taken note of"


async def test_a_look_at_an_idle_session_is_one_look(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow full pass looks at every session there is: delivery must not open the files again of one without work."""
    agent = await running(kit)
    batch = claimed_again(agent)
    pokes: list[SessionKey] = []
    real = kit.bus.delivery.poke

    def noted(session: Any) -> None:
        pokes.append(session.key)
        real(session)

    monkeypatch.setattr(kit.bus.delivery, "poke", noted)
    key = (await kit.session()).key
    await kit.bus.sweeper.sweep(key)
    assert pokes, "a session whose agent runs is looked at"
    agent.answer(batch)
    kit.host.exit_now(kit.host.of_session("main").id)
    await kit.gone()
    await until(lambda: len(kit.fake.sent) == 1)
    await kit.settle()
    pokes.clear()
    await kit.bus.sweeper.sweep(key)
    await kit.settle()
    assert pokes == []


def claimed_again(agent: Any) -> Any:
    """What the agent claimed in `running`, as a batch that can be answered."""
    agent.store.release_all()
    batch = agent.claim()
    assert batch is not None
    return batch


async def test_an_exit_into_a_hostile_file_is_a_quarantine_and_the_slot_is_given_back(kit: BusKit) -> None:
    agent = await running(kit)
    kit.bus.watch.remove((await kit.session()).key)
    (agent.outbox / "outbound.db").write_bytes(b"no database" * 1000)
    kit.host.exit_now(kit.host.of_session("main").id, 1)
    await kit.gone()
    session = await kit.session()
    assert session.quarantined is not None
    await until(lambda: (row := Registry(kit.root / "central.db").session(session.key)) is not None
                and row.quarantine_reason is not None)  # fmt: skip
    assert (await kit.message("m1"))["tries"] == 0
    await kit.fence()
    assert kit.spawned() == 1


async def test_an_exit_whose_files_stay_slow_is_a_quarantine_and_not_a_loop(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(kit)

    def slow(*_: Any) -> Any:
        raise ReadDeadlineError("slow")

    monkeypatch.setattr(session_sweep, "finish_incarnation", slow)
    kit.host.exit_now(kit.host.of_session("main").id, 1)
    await kit.gone()
    assert (await kit.session()).quarantined is not None


async def test_a_release_settles_what_the_quarantined_exit_left(kit: BusKit) -> None:
    agent = await running(kit)
    path = agent.outbox / "outbound.db"
    good = path.read_bytes()
    kit.bus.watch.remove((await kit.session()).key)
    path.write_bytes(b"no database" * 1000)
    kit.host.exit_now(kit.host.of_session("main").id, 1)
    await kit.gone()
    path.write_bytes(good)
    await kit.operations.execute(ReleaseSession(AGENT, "main"))
    await kit.started()
    again = kit.agent().claim()
    assert again is not None
    assert [message.id for message in again.messages] == ["m1"]


async def test_what_ends_after_the_sweeper_does_not_fail_the_daemons_end(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await running(kit)
    assert kit.bus.sweeper._tasks is None
    kit.bus.sweeper.poke(SessionKey(AGENT, "main"))  # must not raise


@pytest.mark.parametrize(
    ("more", "count", "elapsed_s", "pause_s"),
    [
        (True, 100, 0.0, 60.0),
        (True, 10_000, 0.0, 7.2),
        (True, 1_000_000, 0.0, 0.072),
        (False, 10_000, 3500.0, 100.0),
        (False, 10_000, 4000.0, 1.0),
        (False, 3, 0.1, 3599.9),
    ],
)
def test_a_full_pass_is_spread_over_its_interval(more: bool, count: int, elapsed_s: float, pause_s: float) -> None:
    page = SessionKey("a", "s") if more else None
    assert _pass_pause(page, count, 3600.0, elapsed_s) == pytest.approx(pause_s)
