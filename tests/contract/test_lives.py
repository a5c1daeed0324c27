"""A container's life is its id and its start: what every runtime owes whose containers others can start again."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from daemon.core.errors import NotConfirmedError, SpawnError

pytestmark = [pytest.mark.anyio]

SECONDS = 30.0


async def test_a_restart_ends_one_life_and_the_container_lives(restarting: Any) -> None:
    runtime, spec = restarting.runtime(), restarting.spec()
    spawned = await runtime.spawn(spec)
    await restarting.ready(spec)
    restarting.restart(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert (await runtime.wait(spawned.container_id, spawned.started_at)).restarted
    [again] = await runtime.list_running()
    assert (again.container_id, again.incarnation) == (spawned.container_id, spawned.incarnation)
    assert again.started_at != spawned.started_at
    with anyio.move_on_after(0.3) as scope:
        await runtime.wait(spawned.container_id)
    assert scope.cancelled_caught, "the container itself has not ended"
    with pytest.raises(NotConfirmedError):
        await runtime.remove(spawned.container_id)
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert not (await runtime.wait(spawned.container_id)).restarted
        ended = await runtime.wait(spawned.container_id, spawned.started_at)
    assert (ended.code, ended.restarted) == (None, False), "the code of another life is none of this one's"


async def test_a_wait_under_way_hears_of_the_restart(restarting: Any) -> None:
    runtime, spec = restarting.runtime(), restarting.spec()
    spawned = await runtime.spawn(spec)
    await restarting.ready(spec)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.wait, spawned.container_id, spawned.started_at)
            await anyio.wait_all_tasks_blocked()
            restarting.restart(spawned.container_id)


async def test_a_restart_policy_is_seen_and_taken_away(restarting: Any) -> None:
    runtime, spec = restarting.runtime(), restarting.spec()
    spawned = await runtime.spawn(spec)
    await restarting.ready(spec)
    assert not spawned.restarts
    restarting.set_restart_policy(spawned.container_id)
    assert [one.restarts for one in await runtime.list_running()] == [True]
    await runtime.forbid_restart(spawned.container_id)
    await runtime.forbid_restart("no-such-container")
    assert await runtime.list_running() == [spawned]


@pytest.mark.parametrize("method", ["stop", "kill"])
async def test_what_has_a_restart_policy_ends_when_it_is_told_to(restarting: Any, method: str) -> None:
    runtime, spec = restarting.runtime(), restarting.spec()
    spawned = await runtime.spawn(spec)
    await restarting.ready(spec)
    restarting.set_restart_policy(spawned.container_id)
    await getattr(runtime, method)(spawned.container_id)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    await runtime.remove(spawned.container_id)
    assert await runtime.list_running() == []


async def test_what_others_start_is_reported(restarting: Any) -> None:
    runtime, spec = restarting.runtime(), restarting.spec()
    spawned = await runtime.spawn(spec)
    await restarting.ready(spec)
    with anyio.fail_after(SECONDS):
        await restarting_is_heard(restarting, runtime, spawned.container_id)


async def restarting_is_heard(restarting: Any, runtime: Any, container_id: str) -> None:
    heard = anyio.Event()

    async def listens() -> None:
        await runtime.changed()
        heard.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listens)
        await anyio.wait_all_tasks_blocked()
        restarting.restart(container_id)
        await heard.wait()


async def test_a_container_made_again_with_its_labels_is_another_one_and_refuses_a_start(restarting: Any) -> None:
    runtime, spec = restarting.runtime(), restarting.spec()
    spawned = await runtime.spawn(spec)
    await restarting.ready(spec)
    other = restarting.recreate(spawned.container_id)
    listed = {one.container_id: one.incarnation for one in await runtime.list_running()}
    assert listed == {spawned.container_id: spec.incarnation, other: spec.incarnation}
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    await runtime.remove(spawned.container_id)
    with pytest.raises(SpawnError, match="still"):
        await runtime.spawn(restarting.spec())
