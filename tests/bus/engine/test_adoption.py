"""What a restarted daemon makes of the containers it finds: kept, ended or settled, and never two for one session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from daemon.config.agents import Agent as AgentConfig
from daemon.core.errors import DataFolderError, ImageError, RuntimeUnavailableError
from daemon.core.message_verbs import CancelMessage
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import KillSession, ResetSession, StopSession
from daemon.core.verb import Verb
from daemon.engine.supervisor.slots import Phase
from daemon.runtimes import factory
from daemon.runtimes.protocol import Running
from daemon.store.registry import Registry
from schema.errors import FileBusyError, StorageError
from tests.support.bus_kit import AGENT, BusKit, until
from tests.support.fake_runtime import FakeRuntime

pytestmark = [pytest.mark.anyio]

KEY = SessionKey(AGENT, "main")


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


async def one_run(kit: BusKit, session: str = "main") -> Any:
    """A daemon starts a container and ends; the container lives on. It has a message to work on."""
    async with kit.running():
        await kit.send(session, message_id="m1")
        await kit.started(session)
        await until(lambda: (slot := kit.slot(session)) is not None and slot.phase is Phase.RUNNING)
    container = kit.host.of_session(session)
    assert container.signals == [], "the daemon's end ends no agent"
    return container


async def test_a_container_that_is_still_wanted_is_kept(kit: BusKit) -> None:
    container = await one_run(kit)
    async with kit.running():
        slot = kit.slot()
        assert slot is not None
        assert (slot.container_id, slot.incarnation) == (container.id, container.spec.incarnation)
        await kit.bus.sweeper.tick()
        await kit.fence()
        assert container.signals == []
        assert kit.spawned() == 1
        assert (await kit.session()).key in kit.bus.watch._watched, "an adopted container is watched, too"


async def test_its_exit_is_noticed_and_settled(kit: BusKit) -> None:
    container = await one_run(kit)
    assert kit.agent().claim() is not None
    async with kit.running():
        kit.host.exit_now(container.id, 137)
        await until(lambda: container.id in kit.host.removed)
        await kit.gone()
        assert (await kit.message("m1"))["tries"] == 1


async def test_an_outdated_container_ends_gracefully_and_the_message_goes_to_a_new_one(kit: BusKit) -> None:
    container = await one_run(kit)
    kit.config = kit.configure(agents={AGENT: AgentConfig(env={"NEW": "1"})})
    async with kit.running():
        await until(lambda: container.exit is not None)
        assert container.signals == ["TERM"]
        await kit.started()
        assert kit.host.of_session("main").spec.incarnation != container.spec.incarnation


async def test_an_outdated_container_finishes_its_turn_and_claims_no_other_before_it_is_replaced(kit: BusKit) -> None:
    container = await one_run(kit)
    agent = kit.agent()
    batch = agent.claim()
    assert batch is not None
    kit.config = kit.configure(agents={AGENT: AgentConfig(env={"NEW": "1"})})
    async with kit.running():
        await kit.send(message_id="m2")
        await until_draining(kit)
        await kit.bus.sweeper.tick()
        assert container.signals == [], "a turn in hand is not cut"
        agent.answer(batch)
        assert agent.claim() is None, "m2 waits for the new container"
        await until(lambda: container.exit is not None)
        assert container.signals == ["TERM"]
        await kit.started()
        successor = kit.agent().claim()
        assert successor is not None
        assert [message.id for message in successor.messages] == ["m2"]
        assert (await kit.message("m1"))["tries"] == 0


async def until_draining(kit: BusKit) -> None:
    async def noted() -> bool:
        return await kit.inbound("SELECT * FROM draining") != []

    with anyio.fail_after(60):
        while not await noted():
            await anyio.lowlevel.checkpoint()


async def test_an_outdated_container_is_kept_while_none_could_replace_it(kit: BusKit) -> None:
    container = await one_run(kit)
    kit.config = kit.configure(agents={AGENT: AgentConfig(env={"NEW": "1"})})
    kit.host.check_error = ImageError("the image x is foreign.")
    async with kit.running():
        await kit.bus.sweeper.tick()
        slot = kit.slot()
        assert slot is not None
        assert (slot.container_id, slot.reason) == (container.id, None)
        assert container.signals == []


async def test_the_container_of_an_agent_that_is_gone_ends(kit: BusKit) -> None:
    container = await one_run(kit)
    kit.config = kit.configure(agents={"other": AgentConfig()})
    async with kit.running():
        await until(lambda: container.exit is not None)
        await kit.gone()
        assert container.signals == ["TERM"]
        assert (await kit.message("m1"))["status"] == "pending", "its message is kept"


async def test_an_agent_works_on_when_its_spec_cannot_be_made_just_now(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await one_run(kit)

    def full(*_: Any) -> Path:
        raise DataFolderError("no space left on device.")

    monkeypatch.setattr(factory, "_agent_folder", full)
    async with kit.running():
        await kit.bus.sweeper.tick()
        assert container.signals == []
        assert kit.slot() is not None


async def test_a_stray_is_ended_before_another_one_starts(kit: BusKit) -> None:
    container = await one_run(kit)
    registry = Registry(kit.root / "central.db")
    registry.end_incarnation(container.spec.incarnation, 1, None, "a test")
    container.ignores_term = True
    kit.host.unkillable.add("main")  # it ends when the test says so
    async with kit.running():
        assert (slot := kit.slot()) is not None
        assert slot.reason == "stray"
        await kit.send()
        await until(lambda: container.signals[:2] == ["TERM", "KILL"])
        assert kit.host.spawns == 1
        kit.host.exit_now(container.id, 137)
        await until(lambda: kit.host.spawns == 2)
        assert (await kit.row()).spawn_failures == 0


async def test_a_stray_of_a_session_that_nobody_knows_is_ended(kit: BusKit) -> None:
    container = await one_run(kit)
    (kit.root / "central.db").unlink()
    async with kit.running():
        await until(lambda: container.exit is not None)

        def settled() -> bool:  # its message is due, so that the next one may have the slot at once
            slot = kit.slot()
            return slot is None or slot.incarnation != container.spec.incarnation

        await until(settled)


async def test_a_stray_whose_session_cannot_be_made_holds_nobody_up(kit: BusKit) -> None:
    kit.config = kit.configure(runtime={"max_containers": 9})
    container = await one_run(kit)
    container.ignores_term = True
    kit.host.unkillable.add("main")  # it ends when the test says so
    (kit.root / "central.db").unlink()
    folder = kit.root / "sessions" / AGENT / "main"
    folder.rename(kit.root / "elsewhere")
    folder.write_text("not a folder")
    async with kit.running():
        await kit.send("other")
        await kit.started("other")
        await until(lambda: container.signals[:2] == ["TERM", "KILL"])
        folder.unlink()  # now it can be made: but the stray still runs
        await kit.send()
        await kit.fence()

        def of_main() -> list[str]:
            kit.advance(1)
            return [one.id for one in kit.host.containers.values() if one.spec.session == "main"]

        assert of_main() == [container.id]
        await kit.fence()
        assert of_main() == [container.id]
        kit.host.exit_now(container.id, 137)
        await until(lambda: any(one != container.id for one in of_main()))
        assert (await kit.row()).spawn_failures == 0


async def test_a_container_that_ended_after_the_listing_is_no_stray(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopting took long, and meanwhile its exit was settled: it must not be settled a second time."""
    container = await one_run(kit)
    Registry(kit.root / "central.db").end_incarnation(container.spec.incarnation, 1, None, "a test")
    real, asked = FakeRuntime.list_running, 0

    async def list_and_end(runtime: FakeRuntime) -> list[Running]:
        nonlocal asked
        asked += 1
        found = await real(runtime)
        kit.host.exit_now(container.id)
        return found

    monkeypatch.setattr(FakeRuntime, "list_running", list_and_end)
    with capture_logs() as logs:
        async with kit.running():
            await kit.fence()
    assert asked >= 2
    assert "container_stray" not in [one["event"] for one in logs]


