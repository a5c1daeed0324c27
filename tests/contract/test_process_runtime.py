"""What only the process runtime promises: records before life, nothing of a container left over, a clean environment."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import anyio
import pytest
import structlog.testing

from daemon.core.clock import SystemClock
from daemon.core.errors import RuntimeUnavailableError, SpawnError
from daemon.runtimes import process_table
from daemon.runtimes.process import ProcessRuntime
from daemon.runtimes.process_records import RecordStore
from daemon.runtimes.protocol import ContainerSpec, Exit
from tests.support.runtime_harness import ProcessHarness, until

pytestmark = [pytest.mark.anyio]

SECONDS = 30.0


def out(spec: ContainerSpec) -> Path:
    return next(m.source for m in spec.mounts if m.target == "/workspace/out")


async def test_it_says_that_it_isolates_nothing(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        runtime = ProcessRuntime("install", tmp_path, clock=SystemClock())
        assert logs == [], "built only to be asked, it isolates nobody"
        await runtime.check()
    assert [entry["event"] for entry in logs] == ["process_runtime_no_isolation"]


async def test_the_daemons_environment_does_not_leak(
    process_harness: ProcessHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAWBUS_LOGS__LEVEL", "debug")
    monkeypatch.setenv("WEBHOOK_SECRET", "s")
    runtime, spec = process_harness.runtime(), process_harness.spec()
    await runtime.spawn(spec)
    await process_harness.ready(spec)
    assert (out(spec) / "environment").read_text(encoding="utf-8").split("\n") == [
        "CLAWBUS_AGENT",
        "CLAWBUS_AGENT_NAME",
        "CLAWBUS_IN",
        "CLAWBUS_INCARNATION",
        "CLAWBUS_OUT",
        "CLAWBUS_RUNNER",
        "CLAWBUS_SESSION_NAME",
    ]


async def test_an_agent_s_variables_are_its_own_whatever_their_names(process_harness: ProcessHarness) -> None:
    """The shell that starts the runner has variables too."""
    given = {name: f"mine-{name}" for name in ("code", "go", "got", "child", "now", "exit_file")}
    runtime, spec = process_harness.runtime(), process_harness.spec()
    spec = dataclasses.replace(spec, runner=("/usr/bin/env",), environment={**spec.environment, **given})
    running = await runtime.spawn(spec)
    assert (await runtime.wait(running.container_id)).code == 0
    printed = (await runtime.logs(running.container_id)).splitlines()
    assert {name: f"{name}={value}" in printed for name, value in given.items()} == dict.fromkeys(given, True)


@pytest.mark.parametrize("how", ["runtime kill", "runner killed by others", "shell killed by others", "stop"])
async def test_nothing_of_a_container_outlives_its_end(process_harness: ProcessHarness, how: str) -> None:
    """Also a child in a session of its own that has lost every CLAWBUS_* variable, as agent programs have."""
    runtime, spec = process_harness.runtime(), process_harness.spec(behaviour="breed")
    spawned = await runtime.spawn(spec)
    await process_harness.ready(spec)
    child = int((out(spec) / "child").read_text(encoding="ascii"))
    before = process_table.read_stat(child)
    assert before is not None
    assert before.alive
    record = RecordStore(process_harness.folder).read(spawned.container_id)
    assert record is not None
    if how == "runtime kill":
        await runtime.kill(spawned.container_id)
    elif how == "stop":
        await runtime.stop(spawned.container_id)
    elif how == "shell killed by others":
        os.kill(record.pid, signal.SIGKILL)
    else:
        members = process_table.living_members(record.leader)
        os.kill(next(m.pid for m in members if m.parent == record.pid), signal.SIGKILL)
    with anyio.fail_after(SECONDS):
        ended = await runtime.wait(spawned.container_id)
    assert ended == Exit(0 if how == "stop" else 137)
    after = process_table.read_stat(child)
    assert after is None or not after.alive
    assert process_table.living_members(record.leader) == []


async def test_a_container_whose_first_process_died_unseen_is_still_listed_and_then_ended(
    process_harness: ProcessHarness,
) -> None:
    before, spec = process_harness.runtime(), process_harness.spec(behaviour="breed")
    spawned = await before.spawn(spec)
    await process_harness.ready(spec)
    record = RecordStore(process_harness.folder).read(spawned.container_id)
    assert record is not None
    os.killpg(record.pid, signal.SIGKILL)
    stat = process_table.read_stat(record.pid)
    assert stat is not None
    await until(lambda: (process_table.read_stat(record.pid) or stat).state == "Z")
    after = process_harness.runtime()
    assert await after.list_running() == [spawned], "its child lives"
    with anyio.fail_after(SECONDS):
        await after.wait(spawned.container_id)
    assert await after.list_running() == []


async def test_nothing_starts_when_the_daemon_dies_before_the_record_is_there(
    process_harness: ProcessHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, spec = process_harness.runtime(), process_harness.spec()
    pids: list[int] = []

    def dies(self: RecordStore, record: object) -> None:
        pids.append(getattr(record, "pid"))  # noqa: B009 - the record's type is the runtime's own
        raise RuntimeUnavailableError("died here")

    monkeypatch.setattr(RecordStore, "write", dies)
    with pytest.raises(RuntimeUnavailableError):
        await runtime.spawn(spec)
    with anyio.fail_after(SECONDS):
        for pid in pids:
            stat = process_table.read_stat(pid)
            if stat is not None:
                await process_table.ended(pid, stat.start_ticks)
    assert pids
    assert await runtime.list_running() == []
    assert not (out(spec) / "ready").exists()


async def test_a_pid_that_was_given_anew_is_another_process(process_harness: ProcessHarness) -> None:
    runtime, spec = process_harness.runtime(), process_harness.spec()
    spawned = await runtime.spawn(spec)
    await process_harness.ready(spec)
    store = RecordStore(process_harness.folder)
    record = store.read(spawned.container_id)
    assert record is not None
    # The same numbers as the living process, but an earlier life, or another boot, of another incarnation.
    for other in (
        dataclasses.replace(record, start_ticks=record.start_ticks - 1, incarnation="old", container_id="old"),
        dataclasses.replace(record, boot_id="another", container_id="old"),
    ):
        store.write(other)
        assert await runtime.list_running() == [spawned]
        await runtime.stop("old")
        await runtime.kill("old")
        with anyio.fail_after(SECONDS):
            assert await runtime.wait("old") == Exit(code=None)
        assert await runtime.list_running() == [spawned]


async def test_a_stop_that_comes_at_once_is_not_lost(process_harness: ProcessHarness) -> None:
    runtime = process_harness.runtime()
    for _ in range(20):
        spawned = await runtime.spawn(process_harness.spec())
        await runtime.stop(spawned.container_id)
        with anyio.fail_after(SECONDS):
            ended = await runtime.wait(spawned.container_id)
        assert ended.code in {0, 143}, "143 when the program had not set its handler yet"


async def test_several_stops_do_not_confuse_the_exit_code(process_harness: ProcessHarness) -> None:
    for _ in range(5):
        runtime, spec = process_harness.runtime(), process_harness.spec()
        spawned = await runtime.spawn(spec)
        await process_harness.ready(spec)
        for _ in range(4):
            await runtime.stop(spawned.container_id)
        with anyio.fail_after(SECONDS):
            assert await runtime.wait(spawned.container_id) == Exit(0)


async def test_a_missing_folder_is_a_refusal(process_harness: ProcessHarness) -> None:
    spec = process_harness.spec()
    spec.mounts[2].source.rmdir()
    with pytest.raises(SpawnError, match="not a folder"):
        await process_harness.runtime().spawn(spec)


async def test_a_check_takes_no_other_threads_draft_away(tmp_path: Path) -> None:
    """Every start checks the folder first, also while another container's record is being written."""
    runtime = ProcessRuntime("install", tmp_path, clock=SystemClock())
    draft = tmp_path / "being-written.draft"
    draft.write_text("{}", encoding="ascii")
    await runtime.check()
    assert draft.exists()
    assert await runtime.find_or_cancel_spawn("being-written") is None
    assert not draft.exists(), "a start that is given up leaves nothing"


