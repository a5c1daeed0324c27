"""What only Docker can show: the lock-down as `docker inspect` tells it, refused images, events that break."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import anyio
import pytest

from daemon.core.errors import ImageError, NotConfirmedError, SpawnError
from daemon.runtimes.protocol import Exit
from daemon.runtimes.spec import labels
from tests.support.runtime_harness import LIMITS, STUB_DIGEST, DockerHarness, build_stub, docker_client, until

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SECONDS = 30.0


async def test_inspect_shows_the_lock_down(docker_harness: DockerHarness) -> None:
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    spawned = await runtime.spawn(spec)
    with docker_client() as client:
        details: dict[str, Any] = client.inspect_container(spawned.container_id)
    host = details["HostConfig"]
    assert host["Init"] is True
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["PidsLimit"] == LIMITS.pids
    assert (host["Memory"], host["MemorySwap"]) == (LIMITS.memory_bytes, LIMITS.memory_bytes)
    assert host["NanoCpus"] == LIMITS.cpus * 1e9
    assert host["NetworkMode"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["AutoRemove"] is False
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "3"}}
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert f"size={LIMITS.memory_bytes // 2}" in host["Tmpfs"]["/tmp"]
    assert {(m["Source"], m["Destination"], m["RW"]) for m in details["Mounts"]} == {
        (str(mount.source), mount.target, not mount.read_only) for mount in spec.mounts
    }
    config = details["Config"]
    assert config["User"] == spec.user
    assert not config["User"].startswith("0:")
    assert labels(spec).items() <= config["Labels"].items()
    assert config["Labels"]["clawbus.source-digest"] == STUB_DIGEST
    assert "HOME=/workspace/home" in config["Env"]
    assert details["Name"] == f"/{spec.name}"


async def test_the_kernel_refuses_a_write_to_the_inbound_folder(docker_harness: DockerHarness) -> None:
    runtime = docker_harness.runtime()
    spawned = await runtime.spawn(docker_harness.spec(behaviour="write-in"))
    with anyio.fail_after(SECONDS):
        assert await runtime.wait(spawned.container_id) == Exit(0)
    assert "refused: Read-only file system" in await runtime.logs(spawned.container_id)


@pytest.mark.parametrize(("digest", "why"), [(None, "foreign"), ("another", "another")])
async def test_an_image_that_is_not_ours_is_refused(
    docker_harness: DockerHarness, base_image: str, digest: str | None, why: str
) -> None:
    tag = build_stub(base_image, digest)
    try:
        as_default = docker_harness.runtime(image=tag)
        with pytest.raises(ImageError, match=why) as caught:
            await as_default.check()
        assert "clawbus image build" in caught.value.hint
        with pytest.raises(ImageError, match=why):
            await docker_harness.runtime().spawn(docker_harness.spec(image=tag))
        assert await as_default.list_running() == []
    finally:
        with docker_client() as client:
            client.remove_image(tag, force=True)


async def test_a_stale_image_is_refused_with_both_digests(docker_harness: DockerHarness) -> None:
    with pytest.raises(ImageError, match=rf"{STUB_DIGEST}.*newer-source"):
        await docker_harness.runtime(source_digest="newer-source").check()


async def test_a_missing_image_is_refused(docker_harness: DockerHarness) -> None:
    runtime = docker_harness.runtime(image="clawbus-none:none")
    with pytest.raises(ImageError, match="missing"):
        await runtime.check()
    with pytest.raises(ImageError, match="missing"):
        await runtime.spawn(docker_harness.spec(image="clawbus-none:none"))


async def test_what_docker_refuses_leaves_no_container_behind(docker_harness: DockerHarness) -> None:
    runtime = docker_harness.runtime()
    no_network = docker_harness.spec(network="clawbus-no-such-network")
    with pytest.raises(SpawnError):
        await runtime.spawn(no_network)
    no_source = docker_harness.spec("other")
    (no_source.mounts[2].source).rmdir()
    with pytest.raises(SpawnError):
        await runtime.spawn(no_source)
    with docker_client() as client:
        filters = {"label": f"clawbus.install={docker_harness.install_id}"}
        assert client.containers(all=True, filters=filters) == []


async def test_a_name_that_is_somebody_elses_is_left_alone(docker_harness: DockerHarness) -> None:
    spec = docker_harness.spec()
    with docker_client() as client:
        foreign = client.create_container(docker_harness.image, name=spec.name)["Id"]
        try:
            with pytest.raises(SpawnError, match="belongs to something else"):
                await docker_harness.runtime().spawn(spec)
            assert client.inspect_container(foreign)["Id"] == foreign
        finally:
            client.remove_container(foreign, force=True)


async def test_a_broken_event_stream_loses_no_exit(docker_harness: DockerHarness) -> None:
    # The poll is out of reach, so only an event, or the look after a reconnection, can end the wait.
    runtime, spec = docker_harness.runtime(poll_s=3600.0), docker_harness.spec()
    spawned = await runtime.spawn(spec)
    await docker_harness.ready(spec)
    exits: list[Exit] = []

    async def waits() -> None:
        exits.append(await runtime.wait(spawned.container_id))

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits)
            await until(lambda: runtime._events._stream is not None)
            docker_harness.take_away()
            with docker_client() as client:
                client.kill(spawned.container_id)
                client.wait(spawned.container_id)
            docker_harness.bring_back()
    assert exits == [Exit(137)]


async def test_an_event_ends_a_wait_without_a_poll(docker_harness: DockerHarness) -> None:
    runtime, spec = docker_harness.runtime(poll_s=3600.0), docker_harness.spec()
    spawned = await runtime.spawn(spec)
    await docker_harness.ready(spec)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.wait, spawned.container_id)
            await until(lambda: runtime._events._stream is not None)
            await runtime.kill(spawned.container_id)


async def test_the_poll_ends_a_wait_without_events(
    docker_harness: DockerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, spec = docker_harness.runtime(poll_s=0.05), docker_harness.spec()

    def deaf(container_id: str | None) -> None:
        """No event reaches anybody."""

    monkeypatch.setattr(runtime._events, "_ring", deaf)
    spawned = await runtime.spawn(spec)
    await docker_harness.ready(spec)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.wait, spawned.container_id)
            await runtime.stop(spawned.container_id)


async def test_closing_ends_the_event_thread(docker_harness: DockerHarness) -> None:
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    spawned = await runtime.spawn(spec)
    with anyio.move_on_after(0.3):
        await runtime.wait(spawned.container_id)
    thread = runtime._events._thread
    assert thread is not None
    assert thread.is_alive()
    with anyio.fail_after(SECONDS):
        await runtime.aclose()
    assert not thread.is_alive()
    assert threading.active_count() < 60


async def test_removing_keeps_the_output_in_the_sessions_log(docker_harness: DockerHarness) -> None:
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    spawned = await runtime.spawn(spec)
    await docker_harness.ready(spec)
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    await runtime.remove(spawned.container_id)
    assert spec.stderr_log.read_text(encoding="utf-8") == f"ready {spec.incarnation}\n"


async def test_a_paused_container_is_running_and_can_be_killed(docker_harness: DockerHarness) -> None:
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    spawned = await runtime.spawn(spec)
    with docker_client() as client:
        client.pause(spawned.container_id)
    assert await runtime.list_running() == [replace(spawned, paused=True)]
    with pytest.raises(NotConfirmedError):
        await runtime.remove(spawned.container_id)
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert (await runtime.wait(spawned.container_id)).code == 137


async def test_a_container_over_its_memory_says_so(docker_harness: DockerHarness) -> None:
    """Busy engines lose the kernel's notice about once in sixty times, so containers run until one is recorded."""
    runtime, noticed = docker_harness.runtime(), False
    for _ in range(5):
        spawned = await runtime.spawn(docker_harness.spec(behaviour="eat"))
        with anyio.fail_after(SECONDS):
            ended = await runtime.wait(spawned.container_id)
        assert ended.code == 137
        with docker_client() as client:
            noticed = client.inspect_container(spawned.container_id)["State"]["OOMKilled"]
        if noticed:
            assert ended.out_of_memory
            break
        await runtime.remove(spawned.container_id)
    assert noticed