async def test_an_operator_s_kill_reaches_a_container_that_nobody_supervises(kit: BusKit) -> None:
    container = await one_run(kit)
    registry = Registry(kit.root / "central.db")
    registry.end_incarnation(container.spec.incarnation, 1, None, "a test")
    registry.quarantine(KEY, "nothing of it is to start", 1)
    del kit.host.containers[container.id]
    async with kit.running():
        assert kit.slot() is None
        kit.host.containers[container.id] = container  # started behind our back
        killed = await kit.operations.execute(KillSession(AGENT, "main", reason="a test"))
        assert (killed["killed"], killed["incarnation"]) == (True, container.spec.incarnation)
        assert container.exit is not None


async def test_what_is_recorded_but_gone_is_settled(kit: BusKit) -> None:
    container = await one_run(kit)
    agent = kit.agent()
    assert agent.claim() is not None
    stranded = agent.outbox / "outbound.db-journal"
    stranded.touch()
    kit.host.containers.clear()  # the machine was restarted
    async with kit.running():
        await until(lambda: not stranded.exists())
        await kit.gone()
        message = await kit.message("m1")
        assert (message["tries"], message["status"]) == (1, "pending")
        live = await kit.bus.sessions.central(lambda registry: registry.live_incarnations())
        assert container.spec.incarnation not in [row.id for row in live]
        kit.advance(60)
        await kit.started()


