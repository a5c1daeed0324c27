"""What a scrape tells of a bus, and what it costs: active sessions only, no idle one opened, nobody made to wait."""

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.core.clock import Clock
from daemon.core.errors import ImageError, PermanentDeliveryError, TransientDeliveryError
from daemon.core.message_verbs import DropDead
from daemon.engine import storage_watch
from daemon.engine.session import Session
from daemon.monitoring import backlog
from daemon.monitoring.health import State
from daemon.store.free_room import FreeRoom
from daemon.store.registry import Registry
from schema.errors import ReadDeadlineError, StorageError
from schema.rows import AckStatus, Address
from tests.support.bus_kit import AGENT, SECONDS, BusKit, until
from tests.support.fake_agent import claims_and_dies, echo
from tests.support.monitored import Monitored, monitored

pytestmark = pytest.mark.anyio


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


@asynccontextmanager
async def at_work(kit: BusKit, program: Callable[[Clock], Any] = echo) -> AsyncGenerator[Monitored]:
    """A bus whose containers run this program, and its monitoring."""
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, program(kit.clock))
        async with kit.running(), monitored(kit) as watched:
            yield watched
        machine.cancel_scope.cancel()


async def answered(kit: BusKit, session: str = "main") -> None:
    """One message's whole life, in this session."""
    before = len(kit.fake.sent)
    await kit.send(session)
    await until(lambda: len(kit.fake.sent) == before + 1)
    await kit.settle()


async def idle(kit: BusKit, session: str) -> None:
    """End the session's container and let it be retired."""
    slot = kit.slot(session)
    if slot is not None:
        await kit.bus.supervisor.end(slot.session.key, "a test", graceful=False)
    await kit.settle()
    await until(lambda: session not in {one.key.session for one in kit.bus.sessions})


async def test_a_life_is_counted(kit: BusKit) -> None:
    async with at_work(kit) as watched:
        await answered(kit)
        await kit.send(message_id="again")
        await kit.send(message_id="again")
        await until(lambda: len(kit.fake.sent) == 2)
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("messages_accepted_total", agent=AGENT, channel="fake") == 2
        assert seen.value("messages_duplicate_total", agent=AGENT, channel="fake") == 1
        assert seen.value("messages_finished_total", agent=AGENT, outcome="completed") == 2
        assert seen.value("answers_delivered_total", agent=AGENT, channel="fake") == 2
        assert seen.value("round_trip_seconds_count", agent=AGENT, channel="fake") == 2
        assert seen.value("message_wait_seconds_count", agent=AGENT) == 2
        assert seen.value("turn_duration_seconds_count", agent=AGENT) == 2
        assert seen.value("delivery_duration_seconds_count", channel="fake") == 2
        assert seen.value("container_spawns_total", agent=AGENT, outcome="started") == 1
        assert seen.value("container_spawn_duration_seconds_count", agent=AGENT) == 1
        assert seen.value("containers", phase="running") == 1
        assert seen.value("containers_limit") == 3
        assert seen.value("messages_waiting", agent=AGENT) == 0
        await idle(kit, "main")
        seen = await watched.scrape()
        assert seen.value("container_exits_total", agent=AGENT, reason="a test") == 1
        assert (seen.value("containers", phase="running"), seen.value("sessions_active")) == (0, 0)
        assert kit.bus.telemetry._spawned == {}, "nothing is kept of what has gone"


async def test_times_are_those_of_the_clock(kit: BusKit) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send()
        await kit.started()
        agent = kit.agent()
        await kit.settle()  # a look under way has read the clock already, and would date the claim by that
        kit.clock.advance(7)
        batch = agent.claim()
        assert batch is not None
        kit.bus.delivery.poke(await kit.session())
        await kit.settle()
        kit.clock.advance(30)
        agent.answer(batch, '{"text": "at last"}')
        kit.bus.delivery.poke(await kit.session())
        await until(lambda: len(kit.fake.sent) == 1)
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("message_wait_seconds_sum", agent=AGENT) == 7
        assert seen.value("turn_duration_seconds_sum", agent=AGENT) == 30
        assert seen.value("round_trip_seconds_sum", agent=AGENT, channel="fake") == 37