async def test_a_cancelled_spawn_returns_at_once_and_starts_nothing_more(
    docker_harness: DockerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    reached, go_on = threading.Event(), threading.Event()
    create = runtime._spawner._create

    def slow(*arguments: Any) -> str:
        container_id = create(*arguments)
        reached.set()
        assert go_on.wait(SECONDS)
        return container_id

    monkeypatch.setattr(runtime._spawner, "_create", slow)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.spawn, spec)
            await until(reached.is_set)
            tasks.cancel_scope.cancel()
    go_on.set()
    with docker_client() as client:
        filters = {"label": f"clawbus.install={docker_harness.install_id}"}
        await until(lambda: client.containers(all=True, filters=filters) == [])


async def test_what_was_created_and_not_started_is_withdrawn_and_never_starts(
    docker_harness: DockerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that died between the two calls, or whose start is still under way in Docker."""
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    reached, go_on = threading.Event(), threading.Event()
    start = runtime._spawner._start

    def late(*arguments: Any) -> Any:
        reached.set()
        assert go_on.wait(SECONDS)
        return start(*arguments)

    monkeypatch.setattr(runtime._spawner, "_start", late)

    async def spawn() -> None:
        with pytest.raises(SpawnError):
            await runtime.spawn(spec)

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(spawn)
            await until(reached.is_set)
            assert await docker_harness.runtime().find_or_cancel_spawn(spec.incarnation) is None
            go_on.set()
    assert await runtime.list_running() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only a daemon run by root chooses another user")
async def test_a_root_daemons_container_is_not_root(docker_harness: DockerHarness) -> None:
    runtime, spec = docker_harness.runtime(), docker_harness.spec()
    await runtime.spawn(spec)
    await docker_harness.ready(spec)
    written = next(m.source for m in spec.mounts if m.target == "/workspace/out") / "ready"
    assert written.stat().st_uid == 65532