async def test_a_runtime_that_is_away_at_start_is_a_state_and_not_an_end(kit: BusKit) -> None:
    container = await one_run(kit)
    assert kit.agent().claim() is not None
    journal = kit.agent().outbox / "outbound.db-journal"
    journal.touch()
    kit.host.available = False
    async with kit.running():
        assert [item["what"] for item in kit.bus.problems.degraded()] == ["runtime"]
        accepted = await kit.send(message_id="m2")
        assert accepted.message_id == "m2"
        await kit.bus.sweeper.tick()
        assert (await kit.message("m1"))["tries"] == 0, "away is no exit"
        assert journal.exists(), "it may be a living writer's"
        assert kit.bus.retention._occupied(SessionKey(AGENT, "nobody")), "nor is a file rebuilt meanwhile"
        journal.unlink()
        kit.host.available = True
        await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
        slot = kit.slot()
        assert slot is not None
        assert slot.container_id == container.id
        await kit.fence()
        assert kit.spawned() == 1
        assert kit.bus.problems.degraded() == []


@pytest.mark.parametrize(
    "verb",
    [
        KillSession(AGENT, "main"),
        StopSession(AGENT, "main"),
        ResetSession(AGENT, "main"),
        CancelMessage(AGENT, "main", id="m1", kill=True),
    ],
    ids=lambda verb: type(verb).__name__,
)
async def test_no_verb_takes_a_runtime_that_is_away_for_no_container(kit: BusKit, verb: Verb) -> None:
    container = await one_run(kit)
    assert kit.agent().claim() is not None
    kit.host.available = False
    async with kit.running():
        assert kit.slot() is None, "its container lives, and this daemon has not seen it"
        with pytest.raises(RuntimeUnavailableError, match="whether a container of session"):
            await kit.operations.execute(verb)
        assert (await kit.message("m1"))["status"] == "pending"
        kit.host.available = True
        await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
        await kit.operations.execute(verb)
        await until(lambda: container.exit is not None)


async def test_a_kill_that_meets_a_runtime_that_has_just_gone_away_does_not_say_that_nothing_runs(
    kit: BusKit,
) -> None:
    async with kit.running():
        await kit.bus.sessions.create(KEY)
        kit.host.available = False
        assert kit.bus.supervisor.knows, "nobody has asked it since"
        with pytest.raises(RuntimeUnavailableError):
            await kit.operations.execute(KillSession(AGENT, "main"))


async def test_a_registry_that_does_not_answer_at_start_is_asked_again(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await one_run(kit)
    real, failures = Registry.live_incarnations, [StorageError("disk I/O error")]

    def once(self: Registry) -> Any:
        if failures:
            raise failures.pop()
        return real(self)

    monkeypatch.setattr(Registry, "live_incarnations", once)
    async with kit.running():
        await until(lambda: (slot := kit.slot()) is not None and slot.container_id == container.id)
        await kit.fence()
        assert kit.spawned() == 1


async def test_a_container_whose_start_was_never_recorded_is_found_by_its_incarnation(kit: BusKit) -> None:
    async with kit.running():
        kit.host.spawn_gate = anyio.Event()
        await kit.send()
        await until(lambda: ("spawn", "main") in kit.host.calls)
        kit.crash()  # in mid-spawn; the engine goes on and starts it
    kit.host.spawn_gate = None
    registry = Registry(kit.root / "central.db")
    [row] = registry.live_incarnations()
    assert row.container_id is None
    spec = kit.bus.supervisor._specs.make(KEY, row.id)
    container = kit.host.start(spec)
    async with kit.running():
        slot = kit.slot()
        assert slot is not None
        assert slot.container_id == container.id

        def recorded() -> bool:
            return registry.live_incarnations()[0].container_id == container.id

        await until(recorded)
        assert kit.host.spawns == 1


async def test_a_quarantined_sessions_container_is_killed(kit: BusKit) -> None:
    container = await one_run(kit)
    Registry(kit.root / "central.db").quarantine(KEY, "a hostile file", 1)
    async with kit.running():
        await until(lambda: container.exit is not None)
        await kit.gone()
        assert container.signals == ["KILL"]
        await kit.fence()
        assert kit.spawned() == 1


async def test_a_registry_that_cannot_be_read_is_not_reported_as_a_runtime_that_is_away(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_run(kit)
    busy = True
    real = Registry.live_incarnations

    def live_incarnations(registry: Registry) -> Any:
        if busy:
            raise FileBusyError("central.db: database is locked (SQLITE_BUSY)")
        return real(registry)

    monkeypatch.setattr(Registry, "live_incarnations", live_incarnations)
    async with kit.running():
        assert "runtime" not in [one["what"] for one in kit.bus.problems.degraded()]
        assert kit.bus.supervisor.unavailable is None
        busy = False
        await until(lambda: kit.slot() is not None)


async def test_a_start_that_died_with_its_daemon_is_no_failed_start(kit: BusKit) -> None:
    async with kit.running():
        kit.host.spawn_gate = anyio.Event()
        await kit.send()
        await until(lambda: ("spawn", "main") in kit.host.calls)
        kit.crash()  # and the engine never starts it
    kit.host.spawn_gate = None
    async with kit.running():
        await kit.started()
        assert (await kit.row()).spawn_failures == 0