async def test_many_starts_at_once_all_succeed(process_harness: ProcessHarness) -> None:
    runtime = process_harness.runtime()
    specs = [process_harness.spec(f"s{number}") for number in range(24)]
    async with anyio.create_task_group() as group:
        for spec in specs:
            group.start_soon(runtime.spawn, spec)
    assert {one.incarnation for one in await runtime.list_running()} == {spec.incarnation for spec in specs}


async def test_an_ended_child_leaves_no_zombie(process_harness: ProcessHarness) -> None:
    runtime = process_harness.runtime()
    spawned = await runtime.spawn(process_harness.spec(behaviour="exit:0"))
    record = RecordStore(process_harness.folder).read(spawned.container_id)
    assert record is not None
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    assert process_table.leader_stat(record.leader) is None


async def test_the_real_runner_starts_from_any_folder(process_harness: ProcessHarness) -> None:
    runtime = ProcessRuntime(process_harness.install_id, process_harness.folder, clock=SystemClock())
    process_harness.made(runtime)
    spec = process_harness.spec()
    # A package of the same name in the working folder, which is the agent's own, must not be what runs.
    (spec.mounts[2].source / "container_runner").mkdir()
    (spec.mounts[2].source / "container_runner" / "__main__.py").write_text("raise SystemExit(9)", encoding="utf-8")
    spawned = await runtime.spawn(spec)
    await until((out(spec) / "outbound.db").exists)
    await runtime.stop(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert await runtime.wait(spawned.container_id) == Exit(0)