async def test_what_waits_is_told_with_its_age(kit: BusKit) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send(message_id="m1")
        await kit.started()
        kit.clock.advance(49)  # less than a container may leave a message unclaimed
        await kit.send(message_id="later", process_after=kit.clock.now_ms() + 3_600_000)
        await kit.send(message_id="context", trigger=False)
        seen = await watched.scrape()
        assert seen.value("messages_waiting", agent=AGENT) == 1
        assert seen.value("messages_oldest_waiting_seconds", agent=AGENT) == 50
        assert seen.value("messages_waiting", agent="other") == 0
        assert kit.agent().claim() is not None
        kit.bus.delivery.poke(await kit.session())
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("messages_waiting", agent=AGENT) == 0
        assert seen.value("messages_claimed", agent=AGENT) == 2  # the context rides along
        assert seen.value("messages_oldest_waiting_seconds", agent=AGENT) == 0


async def test_answers_that_fail_wait_and_those_given_up_are_dead_letters(kit: BusKit) -> None:
    async with at_work(kit) as watched:
        kit.fake.script["room"].append(TransientDeliveryError("down"))
        kit.fake.script["gone"].append(PermanentDeliveryError("no such place"))
        await kit.send("one")
        await kit.send("two", address=Address("fake", "gone"))
        await until(lambda: len(kit.fake.calls) == 2)
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("answers_waiting", channel="fake") == 1
        assert seen.value("answers_oldest_waiting_seconds", channel="fake") == 1
        assert seen.value("delivery_failures_total", channel="fake", code="DELIVERY_TRANSIENT") == 1
        assert seen.value("delivery_failures_total", channel="fake", code="DELIVERY_PERMANENT") == 1
        assert seen.value("answers_dead_lettered_total", agent=AGENT, code="DELIVERY_PERMANENT") == 1
        assert seen.value("dead_letters", agent=AGENT) == 1
        assert seen.value("answers_delivered_total", agent=AGENT, channel="fake") is None


