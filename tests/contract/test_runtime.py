"""What every container runtime owes: one suite over fake, process, docker and podman.

Exit codes are a shell's: the program's own, or 128 + the signal that ended it (137 for SIGKILL).
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from daemon.core.errors import ContainerGoneError, NotConfirmedError, RuntimeUnavailableError, SpawnError
from daemon.runtimes.protocol import Exit

pytestmark = [pytest.mark.anyio]

UNKNOWN = "no-such-container"
SECONDS = 30.0


async def test_a_spawn_is_listed_as_what_it_is(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec()
    before = time.time_ns() // 1_000_000
    spawned = await runtime.spawn(spec)
    listed = await runtime.list_running()
    assert listed == [spawned]
    assert (spawned.agent, spawned.session) == ("helper", "main")
    assert (spawned.incarnation, spawned.fingerprint) == (spec.incarnation, spec.fingerprint)
    assert before - 1000 <= spawned.started_at <= time.time_ns() // 1_000_000 + 1000


async def test_a_runtime_that_can_spawn_says_so(harness: Any) -> None:
    await harness.runtime().check()


@pytest.mark.parametrize("code", [0, 3])
async def test_wait_returns_the_exit_code(harness: Any, code: int) -> None:
    runtime = harness.runtime()
    spawned = await runtime.spawn(harness.spec(behaviour=f"exit:{code}"))
    await harness.end(spawned, code)
    with anyio.fail_after(SECONDS):
        assert await runtime.wait(spawned.container_id) == Exit(code)
    assert await runtime.list_running() == []


async def test_wait_returns_only_after_the_end_and_to_everybody(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec()
    spawned = await runtime.spawn(spec)
    await harness.ready(spec)
    exits: list[Exit] = []

    async def waits() -> None:
        exits.append(await runtime.wait(spawned.container_id))
        assert await runtime.list_running() == []

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits)
            tasks.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
            assert await runtime.list_running() == [spawned]
            assert exits == []
            await runtime.stop(spawned.container_id)
    assert exits == [Exit(0), Exit(0)]


async def test_a_cancelled_wait_leaves_at_once_and_hurts_nobody(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec()
    spawned = await runtime.spawn(spec)
    await harness.ready(spec)
    with anyio.fail_after(SECONDS), anyio.move_on_after(0.05) as scope:
        await runtime.wait(spawned.container_id)
    assert scope.cancelled_caught
    assert await runtime.list_running() == [spawned]


async def test_kill_ends_what_ignores_a_stop(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec(behaviour="stubborn")
    spawned = await runtime.spawn(spec)
    await harness.ready(spec)
    await runtime.stop(spawned.container_id)
    with anyio.move_on_after(0.2) as scope:
        await runtime.wait(spawned.container_id)
    assert scope.cancelled_caught, "it ended on SIGTERM"
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert (await runtime.wait(spawned.container_id)).code == 137


async def test_an_unknown_container_is_no_error_but_has_no_log(harness: Any) -> None:
    runtime = harness.runtime()
    await runtime.stop(UNKNOWN)
    await runtime.kill(UNKNOWN)
    await runtime.remove(UNKNOWN)
    with anyio.fail_after(SECONDS):
        assert await runtime.wait(UNKNOWN) == Exit(code=None)
    with pytest.raises(ContainerGoneError):
        await runtime.logs(UNKNOWN)


async def test_an_ended_container_takes_signals_and_forgetting_twice(harness: Any) -> None:
    runtime = harness.runtime()
    spawned = await runtime.spawn(harness.spec(behaviour="exit:0"))
    await harness.end(spawned, 0)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    await runtime.stop(spawned.container_id)
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert await runtime.wait(spawned.container_id) == Exit(0), "asked again, the same answer"
    await runtime.remove(spawned.container_id)
    await runtime.remove(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert await runtime.wait(spawned.container_id) == Exit(code=None)


async def test_a_living_container_is_not_forgotten(harness: Any) -> None:
    runtime = harness.runtime()
    spawned = await runtime.spawn(harness.spec())
    with pytest.raises(NotConfirmedError):
        await runtime.remove(spawned.container_id)
    assert await runtime.list_running() == [spawned]


async def test_another_installs_containers_are_not_seen(harness: Any) -> None:
    ours, theirs = harness.runtime(), harness.runtime("01J0000000ANOTHERINSTALL00")
    spawned = await ours.spawn(harness.spec())
    assert await theirs.list_running() == []
    assert await ours.list_running() == [spawned]


async def test_what_was_started_is_found_whether_it_runs_or_ended(harness: Any) -> None:
    runtime, theirs = harness.runtime(), harness.runtime("01J0000000ANOTHERINSTALL00")
    assert await runtime.find_or_cancel_spawn("01J00000000000000NEVERSEEN") is None
    spec = harness.spec(behaviour="exit:0")
    spawned = await runtime.spawn(spec)
    assert await runtime.find_or_cancel_spawn(spec.incarnation) == spawned
    assert await theirs.find_or_cancel_spawn(spec.incarnation) is None
    await harness.end(spawned, 0)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    assert await runtime.find_or_cancel_spawn(spec.incarnation) == spawned
    await runtime.remove(spawned.container_id)
    assert await runtime.find_or_cancel_spawn(spec.incarnation) is None


async def test_a_session_has_one_container(harness: Any) -> None:
    runtime = harness.runtime()
    first = await runtime.spawn(harness.spec())
    with pytest.raises(SpawnError):
        await runtime.spawn(harness.spec())
    other = await runtime.spawn(harness.spec("other"))
    assert {r.container_id for r in await runtime.list_running()} == {first.container_id, other.container_id}


async def test_a_dead_leftover_does_not_stand_in_the_way(harness: Any) -> None:
    runtime = harness.runtime()
    first = await runtime.spawn(harness.spec(behaviour="exit:1"))
    await harness.end(first, 1)
    with anyio.fail_after(SECONDS):
        await runtime.wait(first.container_id)
    second = await runtime.spawn(harness.spec())
    assert await runtime.list_running() == [second]


async def test_a_restarted_daemon_adopts(harness: Any) -> None:
    before, spec = harness.runtime(), harness.spec()
    spawned = await before.spawn(spec)
    await harness.ready(spec)
    await before.aclose()
    after = harness.runtime()
    assert await after.list_running() == [spawned], "closing kills nothing"
    await after.stop(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert await after.wait(spawned.container_id) == Exit(0)
    assert await after.list_running() == []


async def test_logs_can_be_read_after_the_exit(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec()
    spawned = await runtime.spawn(spec)
    await harness.ready(spec)
    await runtime.stop(spawned.container_id)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    expected = f"ready {spec.incarnation}\n"
    assert await runtime.logs(spawned.container_id) == expected
    assert await runtime.logs(spawned.container_id, max_bytes=5) == expected[-5:]


async def test_a_runtime_that_is_away_says_so_and_comes_back(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec()
    spawned = await runtime.spawn(spec)
    await harness.ready(spec)
    harness.take_away()
    calls = (
        runtime.check,
        lambda: runtime.spawn(harness.spec("other")),
        lambda: runtime.stop(spawned.container_id),
        lambda: runtime.kill(spawned.container_id),
        runtime.list_running,
        lambda: runtime.logs(spawned.container_id),
        lambda: runtime.remove(spawned.container_id),
    )
    for call in calls:
        with anyio.fail_after(SECONDS), pytest.raises(RuntimeUnavailableError):
            await call()
    harness.bring_back()
    assert await runtime.list_running() == [spawned]


async def test_a_wait_outlives_the_runtimes_absence(harness: Any) -> None:
    runtime, spec = harness.runtime(), harness.spec()
    spawned = await runtime.spawn(spec)
    await harness.ready(spec)
    exits: list[Exit] = []

    async def waits() -> None:
        exits.append(await runtime.wait(spawned.container_id))

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
            harness.take_away()
            with anyio.move_on_after(0.3):
                await runtime.wait(spawned.container_id)
            assert exits == [], "away is not an exit"
            harness.bring_back()
            assert await runtime.list_running() == [spawned]
            await runtime.stop(spawned.container_id)
    assert exits == [Exit(0)]
