"""The whole bus in one process: from accept to the mailbox, over restarts, with a channel that fails, and reloads."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from daemon.api import daemon_operations as operations
from daemon.app import reload as reload_module
from daemon.app import startup
from daemon.app.reload import Reloader
from daemon.config.agents import Agent as AgentConfig
from daemon.config.models import Config
from daemon.core.errors import ChannelError, ConfigError, ImageError, NoAnswerError, UnknownSessionError
from daemon.core.events import SpawnFailed
from daemon.core.session_verbs import KillSession, QuarantineSession, StopSession
from daemon.systemd.notify import Notifier
from schema.errors import ClawbusError
from schema.rows import Address
from tests.support.bus_kit import AGENT, QUICK, SECONDS, BusKit, text_of, until
from tests.support.fake_agent import claims_and_dies, echo
from tests.support.fake_channel import FakeChannel
from tests.support.fake_runtime import FakeContainer

pytestmark = [pytest.mark.anyio]

ME = Address("local", "me")


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


async def answer(kit: BusKit, message_id: str, session: str = "main") -> str:
    """What came back for a message."""
    entry = await kit.operations.wait_reply(AGENT, session, message_id, SECONDS)
    assert entry is not None
    return str(text_of(entry.content))


async def test_a_message_is_answered_into_the_mailbox(kit: BusKit) -> None:
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        async with kit.running():
            await kit.send(text="hi", message_id="m1", address=ME)
            assert await answer(kit, "m1") == "hi"
            await kit.settle()
            assert (await kit.message("m1"))["status"] == "completed"
            assert kit.host.spawns == 1
            assert [entry.in_reply_to for entry in await kit.operations.read_mailbox("me", 0, 10, 0)] == ["m1"]
        machine.cancel_scope.cancel()


async def test_a_restarted_daemon_takes_over_the_agent_and_delivers_its_answers(kit: BusKit) -> None:
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        async with kit.running():
            await kit.send(text="before", message_id="m1", address=ME)
            assert await answer(kit, "m1") == "before"
        container = kit.host.of_session("main")
        async with kit.running():
            await kit.send(text="after", message_id="m2", address=ME)
            assert await answer(kit, "m2") == "after"
            assert kit.host.of_session("main") is container
            assert kit.host.spawns == 1
        machine.cancel_scope.cancel()


async def test_what_is_answered_while_no_daemon_runs_is_delivered_by_the_next(kit: BusKit) -> None:
    async with kit.running():
        await kit.send(text="hi", message_id="m1", address=ME)
        await kit.started()
    agent = kit.agent()
    batch = agent.claim()
    assert batch is not None
    agent.answer(batch)
    kit.host.exit_now(kit.host.of_session("main").id)
    async with kit.running():
        assert await answer(kit, "m1") == "hi"
        await kit.settle()
        message = await kit.message("m1")
        assert (message["status"], message["tries"]) == ("completed", 0)
        assert kit.host.spawns == 1


async def test_a_crash_of_the_daemon_at_any_moment_loses_nothing(kit: BusKit) -> None:
    """Accept, crash, restart, again and again; in the end every message is answered once."""
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, echo(kit.clock))
        accepted: list[str] = []
        for round_ in range(8):
            async with kit.running():
                for number in range(3):
                    sent = await kit.send(f"s{number}", text=f"{round_}.{number}", address=ME)
                    accepted.append(sent.message_id)
                for _ in range(round_ * 4):
                    await anyio.lowlevel.checkpoint()
                kit.crash()
        async with kit.running():
            await kit.bus.sweeper.tick()
            with anyio.fail_after(SECONDS):
                entries = await kit.operations.read_mailbox("me", 0, 100, 0)
                while len(entries) < len(accepted):
                    entries += await kit.operations.read_mailbox("me", entries[-1].cursor if entries else 0, 100, 1)
            assert sorted(entry.in_reply_to or "" for entry in entries) == sorted(accepted)
        machine.cancel_scope.cancel()


async def test_an_agent_that_dies_in_mid_turn_is_started_again_and_answers(kit: BusKit) -> None:
    lives: list[str] = []

    async def dies_first(container: FakeContainer) -> int:
        lives.append(container.id)
        if len(lives) > 1:
            return await echo(kit.clock)(container)
        return await claims_and_dies(kit.clock)(container)

    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, dies_first)
        async with kit.running():
            await kit.send(text="hi", message_id="m1", address=ME)
            await until(lambda: len(lives) == 1)
            await kit.gone()
            message = await kit.message("m1")
            assert (message["tries"], message["status"]) == (1, "pending")
            await kit.settle()
            kit.advance(6)
            assert await answer(kit, "m1") == "hi"
        machine.cancel_scope.cancel()


async def test_after_the_last_try_the_sender_is_told(kit: BusKit) -> None:
    async with anyio.create_task_group() as machine:
        kit.host.run_agents(machine, claims_and_dies(kit.clock))
        async with kit.running():
            await kit.send(text="hi", message_id="m1", address=ME)
            with anyio.fail_after(SECONDS):
                while (await kit.message("m1"))["status"] == "pending":
                    await kit.settle()
                    kit.advance(30)
                    await anyio.wait_all_tasks_blocked()
            entry = await kit.operations.wait_reply(AGENT, "main", "m1", SECONDS)
            assert entry is not None
            assert "TRIES_EXHAUSTED" in entry.content
            assert (await kit.message("m1"))["tries"] == 5
            assert kit.host.spawns == 5
        machine.cancel_scope.cancel()


async def test_who_waits_on_a_quarantined_session_is_told_that_its_message_is_kept(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_LOOK_S", 0.001)
    async with kit.running():
        await kit.send(text="hi", message_id="m1", address=ME)
        await kit.operations.execute(QuarantineSession(AGENT, "main", by="ops", reason="odd."))
        with anyio.fail_after(SECONDS), pytest.raises(NoAnswerError) as told:
            await kit.operations.wait_reply(AGENT, "main", "m1", SECONDS)
    assert str(told.value) == (
        f"no answer to m1 comes while session {AGENT}/main is in quarantine: by ops: odd. The message is kept."
    )
    assert f"`clawbus session show {AGENT} main`" in told.value.hint


async def test_who_waits_a_second_at_a_time_is_told_too(kit: BusKit) -> None:
    """As `send --wait` on a terminal does, which shows what the agent does meanwhile."""
    async with kit.running():
        await kit.send(text="hi", message_id="m1", address=ME)
        await kit.operations.execute(QuarantineSession(AGENT, "main", by="ops", reason="odd."))
        with anyio.fail_after(SECONDS), pytest.raises(NoAnswerError):
            await kit.operations.wait_reply(AGENT, "main", "m1", 0.05)
        assert await kit.operations.wait_reply(AGENT, "main", "m1", 0.0) is None, "a look asks nothing of the session"


# --- channels


async def test_a_channel_that_fails_is_begun_again_and_disturbs_nobody(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "run_channel", partial(startup.run_channel, retry_s=0.2))
    async with kit.running() as bus:
        fake = kit.fake
        fake.fail(ValueError("a bug"))
        await until(lambda: [item["what"] for item in bus.problems.degraded()] == ["channel fake"])
        await kit.send()
        await kit.started()
        await until(lambda: fake.runs == 2 and bus.problems.degraded() == [])


async def test_a_channel_that_cannot_start_stops_the_start(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: Any, **__: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise ChannelError("the port is taken")

    monkeypatch.setattr(FakeChannel, "run", refuses)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with kit.running():
            pytest.fail("it started")
    assert caught.group_contains(ChannelError)


# --- what operators see


async def test_status_tells_what_runs_waits_and_is_degraded(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 1})
    async with kit.running():
        await kit.send("one")
        await kit.started("one")
        await kit.send("two")
        await until(lambda: len(kit.bus.supervisor.waiting()) == 1)
        await kit.bus.sweeper.tick()
        report = await kit.operations.status()
        live = report["live"]
        assert set(live) == {"pid", "version", "started_at", "source", "worker", "agents", "runtime", "degraded", "running", "budgets",
                             "waiting_spawns", "last_sweep", "retention", "clock", "troubles", "near_limits"}  # fmt: skip
        assert live["agents"] == ["helper", "other", "third"]
        assert live["runtime"] == {"name": "fake", "state": "available"}
        [one] = live["running"]
        container = kit.host.of_session("one")
        assert one == {"agent": AGENT, "session": "one", "incarnation": container.spec.incarnation,
                       "container_id": container.id, "phase": "running"}  # fmt: skip
        assert live["waiting_spawns"] == [f"{AGENT}/two"]
        assert (live["last_sweep"]["sessions"], live["last_sweep"]["errors"]) == (2, 0)
        assert report["sessions"]["total"] == 2
        assert kit.bus.problems.degraded() == []
        assert kit.bus.status_line() == "1 container, 1 waiting, 2 active sessions"
        shown = await kit.operations.session(AGENT, "one")
        assert shown
        assert {entry["session"] for entry in await kit.operations.sessions()} == {"one", "two"}


async def test_an_unusable_image_is_named_at_once_and_stops_no_start(kit: BusKit) -> None:
    kit.host.check_error = ImageError("built from other sources")
    async with kit.running():
        assert [(item["what"], item["why"]) for item in kit.bus.problems.degraded()] == [
            ("image", "built from other sources")
        ]
        assert "degraded: built from other sources" in kit.bus.status_line()
        await kit.send()
        await kit.started()
        await until(lambda: kit.bus.problems.degraded() == [])


async def test_a_mended_image_is_noticed_without_a_spawn(kit: BusKit) -> None:
    kit.host.check_error = ImageError("built from other sources")
    kit.timings = replace(QUICK, reconcile_s=0.05)
    async with kit.running():
        assert [item["what"] for item in kit.bus.problems.degraded()] == ["image"]
        kit.host.check_error = None
        await until(lambda: kit.bus.problems.degraded() == [])


async def test_stop_and_kill_of_a_session(kit: BusKit) -> None:
    async with kit.running():
        with pytest.raises(UnknownSessionError):
            await kit.operations.execute(StopSession(AGENT, "nobody"))
        await kit.send(message_id="m1", trigger=False)
        assert await kit.operations.execute(StopSession(AGENT, "main")) == {"stopping": False, "incarnation": None}
        assert (await kit.operations.execute(KillSession(AGENT, "main", reason="a test")))["killed"] is False
        await kit.send(message_id="m2")
        await kit.started()
        container = kit.host.of_session("main")
        stopped = await kit.operations.execute(StopSession(AGENT, "main"))
        assert stopped == {"stopping": True, "incarnation": container.spec.incarnation}
        await until(lambda: container.exit is not None)
        assert container.signals == ["TERM"]


# --- reload


class _Pipeline:
    def __init__(self) -> None:
        self.levels: list[str] = []

    def set_level(self, level: str) -> None:
        self.levels.append(level)


async def reload(kit: BusKit, made: Any) -> tuple[_Pipeline, list[Any]]:
    pipeline = _Pipeline()
    with capture_logs() as logs:
        await Reloader(kit.bus, pipeline, Notifier({}), made).at_signal()  # pyright: ignore[reportArgumentType]
    return pipeline, [one for one in logs if "reload" in one["event"]]


async def test_a_reload_takes_over_agents_and_log_level_and_names_what_needs_a_restart(kit: BusKit) -> None:
    def changed() -> Config:
        found = kit.configure(
            agents={"fresh": AgentConfig()}, logs={"level": "debug", "format": "json"}, runtime={"max_containers": 7}
        )
        return found.model_copy(update={"timezone": "Europe/Berlin"})

    async with kit.running():
        pipeline, [event] = await reload(kit, changed)
        assert pipeline.levels == ["debug"]
        assert (event["event"], event["agents"], event["level"]) == ("config_reloaded", ["fresh"], "debug")
        assert event["restart_needed_for"] == ["logs", "runtime", "timezone"]
        await kit.send(agent="fresh")
        await kit.started()
        with pytest.raises(ClawbusError, match="helper"):
            await kit.send()


async def test_a_reload_that_changes_nothing_needs_no_restart(kit: BusKit) -> None:
    async with kit.running():
        _, [event] = await reload(kit, lambda: kit.configure(logs={"level": "warning"}))
        assert event["restart_needed_for"] == []


@pytest.mark.parametrize("error", [ConfigError("agents.x: unknown key"), ValueError("a bug")])
async def test_a_reload_that_fails_changes_nothing(kit: BusKit, error: Exception) -> None:
    def broken() -> Config:
        raise error

    async with kit.running():
        pipeline, [event] = await reload(kit, broken)
        assert event["event"] in ("reload_refused", "reload_raised")
        assert pipeline.levels == []
        assert sorted(kit.bus.agents) == ["helper", "other", "third"]
        await reload(kit, None)
        await kit.send()
        await kit.started()


async def test_a_configuration_on_a_mount_that_hangs_holds_up_only_its_reload(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "_READ_S", 0.1)
    monkeypatch.setattr(reload_module, "_RETRY_S", 0.01)
    answers, reads = threading.Event(), list[int]()

    def hangs() -> Config:
        reads.append(1)
        answers.wait(20)
        return kit.configure(agents={"fresh": AgentConfig()})

    async with kit.running():
        try:
            _, [event] = await reload(kit, hangs)
            assert event["event"] == "reload_refused"
            assert "not read within 0.1 s" in event["error"]
            await kit.send("quick")
            await kit.started("quick")
            assert len(reads) == 1  # no thread more for each try
        finally:
            answers.set()
        await until(lambda: sorted(kit.bus.agents) == ["fresh"])


async def test_an_agent_that_a_reload_took_away_keeps_its_messages_and_gets_them_later(kit: BusKit) -> None:
    failed: list[SpawnFailed] = []
    async with kit.running() as bus:
        bus.events.subscribe(SpawnFailed, failed.append)
        kit.host.available = False
        await kit.send(message_id="m1")
        await until(lambda: kit.bus.supervisor.unavailable is not None)
        await reload(kit, lambda: kit.configure(agents={"other": AgentConfig()}))
        kit.host.available = True
        await until(lambda: kit.bus.supervisor.unavailable is None)
        await until(lambda: len(failed) == 1)
        await kit.gone()
        kit.advance(600)
        await kit.bus.sweeper.tick()
        await until(lambda: "UNKNOWN_AGENT" in {one.code for one in failed})
        await kit.settle()
        await kit.gone()
        assert (await kit.message("m1"))["status"] == "pending"
        await reload(kit, kit.configure)
        kit.advance(600)
        await kit.bus.sweeper.tick()
        await kit.started()


async def test_work_that_fails_in_the_background_ends_nothing(kit: BusKit) -> None:
    async def raises() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("a bug")

    async with kit.running() as bus:
        with capture_logs() as logs:
            bus.background.later(raises)
            await until(lambda: any(entry["event"] == "later_raised" for entry in logs))
        await kit.send()
        await kit.started()