async def test_dead_letters_of_idle_sessions_are_told_without_opening_them(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(kit):
        kit.fake.script["room"].append(PermanentDeliveryError("no such place"))
        await kit.send("one", message_id="m1")
        await until(lambda: len(kit.fake.calls) == 1)
        await idle(kit, "one")
    async with at_work(kit) as watched:
        await kit.settle()
        await answered(kit, "busy")
        opened: list[str] = []
        real = backlog._read

        def noting(session: Session, now: int) -> Any:
            opened.append(session.key.session)
            return real(session, now)

        with monkeypatch.context() as patch:  # the bus itself may look into a session meanwhile
            patch.setattr(backlog, "_read", noting)
            seen = await watched.scrape()
        assert opened == ["busy"]
        assert seen.value("dead_letters", agent=AGENT) == 1
        (letter,) = (await kit.operations.dead_letters(None, None, 10))["letters"]
        await kit.operations.execute(DropDead(AGENT, "one", by="me", id=letter["id"]))
        await idle(kit, "one")
        assert (await watched.scrape()).value("dead_letters", agent=AGENT) == 0


async def test_a_retry_and_the_last_try(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", sweep={"max_tries": 2, "backoff_base_s": 1.0})
    async with at_work(kit, claims_and_dies) as watched:
        await kit.send(message_id="m1")
        await until(lambda: kit.spawned() == 1)
        await kit.gone()
        while (await kit.message("m1"))["status"] == "pending":
            kit.advance(60)
            await kit.bus.sweeper.tick()
            await kit.settle()
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("message_retries_total", agent=AGENT) == 1
        assert seen.value("messages_finished_total", agent=AGENT, outcome="dead_lettered") == 1
        assert seen.value("container_exits_total", agent=AGENT, reason="crashed") == 2
        assert (seen.value("sweep_duration_seconds_count") or 0) >= 1
        assert (seen.value("sweep_last_completed_timestamp_seconds") or 0) > 1.8e9


async def test_an_agent_s_error_is_a_failed_message(kit: BusKit) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send()
        await kit.started()
        agent = kit.agent()
        batch = agent.claim()
        assert batch is not None
        agent.answer(batch, '{"text": "no"}', status=AckStatus.FAILED)
        kit.bus.delivery.poke(await kit.session())
        await until(lambda: len(kit.fake.sent) == 1)
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("messages_finished_total", agent=AGENT, outcome="failed") == 1


async def test_spawns_that_fail_are_counted_by_code(kit: BusKit) -> None:
    kit.host.refuse_next(ImageError("built from other sources"))
    async with kit.running(), monitored(kit) as watched:
        kit.host.check_error = ImageError("built from other sources")
        await kit.send()
        await until(lambda: kit.bus.supervisor.image_problem is not None)
        await kit.gone()
        seen = await watched.scrape()
        assert seen.value("container_spawns_total", agent=AGENT, outcome="IMAGE_UNUSABLE") == 1
        assert seen.value("degraded", what="image") == 1
        assert seen.value("degraded", what="runtime") == 0
        assert seen.value("degraded", what="channel fake") == 0
        assert (seen.value("ready"), seen.value("check_failing", check="runtime")) == (1, 0)


async def test_refusals_are_counted_by_code(kit: BusKit) -> None:
    async with kit.running(), monitored(kit) as watched:
        with pytest.raises(Exception, match="there is no agent"):
            await kit.send(agent="nobody")
        assert (await watched.scrape()).value("messages_refused_total", code="UNKNOWN_AGENT") == 1


async def test_a_quarantine_is_told_also_after_a_restart(kit: BusKit) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send()
        await kit.started()
        (kit.agent().outbox / "outbound.db").write_bytes(b"no database" * 1000)
        kit.bus.delivery.poke(await kit.session())
        with anyio.fail_after(SECONDS):  # the container goes first, and then the session is put aside
            while (await watched.scrape()).value("sessions_quarantined_total", agent=AGENT) != 1:  # noqa: ASYNC110 - a scrape has no event
                await anyio.sleep(0.01)
        await kit.gone()
        seen = await watched.scrape()
        assert seen.value("sessions_quarantined_total", agent=AGENT) == 1
        assert seen.value("sessions_in_quarantine") == 1
    async with kit.running(), monitored(kit) as watched:
        assert (await watched.scrape()).value("sessions_in_quarantine") == 1


async def test_no_label_is_a_sender_s_or_a_container_s_to_choose(kit: BusKit) -> None:
    async with at_work(kit) as watched:
        for number in range(5):
            await kit.send(f"s{number % 2}", message_id=f"m{number}", address=Address(f"made-up-{number}", "x"))
        await kit.send("s2", message_id="nowhere", address=None)
        await until(lambda: len(kit.fake.calls) == 0 and kit.spawned("s0") > 0)
        await kit.settle()
        seen = await watched.scrape()
        assert seen.value("messages_accepted_total", agent=AGENT, channel="other") == 5
        assert seen.value("messages_accepted_total", agent=AGENT, channel="none") == 1
        values = {value for _, labels in seen.samples for _, value in labels}
        assert not {value for value in values if value.startswith(("made-up", "m", "s0", "s1"))} - {"memory"}


async def test_a_session_that_cannot_be_read_keeps_its_figures(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send("one")
        await kit.send("two")
        await kit.settle()
        assert (await watched.scrape()).value("messages_waiting", agent=AGENT) == 2
        session = await kit.session("one")

        async def slow(*_: Any) -> Any:
            raise ReadDeadlineError("slow")

        monkeypatch.setattr(session, "call", slow)
        seen = await watched.scrape()
        assert seen.value("messages_waiting", agent=AGENT) == 2
        assert seen.value("backlog_sessions_missed") == 1
        assert session.consecutive_timeouts == {}, "being looked at costs a session nothing"


async def test_a_look_that_hangs_makes_no_scrape_and_no_loop_wait(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send()
        await watched.scrape()
        entered, go = threading.Event(), threading.Event()

        def stuck(*_: Any) -> Any:
            entered.set()
            assert go.wait(30)
            raise ReadDeadlineError("slow")

        monkeypatch.setattr("daemon.monitoring.backlog._read", stuck)
        monkeypatch.setattr(watched.monitoring.exporter, "_patience_s", 0.01)
        try:
            first = await watched.scrape()
            await until(entered.is_set)
            second = await watched.scrape()
            assert watched.monitoring.exporter._sources.backlog.missed == 0, "the look is still under way"
        finally:
            go.set()
        assert first.value("messages_waiting", agent=AGENT) == second.value("messages_waiting", agent=AGENT) == 1
        await until(lambda: watched.monitoring.exporter._sources.backlog.missed == 1)


async def test_a_defect_in_a_look_ends_nothing(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send()

        def broken(*_: Any) -> Any:
            raise RuntimeError("a defect")

        with monkeypatch.context() as patch:
            patch.setattr("daemon.monitoring.backlog._read", broken)
            assert (await watched.scrape()).value("messages_waiting", agent=AGENT) == 0
        assert (await watched.scrape()).value("messages_waiting", agent=AGENT) == 1


async def test_scrapes_close_together_share_a_look(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit.running(), monitored(kit) as watched:
        await kit.send()
        looks = 0
        watch = watched.monitoring.exporter._sources.backlog
        real = watch.look

        async def counted(now: int) -> None:
            nonlocal looks
            looks += 1
            await real(now)

        monkeypatch.setattr(type(watch), "look", lambda _, now: counted(now))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(watched.monitoring.exporter.render)
        await watched.monitoring.exporter.render()
        assert looks == 1
        await watched.scrape()
        assert looks == 2


async def test_readiness_asks_the_registry_and_the_disk(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit.running(), monitored(kit) as watched:
        health = watched.monitoring.health
        await health.probe()
        assert health.ready()["ready"]
        with monkeypatch.context() as patch:
            patch.setattr(storage_watch, "free_room", lambda _: FreeRoom(1024, None, read_only=False))
            await health.probe()
            (disk,) = [check for check in health.checks() if check.name == "disk"]
            assert (disk.state, health.ready()["ready"]) == (State.DEGRADED, True)

        def broken(_: object) -> None:
            raise StorageError("central.db: disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(Registry, "probe", broken)
            await health.probe()
            found = {check.name: check.state for check in health.checks() if check.state is not State.OK}
            assert found == {"database": State.FAILING, "disk": State.FAILING}
            seen = await watched.scrape()
            assert (seen.value("ready"), seen.value("check_failing", check="database")) == (0, 1)
            assert seen.value("degraded", what="storage") == 1
        await health.probe()  # the round in which it failed ends here
        assert not health.ready()["ready"]
        await health.probe()  # nothing failed since, and a try to write has shown that it works again
        assert health.ready()["ready"]
        seen = await watched.scrape()
        assert seen.value("ready") == 1
        assert (seen.value("data_disk_size_bytes") or 0) > (seen.value("data_disk_free_bytes") or 0) > 0


async def test_a_defect_in_telemetry_harms_no_message(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with at_work(kit):
        bus = kit.bus

        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a defect")

        for name in ("accepted", "finished", "delivery", "spawns", "exits", "sweep", "wait"):
            monkeypatch.setattr(bus.telemetry.metrics, name, None)
        monkeypatch.setattr(bus.telemetry.tracer, "emit", broken)
        with capture_logs() as logs:  # drawn as text, its tracebacks took longer than a stop may
            await answered(kit)
            await bus.sweeper.tick()
            await idle(kit, "main")
        assert {log["what"] for log in logs if log["event"] == "subscriber_raised"} >= {
            "MessageAccepted", "AnswersDelivered", "ContainerSpawned",
        }  # fmt: skip
