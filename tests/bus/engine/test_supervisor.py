"""The supervisor in a whole bus over the fake runtime: wakes, cap, back-off, kills, and what outlives what."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon.config.agents import Agent as AgentConfig
from daemon.core.errors import ImageError, NotConfirmedError, RuntimeUnavailableError, SpawnError
from daemon.core.lifecycle import UNCLAIMED
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import KillSession
from daemon.engine import session_sweep
from daemon.engine.supervisor.slots import Phase, Timings
from daemon.runtimes.protocol import Exit
from daemon.runtimes.spec import STDERR_LOG
from daemon.store.incarnations import IncarnationRow
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.connect import open_owner
from schema.errors import StorageError
from schema.layout import CANNOT_START_CODE
from schema.migrate import Role
from tests.support.bus_kit import AGENT, SECONDS, BusKit, until

pytestmark = [pytest.mark.anyio]

# Nothing may wait for a probe in these tests: what needs one by mistake runs into the deadline.
NO_PROBE = Timings(probe_s=600.0, retry_s=0.01, retry_max_s=0.02)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncGenerator[BusKit]:
    made = BusKit(tmp_path / "data")
    made.timings = NO_PROBE
    async with made.running():
        yield made


def spawned(kit: BusKit) -> list[str]:
    return [about for method, about in kit.host.calls if method == "spawn"]


def living(kit: BusKit) -> list[str]:
    return [container.spec.session for container in kit.host.containers.values() if container.exit is None]


def journal(kit: BusKit, session: str = "main") -> Path:
    """A stranded journal, cold, so that a reader passes it: recovery is who removes it."""
    path = kit.root / "sessions" / AGENT / session / "out" / "outbound.db-journal"
    open_owner(path.with_name("outbound.db"), Role.OUTBOUND).close()
    path.touch()
    return path


# --- wakes and the cap


async def test_a_hundred_wakes_are_one_spawn(kit: BusKit) -> None:
    session = await kit.bus.sessions.create(SessionKey(AGENT, "main"))
    results: list[bool] = []

    async def wake() -> None:
        results.append(await kit.bus.supervisor.wake(session))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(wake)
    await kit.started()
    await kit.fence()
    assert await kit.bus.supervisor.wake(session) is False
    assert results.count(True) == 1
    assert kit.spawned() == 1


async def test_the_cap_holds_and_the_queue_is_fair_between_groups(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 1})
    kit.timings = NO_PROBE
    async with kit.running():
        await kit.send("zero", agent="third")
        await kit.started("zero")
        for number, (agent, session) in enumerate([(AGENT, "a"), (AGENT, "b"), (AGENT, "c"), ("other", "x")], start=1):
            await kit.send(session, agent=agent)
            await until(lambda wanted=number: len(kit.bus.supervisor.waiting()) == wanted)
        for now, following in (("zero", "a"), ("a", "x"), ("x", "b"), ("b", "c")):
            assert living(kit) == [now]
            kit.host.exit_now(kit.host.of_session(now).id, 1)
            await kit.started(following)
        assert spawned(kit) == ["zero", "a", "x", "b", "c"]


async def test_a_fresh_container_that_can_start_no_program_is_backed_off_and_charges_nothing(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    kit.timings = NO_PROBE
    async with kit.running():
        await kit.send(message_id="m1")
        await kit.started()
        agent = kit.agent()
        assert agent.claim() is not None
        await kit.bus.sweeper.tick()
        agent.store.release_all()
        kit.host.exit_now(kit.host.of_session("main").id, CANNOT_START_CODE)
        await kit.gone()
        row = await kit.row()
        assert row.spawn_failures == 1
        assert "cannot start the agent's program" in str(row.last_spawn_error)
        assert (await kit.message("m1"))["tries"] == 0
        assert (await kit.message("m1"))["status"] == "pending"


async def test_an_older_container_that_can_start_no_program_any_more_is_replaced_at_once(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    kit.timings = NO_PROBE
    async with kit.running():
        await kit.send(message_id="m1")
        await kit.started()
        first = kit.host.of_session("main")
        agent = kit.agent()
        assert agent.claim() is not None
        kit.advance(kit.timings.healthy_s + 1)
        agent.store.release_all()
        kit.host.exit_now(first.id, CANNOT_START_CODE)
        await until(lambda: kit.spawned() == 2)
        assert (await kit.row()).spawn_failures == 0
        assert (await kit.message("m1"))["tries"] == 0


async def test_room_is_made_by_stopping_what_is_idle_longest_and_nothing_that_works(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 3})
    kit.timings = NO_PROBE
    async with kit.running() as bus:
        await kit.send("busy")
        for name in ("old", "young"):
            await bus.supervisor.wake(await bus.sessions.create(SessionKey(AGENT, name)))
        for name, at in (("busy", 1), ("old", 2), ("young", 3)):
            await kit.started(name)
            (await kit.session(name)).last_activity = at
        await until(lambda: all(slot.phase is Phase.RUNNING for slot in bus.supervisor.slots()))
        signals = kit.host.of_session("old").signals
        await bus.supervisor.wake(await bus.sessions.create(SessionKey(AGENT, "new")))
        await kit.started("new")
        assert signals == ["TERM"]
        assert sorted(living(kit)) == ["busy", "new", "young"]


async def test_a_container_that_cannot_be_killed_does_not_stop_the_making_of_room(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 2, "kill_confirm_s": 0.02})
    kit.timings = NO_PROBE
    kit.host.ignores_term.add("stuck")
    kit.host.unkillable.add("stuck")
    async with kit.running() as bus:
        for name in ("stuck", "idle"):
            await bus.supervisor.wake(await bus.sessions.create(SessionKey(AGENT, name)))
            await kit.started(name)
        await until(lambda: all(slot.phase is Phase.RUNNING for slot in bus.supervisor.slots()))
        bus.supervisor.begin_end(SessionKey(AGENT, "stuck"), "operator_kill", graceful=False)
        await bus.supervisor.wake(await bus.sessions.create(SessionKey(AGENT, "new")))
        await kit.started("new")
        assert sorted(living(kit)) == ["new", "stuck"]


async def test_a_session_whose_files_are_held_does_not_stop_the_making_of_room(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 2})
    kit.timings = replace(NO_PROBE, look_s=0.02)
    async with kit.running() as bus:
        for name, at in (("held", 1), ("idle", 2)):
            await bus.supervisor.wake(await bus.sessions.create(SessionKey(AGENT, name)))
            await kit.started(name)
            (await kit.session(name)).last_activity = at
        await until(lambda: all(slot.phase is Phase.RUNNING for slot in bus.supervisor.slots()))
        await kit.settle()
        async with (await kit.session("held")).lock:
            await bus.supervisor.wake(await bus.sessions.create(SessionKey(AGENT, "new")))
            await kit.started("new")
            assert sorted(living(kit)) == ["held", "new"]


async def test_an_exit_that_cannot_be_settled_holds_no_place_under_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 1})
    kit.timings = NO_PROBE
    broken = SettleScript(monkeypatch, {"gone": [StorageError("no folder")] * 1000})
    async with kit.running():
        await kit.send("gone")
        await kit.started("gone")
        kit.host.exit_now(kit.host.of_session("gone").id, 1)
        await until(lambda: broken.calls.count("gone") > 1)
        await kit.send("next")
        await kit.started("next")
        assert kit.slot("gone") is not None, "its files are not settled: nothing may start for it"


async def test_a_message_that_comes_while_its_container_is_exiting_starts_another(kit: BusKit) -> None:
    kit.host.ignores_term.add("main")
    kit.host.unkillable.add("main")
    session = await kit.bus.sessions.create(SessionKey(AGENT, "main"))
    await kit.bus.supervisor.wake(session)
    await kit.started()
    first = kit.host.of_session("main")
    kit.bus.supervisor.begin_end(session.key, "idle", graceful=True)
    await kit.send()
    await kit.fence()
    assert kit.spawned() == 1
    kit.host.exit_now(first.id)
    await kit.started()
    assert kit.spawned() == 2


async def test_a_quarantined_session_in_the_queue_is_not_spawned(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 1})
    async with kit.running():
        await kit.send("first")
        await kit.started("first")
        await kit.send("bad")
        await until(lambda: len(kit.bus.supervisor.waiting()) == 1)
        await kit.send("good", agent="other")
        await until(lambda: len(kit.bus.supervisor.waiting()) == 2)
        (await kit.session("bad")).quarantined = "a test"
        kit.host.exit_now(kit.host.of_session("first").id, 1)
        await kit.started("good")
        assert "bad" not in spawned(kit)


async def test_an_unreadable_registry_postpones_a_wake_and_loses_none(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await kit.bus.sessions.create(SessionKey(AGENT, "main"))
    real, failures = Registry.session, [StorageError("disk I/O error")]

    def once(self: Registry, key: SessionKey) -> Any:
        if failures:
            raise failures.pop()
        return real(self, key)

    monkeypatch.setattr(Registry, "session", once)
    await kit.send()  # its wake meets the error
    await until(lambda: not failures and len(kit.bus.schedule) > 0)
    assert session.key not in kit.bus.supervisor.waiting()
    kit.advance(600)
    await kit.started()


# --- spawns that fail


async def test_failed_spawns_back_off_durably_and_starve_nobody(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", runtime={"spawn_backoff_max_s": 30.0, "max_containers": 8})
    kit.timings = NO_PROBE
    waits: list[float] = []
    async with kit.running():
        for failures in range(1, 4):
            kit.host.refuse_next(SpawnError("no"))
            if failures == 1:
                await kit.send()
            else:
                kit.advance(waits[-1])
            await until(lambda wanted=failures: spawned(kit).count("main") == wanted)
            await kit.gone()
            row = await kit.row()
            assert row.spawn_failures == failures
            assert row.next_spawn_at is not None
            waits.append((row.next_spawn_at - kit.clock.now_ms()) / 1000)
            await kit.bus.sweeper.tick()
            assert spawned(kit).count("main") == failures, "a sweep must not jump the back-off"
            await kit.send(f"other-{failures}")
            await kit.started(f"other-{failures}")
    assert waits == [5.0, 10.0, 20.0]
    async with kit.running():  # the daemon was restarted: the back-off is not forgotten
        await kit.bus.sweeper.tick()
        await kit.fence()
        assert spawned(kit).count("main") == 3
        kit.host.refuse_next(SpawnError("no"))
        kit.advance(waits[-1])
        await until(lambda: spawned(kit).count("main") == 4)
        await kit.gone()
        row = await kit.row()
        assert row.next_spawn_at == kit.clock.now_ms() + 30_000, "capped by runtime.spawn_backoff_max_s"
        kit.advance(30)
        await kit.started()


async def test_a_missing_image_is_asked_for_again_within_half_a_minute_and_named_as_degraded(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await kit.started()
    kit.host.refuse_next(*[ImageError("no image")] * 5)
    kit.host.exit_now(kit.host.of_session("main").id, 1)
    await kit.gone()
    for count in range(2, 7):
        kit.advance(600)
        await until(lambda wanted=count: len(spawned(kit)) == wanted)
        await kit.gone()
    row = await kit.row()
    assert row.next_spawn_at is not None
    assert row.next_spawn_at - kit.clock.now_ms() == 30_000
    assert [item["what"] for item in kit.bus.problems.degraded()] == ["image"]
    kit.advance(30)
    await kit.started()
    await until(lambda: kit.bus.problems.degraded() == [])


async def test_a_runtime_that_lists_but_does_not_spawn_is_backed_off(kit: BusKit) -> None:
    kit.host.refuse_next(*[RuntimeUnavailableError("time-out")] * 50)
    await kit.send()
    await until(lambda: len(spawned(kit)) == 1)
    await kit.gone()
    await kit.bus.sweeper.tick()
    await kit.settle()
    kit.host._refusals.clear()
    await kit.fence()
    assert kit.spawned() == 1
    row = await kit.row()
    assert row.spawn_failures == 1
    kit.advance(5)
    await kit.started()
    assert living(kit) == ["main"]


async def test_a_container_that_came_to_be_although_the_answer_was_lost_is_the_one(kit: BusKit) -> None:
    kit.host.lose_next_answer(RuntimeUnavailableError("cut off"))
    await kit.send()
    await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
    slot = kit.slot()
    assert slot is not None
    assert slot.container_id == kit.host.of_session("main").id
    assert len(spawned(kit)) == 1
    assert (await kit.row()).spawn_failures == 0


async def test_while_it_is_unknown_whether_a_container_exists_the_session_stays_taken(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        for method in ("list_running", "find_or_cancel_spawn"):
            kit.host.errors[method] = RuntimeUnavailableError("away")
        kit.host.lose_next_answer(RuntimeUnavailableError("cut off"))
        await kit.send()
        await until(lambda: [method for method, _ in kit.host.calls].count("find_or_cancel_spawn") > 4)
        assert kit.bus.supervisor.unavailable is not None
        assert await kit.bus.supervisor.wake(await kit.session()) is False
        kit.host.errors["find_or_cancel_spawn"] = ValueError("a bug")
        count = len(kit.host.calls)
        await until(lambda: len(kit.host.calls) > count + 3)
        kit.host.errors.clear()
        await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.RUNNING)
        await until(lambda: kit.bus.supervisor.unavailable is None)
        assert len(spawned(kit)) == 1


async def test_a_container_that_ends_by_itself_before_it_claimed_anything_is_backed_off(kit: BusKit) -> None:
    await kit.send()
    await kit.started()
    kit.host.exit_now(kit.host.of_session("main").id, 3)
    await kit.gone()
    row = await kit.row()
    assert row.spawn_failures == 1
    assert row.next_spawn_at == kit.clock.now_ms() + 5000
    assert "exit code 3" in (row.last_spawn_error or "")
    await kit.fence()
    assert kit.spawned() == 1
    kit.advance(5)
    await kit.started()


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_container_that_never_took_anything_is_a_failed_start_and_says_why(
    kit: BusKit, *, claimed: bool
) -> None:
    key = SessionKey(AGENT, "main")
    await kit.send(message_id="m1")
    await kit.started()
    if claimed:
        assert kit.agent().claim() is not None
    session = await kit.bus.sessions.create(key)
    line = {"event": "start_failed", "code": "STORAGE", "error": "outbound.db: unable to open database file"}
    (session.files.folder.logs / STDERR_LOG).write_text(json.dumps(line))
    kit.advance(3600)  # however old it is
    kit.bus.supervisor.begin_end(key, UNCLAIMED, graceful=False)
    await kit.gone()
    row = await kit.row()
    assert row.spawn_failures == (0 if claimed else 1)
    told = "took none of its messages, and was ended for that; its runner said: STORAGE: outbound.db: unable to open"
    assert (told in str(row.last_spawn_error)) is not claimed


async def test_a_container_that_claimed_and_then_died_is_no_failed_start(kit: BusKit) -> None:
    await kit.send(message_id="m1")
    await kit.started()
    assert kit.agent().claim() is not None
    kit.host.exit_now(kit.host.of_session("main").id, 1)
    await kit.gone()
    assert (await kit.row()).spawn_failures == 0
    assert (await kit.message("m1"))["tries"] == 1


async def test_a_bug_in_the_runtime_fails_one_spawn_and_not_the_daemon(kit: BusKit) -> None:
    kit.host.errors["spawn"] = KeyError("a bug")
    await kit.send()
    await until(lambda: len(spawned(kit)) == 1)
    await kit.gone()
    assert (await kit.row()).spawn_failures == 1
    del kit.host.errors["spawn"]
    kit.advance(5)
    await kit.started()


async def test_a_registry_that_cannot_be_written_delays_the_record_of_a_failure(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = Registry.spawn_failed, [StorageError("disk full"), StorageError("disk full"), OSError("a bug")]

    def fails_first(self: Registry, *values: Any) -> None:
        if failures:
            raise failures.pop(0)
        real(self, *values)

    monkeypatch.setattr(Registry, "spawn_failed", fails_first)
    kit.host.refuse_next(SpawnError("no"))
    await kit.send()
    await until(lambda: len(spawned(kit)) == 1)
    await kit.gone()
    assert failures == []
    assert (await kit.row()).spawn_failures == 1


async def test_a_record_that_nobody_knows_of_is_settled_before_anything_starts(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running() as bus:
        session = await bus.sessions.create(SessionKey(AGENT, "main"))
        row = IncarnationRow("01UNKNOWN", session.key, "fake", "f", None, kit.clock.now_ms() - 3_600_000)
        await bus.sessions.central(lambda registry: registry.begin_incarnation(row))
        await kit.send()
        await kit.started()
        assert len(spawned(kit)) == 1
        live = await bus.sessions.central(lambda registry: registry.live_incarnations())
        assert [item.id for item in live] == [kit.host.of_session("main").spec.incarnation]


# --- ends


class SettleScript:
    """Stands between the bus and the settling of exits: records each, and raises what it is given first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, errors: dict[str, list[Exception]] | None = None) -> None:
        self.calls: list[str] = []
        self.errors = errors or {}
        self.during: list[Any] = []
        self.look: Any = lambda: None
        real = session_sweep.finish_incarnation

        def finish(files: SessionFiles, *values: Any) -> Any:
            name = files.folder.root.name
            self.calls.append(name)
            self.during.append(self.look())
            if self.errors.get(name):
                raise self.errors[name].pop(0)
            return real(files, *values)

        monkeypatch.setattr(session_sweep, "finish_incarnation", finish)


