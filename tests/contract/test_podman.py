"""What differs under Podman: the lock-down, what is paused, missing mounts, its own names of events, who it is."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon.core.errors import NotConfirmedError, SpawnError
from daemon.runtimes.protocol import Exit
from tests.support import private_podman
from tests.support.daemon import RealDaemon, eventually
from tests.support.runtime_harness import LIMITS, PodmanHarness, until

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SECONDS = 30.0


def runtime_findings(daemon: RealDaemon) -> list[dict[str, Any]]:
    found = daemon.cli("doctor").envelope["result"]["findings"]
    return [one for one in found if one["code"] == "RUNTIME_UNAVAILABLE"]


async def test_an_inspection_shows_the_lock_down(podman_harness: PodmanHarness) -> None:
    runtime, spec = podman_harness.runtime(), podman_harness.spec()
    spawned = await runtime.spawn(spec)
    with podman_harness.client() as client:
        details: dict[str, Any] = client.inspect_container(spawned.container_id)
    host = details["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert {"CHOWN", "DAC_OVERRIDE", "KILL", "NET_RAW", "SETUID", "SYS_CHROOT"} <= set(host["CapDrop"])
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["PidsLimit"] == LIMITS.pids
    assert (host["Memory"], host["MemorySwap"]) == (LIMITS.memory_bytes, LIMITS.memory_bytes)
    assert host["NanoCpus"] == LIMITS.cpus * 1e9
    assert host["NetworkMode"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"
    assert {name for name, options in host["Tmpfs"].items() if "mode=755" not in options} == {"/tmp"}
    assert {(m["Source"], m["Destination"], m["RW"]) for m in details["Mounts"]} == {
        (str(mount.source), mount.target, not mount.read_only) for mount in spec.mounts
    }
    assert details["Config"]["User"] == spec.user


async def test_a_mount_without_a_source_is_refused_and_not_made(podman_harness: PodmanHarness) -> None:
    runtime, spec = podman_harness.runtime(), podman_harness.spec()
    gone = spec.mounts[2].source
    gone.rmdir()
    with pytest.raises(SpawnError, match="does not exist"):
        await runtime.spawn(spec)
    assert not gone.exists()
    with podman_harness.client() as client:
        assert client.containers(all=True, filters={"label": f"clawbus.install={podman_harness.install_id}"}) == []


async def test_a_paused_container_is_running_and_can_be_killed(podman_harness: PodmanHarness) -> None:
    runtime, spec = podman_harness.runtime(), podman_harness.spec()
    spawned = await runtime.spawn(spec)
    with podman_harness.client() as client:
        client.pause(spawned.container_id)
    assert await runtime.list_running() == [replace(spawned, paused=True)]
    with pytest.raises(NotConfirmedError):
        await runtime.remove(spawned.container_id)
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        assert (await runtime.wait(spawned.container_id)).code == 137


async def test_an_event_ends_a_wait_without_a_poll(podman_harness: PodmanHarness) -> None:
    runtime, spec = podman_harness.runtime(poll_s=3600.0), podman_harness.spec()
    spawned = await runtime.spawn(spec)
    await podman_harness.ready(spec)
    exits: list[Exit] = []

    async def waits() -> None:
        exits.append(await runtime.wait(spawned.container_id))

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits)
            await until(lambda: runtime._events._stream is not None)
            await runtime.kill(spawned.container_id)
    assert exits == [Exit(137)]


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_container_that_podman_would_start_again_ends(podman_harness: PodmanHarness, end: str) -> None:
    runtime, spec = podman_harness.runtime(), podman_harness.spec()
    spawned = await runtime.spawn(spec)
    await podman_harness.ready(spec)
    await runtime.kill(spawned.container_id)
    with anyio.fail_after(SECONDS):
        await runtime.wait(spawned.container_id)
    again = podman_harness.recreate(spawned.container_id, restart_policy={"Name": "always"})
    [listed] = await runtime.list_running()
    assert (listed.container_id, listed.restarts) == (again, True)
    with anyio.fail_after(SECONDS):
        while "ready" not in await runtime.logs(again):  # noqa: ASYNC110 - the engine is asked
            await anyio.sleep(0.02)
    await getattr(runtime, end)(again)
    with anyio.fail_after(SECONDS):
        assert not (await runtime.wait(again, listed.started_at)).restarted
    assert await runtime.list_running() == []


async def test_it_says_who_it_is_twice_the_same(podman_harness: PodmanHarness) -> None:
    first, second = podman_harness.runtime(), podman_harness.runtime()
    identity = await first.identity()
    assert identity == await second.identity()
    assert identity.startswith("Podman on ")
    with podman_harness.client() as client:
        assert client.info()["ID"] != client.info()["ID"], "Podman has an ID of its own now: use it"


@pytest.mark.skipif(private_podman.missing() is not None, reason=str(private_podman.missing()))
def test_the_command_that_doctor_names_for_a_missing_socket_mends_it(tmp_path: Path) -> None:
    socket = tmp_path / "run" / "podman.sock"
    storage = tmp_path / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n', encoding="utf-8"
    )
    environ = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)}
    with closing(RealDaemon(f'[podman]\nhost = "unix://{socket}"\n', runtime="podman")) as daemon:
        daemon.start()
        daemon.stop()  # which would look for its runtime less and less often
        [finding] = runtime_findings(daemon)
        assert "there is no such socket" in finding["evidence"][0]
        started = subprocess.run(
            ["sh", "-c", f"{finding['command']} echo $!"],
            capture_output=True, text=True, check=True, timeout=120, env=environ,
        )  # fmt: skip
        try:
            eventually("the finding is over", lambda: not runtime_findings(daemon), 60)
        finally:
            os.kill(int(started.stdout), signal.SIGKILL)
