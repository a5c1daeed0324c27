"""Containers under other hands: restarted, made again, given a restart policy, while the daemon runs or while it is down.

One incarnation is one life of one container: it costs a message one try and no more, and nothing of what its exit entails is
done while the container lives.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner.shared.errors import ClaimLostError
from daemon.core.errors import NotConfirmedError
from daemon.core.message_verbs import CancelMessage
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import KillSession
from daemon.engine.supervisor.slots import Phase
from tests.support.bus_kit import AGENT, BusKit, until
from tests.support.fake_agent import Agent
from tests.support.fake_runtime import FakeContainer, FakeRuntime

pytestmark = [pytest.mark.anyio]

KEY = SessionKey(AGENT, "main")


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(tmp_path / "data")
    async with made.running():
        yield made


async def working(kit: BusKit) -> FakeContainer:
    """A running container that has claimed m1."""
    await kit.send(message_id="m1")
    await kit.started()
    await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
    assert kit.agent().claim() is not None
    await kit.bus.sweeper.tick()  # the host has seen the claim
    return kit.host.of_session("main")


async def replaced(kit: BusKit, container: FakeContainer) -> None:
    """Until the container is gone for good, and all that its exit entails is done."""
    await until(lambda: container.id not in kit.host.containers)
    await until(lambda: (slot := kit.slot()) is None or slot.incarnation != container.spec.incarnation)


async def test_an_idle_container_that_is_restarted_is_ended_and_replaced(kit: BusKit) -> None:
    await kit.bus.supervisor.wake(await kit.bus.sessions.create(KEY))
    await kit.started()
    await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
    container = kit.host.of_session("main")
    kit.host.restart(container.id)
    await replaced(kit, container)
    assert container.signals == ["TERM"], "its second life was ended"
    await kit.send(message_id="m1")
    await kit.started()
    assert kit.host.of_session("main").spec.incarnation != container.spec.incarnation
    assert (await kit.row()).spawn_failures == 0, "what others did is no failed start"


async def test_a_restart_in_mid_turn_costs_one_try_and_settles_nothing_before_the_end(kit: BusKit) -> None:
    container = await working(kit)
    container.ignores_term = True
    kit.host.unkillable.add("main")
    journal = Agent(container.spec, kit.clock).outbox / "outbound.db-journal"
    kit.host.restart(container.id)
    await until(lambda: "KILL" in container.signals)
    journal.touch()
    await kit.bus.sweeper.tick()
    assert journal.exists(), "the second life may be writing"
    assert (await kit.message("m1"))["tries"] == 0
    kit.host.exit_now(container.id, 137)
    await replaced(kit, container)
    assert not journal.exists()
    assert (await kit.message("m1"))["tries"] == 1


async def test_one_that_is_started_again_between_its_exit_and_its_removal_is_no_exit(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await working(kit)
    real, races = FakeRuntime.remove, [container.id]

    async def races_with_a_start(runtime: FakeRuntime, container_id: str) -> None:
        if races:
            kit.host.start_again(races.pop())
        await real(runtime, container_id)

    monkeypatch.setattr(FakeRuntime, "remove", races_with_a_start)
    kit.host.exit_now(container.id, 1)
    await replaced(kit, container)
    assert races == []
    assert container.signals == ["TERM"]
    assert (await kit.message("m1"))["tries"] == 1


async def test_a_restart_policy_is_taken_away_while_the_container_works(kit: BusKit) -> None:
    container = await working(kit)
    container.restart_policy = True
    kit.host.notify()
    await until(lambda: not container.restart_policy)
    assert container.signals == []
    kit.host.exit_now(container.id, 137)
    await replaced(kit, container)
    assert (await kit.message("m1"))["tries"] == 1


async def test_a_message_that_kills_its_runner_uses_up_its_tries_under_a_restart_policy(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", sweep={"max_tries": 3})
    async with kit.running():
        await kit.send(message_id="m1")
        for _ in range(3):
            await kit.started()
            await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
            container = kit.host.of_session("main")
            assert kit.agent().claim() is not None
            container.restart_policy = True
            kit.host.exit_now(container.id, 137)
            assert container.exit is None, "Docker has started it again"
            await replaced(kit, container)
            kit.advance(600)
        message = await kit.message("m1")
        assert (message["status"], message["tries"]) == ("failed", 3)


async def test_a_second_life_of_a_killed_container_claims_nothing(kit: BusKit) -> None:
    """What it dropped would be charged to nobody: a message that kills its runner would do so forever."""
    container = await working(kit)
    second = Agent(container.spec, kit.clock)
    with pytest.raises(ClaimLostError):
        second.store.start()


async def test_a_container_made_again_by_others_is_ended_and_the_supervised_one_goes_on(kit: BusKit) -> None:
    container = await working(kit)
    other = kit.host.recreate(container.id)
    await until(lambda: other.id not in kit.host.containers)
    assert other.signals == ["TERM"]
    assert container.signals == []
    slot = kit.slot()
    assert slot is not None
    assert slot.container_id == container.id
    assert (await kit.message("m1"))["tries"] == 0


async def test_one_made_again_while_the_daemon_was_down_is_not_taken_for_the_recorded_one(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        container = await working(kit)
    other = kit.host.recreate(container.id)
    del kit.host.containers[container.id]  # docker rm -f, docker run
    async with kit.running():
        await until(lambda: other.id not in kit.host.containers)
        await until(lambda: (slot := kit.slot()) is None or slot.incarnation != container.spec.incarnation)
        assert (await kit.message("m1"))["tries"] == 1


async def test_a_restart_while_the_daemon_is_down_is_noticed_by_the_next(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        container = await working(kit)
    kit.host.restart(container.id)
    async with kit.running():
        await replaced(kit, container)
        assert (await kit.message("m1"))["tries"] == 1


async def test_what_is_ended_beside_a_supervised_container_counts_for_the_cap(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 2})
    kit.host.unkillable.add("main")
    async with kit.running():
        container = await working(kit)
        other = kit.host.recreate(container.id)
        other.ignores_term = True
        await until(lambda: "KILL" in other.signals)
        await kit.send("second")
        await until(lambda: SessionKey(AGENT, "second") in kit.bus.supervisor.waiting())
        assert kit.spawned("second") == 0
        kit.host.exit_now(other.id, 137)
        await kit.started("second")


async def test_an_operators_kill_of_one_session_leaves_the_starts_of_others_alone(kit: BusKit) -> None:
    await kit.bus.sessions.create(SessionKey(AGENT, "idle"))
    kit.host.spawn_gate = anyio.Event()
    await kit.send("starting")
    await until(lambda: ("spawn", "starting") in kit.host.calls)
    assert (await kit.operations.execute(KillSession(AGENT, "idle", reason="a test")))["killed"] is False
    assert [about for method, about in kit.host.calls if method == "find_or_cancel_spawn"] == []
    kit.host.spawn_gate.set()
    await kit.started("starting")
    assert (await kit.row("starting")).spawn_failures == 0


async def test_two_at_once_who_end_an_unsupervised_container_make_one_slot(kit: BusKit) -> None:
    container = await working(kit)
    kit.host.spawn_gate = anyio.Event()  # nothing takes its place
    kit.host.exit_now(container.id, 1)
    await kit.gone()
    stray = FakeContainer("stray", container.spec, kit.clock.now_ms())
    kit.host.containers[stray.id] = stray
    killed: list[Any] = []

    async def kill() -> None:
        killed.append(await kit.operations.execute(KillSession(AGENT, "main", reason="a test")))

    waits = [about for method, about in kit.host.calls if method == "remove"].count(stray.id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        tasks.start_soon(kill)
    assert any(one["killed"] for one in killed)
    removals = [about for method, about in kit.host.calls if method == "remove"].count(stray.id)
    assert removals - waits == 1, "one watch saw its exit"


async def test_a_cancel_whose_kill_is_not_confirmed_says_so_and_is_finished_by_a_repeat(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"kill_confirm_s": 0.05})
    kit.host.unkillable.add("main")
    async with kit.running():
        container = await working(kit)
        cancel = CancelMessage(AGENT, "main", by="root", id="m1", kill=True)
        with pytest.raises(NotConfirmedError, match="m1 is cancelled, but its container still runs"):
            await kit.operations.execute(cancel)
        assert (await kit.message("m1"))["status"] == "cancelled"
        kit.host.unkillable.clear()
        kit.host.exit_now(container.id, 137)
        done = await kit.operations.execute(cancel)
        assert (done["id"], done["was"]) == ("m1", "cancelled")
        await replaced(kit, container)