async def test_recovery_and_reset_follow_the_confirmed_exit_and_nothing_else(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SettleScript(monkeypatch)
    kit.host.ignores_term.add("main")
    await kit.send(message_id="m1")
    await kit.started()
    container = kit.host.of_session("main")
    script.look = lambda: (container.exit, list(container.signals), stranded.exists())
    assert kit.agent().claim() is not None
    stranded = journal(kit)
    kit.bus.supervisor.begin_end(SessionKey(AGENT, "main"), "ceiling", graceful=True)
    await kit.gone()
    assert script.during == [(Exit(137), ["TERM", "KILL"], True)]
    assert not stranded.exists()
    assert (await kit.message("m1"))["tries"] == 1
    ended = await kit.inbound("SELECT outcome FROM attempts WHERE message_id = 'm1'")
    assert [row["outcome"] for row in ended] == ["orphaned"]


async def test_without_a_confirmed_exit_nothing_follows_and_the_kill_goes_on(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SettleScript(monkeypatch)
    kit.host.unkillable.add("main")
    await kit.send(message_id="m1")
    await kit.started()
    container = kit.host.of_session("main")
    assert kit.agent().claim() is not None
    stranded = journal(kit)
    with anyio.fail_after(SECONDS), pytest.raises(NotConfirmedError):
        await kit.operations.execute(KillSession(AGENT, "main", reason="a test"))
    with anyio.fail_after(SECONDS), pytest.raises(NotConfirmedError):
        await kit.operations.execute(KillSession(AGENT, "main", reason="a test"))
    await until(lambda: container.signals.count("KILL") > 2)
    await kit.bus.sweeper.tick()
    assert script.calls == []
    assert stranded.exists()
    assert (await kit.message("m1"))["tries"] == 0
    kit.host.exit_now(container.id, 137)
    await kit.gone()
    assert not stranded.exists()
    assert (await kit.message("m1"))["tries"] == 1


async def test_an_exit_is_settled_until_it_is_settled(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SettleScript(
        monkeypatch, {"main": [StorageError("disk full"), ValueError("a bug"), StorageError("disk full")]}
    )
    await kit.send(message_id="m1")
    await kit.started()
    assert kit.agent().claim() is not None
    script.look = lambda: kit.slot() is not None
    kit.host.exit_now(kit.host.of_session("main").id, 1)
    await kit.gone()
    assert script.during == [True] * 4
    assert (await kit.message("m1"))["tries"] == 1


async def test_a_kill_whose_exit_cannot_be_settled_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = StorageError("inbound.db: database or disk is full")
    SettleScript(monkeypatch, {"main": [full] * 1000})
    kit = BusKit(tmp_path / "data", runtime={"kill_confirm_s": 0.5})
    async with kit.running():
        await kit.send(message_id="m1")
        await kit.started()
        with anyio.fail_after(SECONDS), pytest.raises(NotConfirmedError, match="disk is full") as raised:
            await kit.operations.execute(KillSession(AGENT, "main", reason="a test"))
    assert raised.value.hint == full.hint
    assert "docker" not in raised.value.hint


@pytest.mark.parametrize("method", ["stop", "kill", "remove", "wait"])
async def test_a_bug_in_a_runtimes_method_leaves_the_end_to_be_tried_again(tmp_path: Path, method: str) -> None:
    kit = BusKit(tmp_path / "data")
    async with kit.running():
        await kit.send()
        await kit.started()
        container = kit.host.of_session("main")
        kit.host.errors[method] = ValueError("a bug")
        if method == "wait":
            kit.host.notify()
        kit.bus.supervisor.begin_end(SessionKey(AGENT, "main"), "a test", graceful=method != "kill")
        if method != "remove":
            with anyio.move_on_after(0.1):
                await kit.gone()
            assert kit.slot() is not None
        if method != "remove":
            del kit.host.errors[method]
        await until(lambda: container.exit is not None)
        await until(lambda: (slot := kit.slot()) is None or slot.incarnation != container.spec.incarnation)


async def test_a_graceful_end_waits_for_a_runtime_that_is_away(kit: BusKit) -> None:
    await kit.send()
    await kit.started()
    container = kit.host.of_session("main")
    kit.host.errors["stop"] = RuntimeUnavailableError("away")
    kit.bus.supervisor.begin_end(SessionKey(AGENT, "main"), "idle", graceful=True)
    await until(lambda: [method for method, _ in kit.host.calls].count("stop") > 3)
    assert container.signals == []
    del kit.host.errors["stop"]
    await until(lambda: container.exit is not None)
    assert container.signals == ["TERM"]


async def test_a_kill_in_mid_spawn_reaches_the_container_that_comes_of_it(kit: BusKit) -> None:
    kit.host.spawn_gate = anyio.Event()
    await kit.send()
    await until(lambda: spawned(kit) == ["main"])
    results: list[Any] = []
    async with anyio.create_task_group() as tasks:

        async def kill() -> None:
            results.append(await kit.operations.execute(KillSession(AGENT, "main", reason="a test")))

        tasks.start_soon(kill)
        await until(lambda: (slot := kit.slot()) is not None and slot.phase is Phase.STOPPING)
        kit.host.spawn_gate.set()
    assert results[0]["killed"] is True
    assert results[0]["exit_code"] == 137


# --- sweep and spawn


async def test_a_sweep_that_waited_for_the_files_judges_what_runs_by_then(kit: BusKit) -> None:
    session = await kit.bus.sessions.create(SessionKey(AGENT, "main"))
    await kit.settle()
    stranded = journal(kit)
    async with anyio.create_task_group() as tasks, session.lock:
        tasks.start_soon(kit.bus.sweeper.sweep, session.key)
        await until(lambda: session.lock.statistics().tasks_waiting == 1)
        await kit.bus.supervisor.wake(session)
        await until(lambda: kit.slot() is not None)
    await kit.started()
    await kit.settle()
    assert stranded.exists(), "recovered under a container that was being started"


async def test_no_container_starts_while_a_sweep_recovers_its_journal(
    kit: BusKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await kit.bus.sessions.create(SessionKey(AGENT, "main"))
    await kit.settle()
    entered, leave = threading.Event(), threading.Event()
    real = SessionFiles.recover

    def slow(self: SessionFiles) -> bool:
        entered.set()
        leave.wait(SECONDS)
        return real(self)

    monkeypatch.setattr(SessionFiles, "recover", slow)
    journal(kit)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kit.bus.sweeper.sweep, session.key)
        await until(entered.is_set)
        await kit.bus.supervisor.wake(session)
        await until(lambda: kit.slot() is not None)
        await kit.bus.supervisor.wake(await kit.bus.sessions.create(SessionKey(AGENT, "other")))
        await kit.started("other")  # woken later, and started
        assert kit.spawned() == 0
        leave.set()
    await kit.started()


# --- a cap of one agent's own


async def test_an_agents_own_cap_holds_and_the_others_use_the_room(tmp_path: Path) -> None:
    agents = {AGENT: AgentConfig(max_containers=1), "other": AgentConfig()}
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 3}, agents=agents)
    kit.timings = NO_PROBE
    async with kit.running():
        await kit.send("a")
        await kit.started("a")
        assert kit.agent("a").claim() is not None
        await kit.send("b")
        await until(lambda: SessionKey(AGENT, "b") in kit.bus.supervisor.waiting())
        await kit.send("x", agent="other")
        await kit.send("y", agent="other")
        await kit.started("x")
        await kit.started("y")
        assert sorted(living(kit)) == ["a", "x", "y"]
        kit.host.exit_now(kit.host.of_session("x").id, 1)
        await kit.gone("x", "other")
        assert kit.spawned("b") == 0, "there is room, and not for this agent"
        kit.host.exit_now(kit.host.of_session("a").id, 1)
        await kit.started("b")


async def test_an_idle_container_of_the_agent_itself_makes_way_under_its_cap(tmp_path: Path) -> None:
    agents = {AGENT: AgentConfig(max_containers=1), "other": AgentConfig()}
    kit = BusKit(tmp_path / "data", runtime={"max_containers": 8}, agents=agents)
    kit.timings = NO_PROBE
    async with kit.running() as bus:
        for agent, name in ((AGENT, "idle"), ("other", "theirs")):
            await bus.supervisor.wake(await bus.sessions.create(SessionKey(agent, name)))
            await kit.started(name)
        await until(lambda: all(slot.phase is Phase.RUNNING for slot in bus.supervisor.slots()))
        await kit.send("new")
        await kit.started("new")
        assert sorted(living(kit)) == ["new", "theirs"]


async def test_a_cap_is_taken_over_by_a_reload(tmp_path: Path) -> None:
    kit = BusKit(tmp_path / "data", agents={AGENT: AgentConfig(max_containers=1)})
    async with kit.running() as bus:
        await kit.send("a")
        await kit.started("a")
        assert kit.agent("a").claim() is not None
        await kit.send("b")
        await until(lambda: SessionKey(AGENT, "b") in bus.supervisor.waiting())
        bus.agents[AGENT] = AgentConfig(max_containers=2)
        bus.supervisor.check_for_room()
        await kit.started("b")
