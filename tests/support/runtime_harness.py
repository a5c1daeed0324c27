"""One harness per runtime: how to make a runtime object, a spec, and how to take the runtime away and bring it back."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import tarfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import anyio
import docker
import pytest

from daemon.config.models import EngineKind
from daemon.core.clock import SystemClock
from daemon.runtimes.docker import DockerRuntime
from daemon.runtimes.process import ProcessRuntime
from daemon.runtimes.protocol import ContainerRuntime, ContainerSpec, Limits, Running
from daemon.runtimes.spec import LABEL_INSTALL, LABEL_SOURCE_DIGEST, build_spec
from daemon.runtimes.users import container_uid_gid
from schema.ids import new_id
from schema.layout import SessionFolder
from schema.rows import RunnerSettings
from tests.support.fake_runtime import FakeHost, FakeRuntime
from tests.support.socket_proxy import SocketProxy

STUB = Path(__file__).with_name("stub_agent.py")
STUB_DIGEST = "stub-digest"
LIMITS = Limits(memory_bytes=64 * 1024**2, cpus=0.5, pids=32)


class Harness(Protocol):
    """What the suite needs to know of one implementation."""

    def runtime(self, install_id: str | None = None) -> ContainerRuntime:
        """Another runtime object on the same host, as after a daemon's restart."""
        ...

    def spec(self, session: str = "main", behaviour: str = "stay", **changes: Any) -> ContainerSpec:
        """A session's next incarnation, its folders made."""
        ...

    async def ready(self, spec: ContainerSpec) -> None:
        """Return when the stub has set its signal handlers."""
        ...

    async def end(self, running: Running, code: int) -> None:
        """Make a container that was told `exit:N` end, where it does not by itself."""
        ...

    def take_away(self) -> None:
        """The runtime answers no more."""
        ...

    def bring_back(self) -> None:
        """It answers again."""
        ...


@dataclass
class Specs:
    """Specs over real folders."""

    root: Path
    image: str = "clawbus-stub:latest"
    install_id: str = field(default_factory=lambda: new_id(time.time_ns() // 1_000_000))
    runtimes: list[ContainerRuntime] = field(default_factory=list[ContainerRuntime])

    def spec(self, session: str = "main", behaviour: str = "stay", **changes: Any) -> ContainerSpec:
        folder = SessionFolder(self.root / "sessions" / "helper" / session)
        agent_folder = self.root / "agents" / "helper"
        uid, gid = container_uid_gid("")
        for path in (folder.inbox, folder.outbox, folder.home, folder.logs, agent_folder):
            path.mkdir(parents=True, exist_ok=True)
            if os.getuid() == 0:
                os.chown(path, uid, gid)
        (folder.outbox / "ready").unlink(missing_ok=True)
        arguments: dict[str, Any] = {
            "install_id": self.install_id,
            "agent": "helper",
            "session": session,
            "incarnation": new_id(time.time_ns() // 1_000_000),
            "runner": RunnerSettings(),
            "agent_env": {"STUB": behaviour},
            "image": self.image,
            "image_digest": STUB_DIGEST,
            "network": "none",
            "limits": LIMITS,
            "user": f"{uid}:{gid}",
            "folder": folder,
            "agent_folder": agent_folder,
        }
        return build_spec(**{**arguments, **changes})

    async def ready(self, spec: ContainerSpec) -> None:
        path = next(m.source for m in spec.mounts if m.target == "/workspace/out") / "ready"
        await until(path.exists)

    async def end(self, running: Running, code: int) -> None:
        """The stub ends by itself."""

    def made(self, runtime: ContainerRuntime) -> ContainerRuntime:
        self.runtimes.append(runtime)
        return runtime


class FakeHarness(Specs):
    """In memory."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.host = FakeHost(SystemClock())

    def runtime(self, install_id: str | None = None) -> ContainerRuntime:
        return self.made(FakeRuntime(install_id or self.install_id, self.host))

    def spec(self, session: str = "main", behaviour: str = "stay", **changes: Any) -> ContainerSpec:
        if behaviour == "stubborn":
            self.host.ignores_term.add(session)
        return super().spec(session, behaviour, **changes)

    async def ready(self, spec: ContainerSpec) -> None:
        for container in self.host.containers.values():
            container.output = f"ready {container.spec.incarnation}\n"

    async def end(self, running: Running, code: int) -> None:
        self.host.exit_now(running.container_id, code)

    def restart(self, container_id: str) -> None:
        """By others."""
        self.host.restart(container_id)

    def set_restart_policy(self, container_id: str) -> None:
        """By others."""
        self.host.containers[container_id].restart_policy = True
        self.host.notify()

    def recreate(self, container_id: str) -> str:
        """Another container with the same labels, by others; its id."""
        return self.host.recreate(container_id).id

    def take_away(self) -> None:
        self.host.available = False

    def bring_back(self) -> None:
        self.host.available = True


class ProcessHarness(Specs):
    """Real processes; away means that its folder of records is."""

    @property
    def folder(self) -> Path:
        return self.root / "run" / "process"

    def runtime(self, install_id: str | None = None) -> ContainerRuntime:
        command = (sys.executable, "-I", str(STUB))
        return self.made(
            ProcessRuntime(install_id or self.install_id, self.folder, clock=SystemClock(), command=command)
        )

    def take_away(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.rename(self.folder.with_name("elsewhere"))
        self.folder.touch()

    def bring_back(self) -> None:
        self.folder.unlink()
        self.folder.with_name("elsewhere").rename(self.folder)


class DockerHarness(Specs):
    """Real containers, reached through a socket of our own that can be cut."""

    engine: EngineKind = "docker"

    def __init__(self, root: Path, image: str, socket: Path = Path("/var/run/docker.sock")) -> None:
        super().__init__(root, image)
        self._numbers = itertools.count()
        self.socket = socket
        self.proxy = SocketProxy(root / "docker.sock", socket)
        self.proxy.open()

    def client(self) -> contextlib.AbstractContextManager[Any]:
        """A client of the engine, past the proxy."""
        return docker_client(f"unix://{self.socket}")

    def runtime(self, install_id: str | None = None, **changes: Any) -> DockerRuntime:
        arguments: dict[str, Any] = {
            "image": self.image,
            "source_digest": STUB_DIGEST,
            "base_url": f"unix://{self.proxy.path}",
            "timeout_s": 20.0,
            "poll_s": 0.5,
            "engine": self.engine,
        }
        runtime = DockerRuntime(install_id or self.install_id, **{**arguments, **changes})
        self.made(runtime)
        return runtime

    def restart(self, container_id: str) -> None:
        """By others."""
        with self.client() as client:
            client.restart(container_id, timeout=0)

    def set_restart_policy(self, container_id: str) -> None:
        """By others."""
        with self.client() as client:
            client.update_container(container_id, restart_policy={"Name": "always"})

    def recreate(self, container_id: str, restart_policy: dict[str, str] | None = None) -> str:
        """Another container with the same labels, by others; its id."""
        with self.client() as client:
            config = client.inspect_container(container_id)["Config"]
            made = client.create_container(
                config["Image"],
                environment=config["Env"],
                user=config["User"],
                labels=config["Labels"],
                host_config=client.create_host_config(
                    network_mode="none", tmpfs={"/workspace/out": "mode=1777"}, restart_policy=restart_policy
                ),
            )
            client.start(made["Id"])
        return str(made["Id"])

    def take_away(self) -> None:
        self.proxy.close()

    def bring_back(self) -> None:
        self.proxy.open()


class PodmanHarness(DockerHarness):
    """A real Podman."""

    engine = "podman"

    def set_restart_policy(self, container_id: str) -> None:
        pytest.skip("Podman 4 cannot change the restart policy of a container")


@contextlib.asynccontextmanager
async def clean(harness: Any) -> AsyncGenerator[None]:
    """End what still runs and close every runtime object."""
    try:
        yield
    finally:
        runtime = harness.runtime()
        for running in await runtime.list_running():
            await runtime.kill(running.container_id)
            with anyio.fail_after(60):
                await runtime.wait(running.container_id)
            await runtime.remove(running.container_id)
        for each in harness.runtimes:
            await each.aclose()
        if isinstance(harness, DockerHarness):
            harness.proxy.close()
            remove_containers(harness)


def build_stub(base: str, digest: str | None, tag: str | None = None) -> str:
    """An image with the stub as its entry point, labelled with `digest` unless that is None."""
    label = f"LABEL {LABEL_SOURCE_DIGEST}={digest}\n" if digest is not None else ""
    dockerfile = (
        f'FROM {base}\nCOPY stub_agent.py /stub_agent.py\n{label}ENTRYPOINT ["python3", "-I", "/stub_agent.py"]\n'
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("Dockerfile", dockerfile.encode()), ("stub_agent.py", STUB.read_bytes())):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    buffer.seek(0)
    name = tag or f"clawbus-stub:{new_id(time.time_ns() // 1_000_000).lower()}"
    with docker_client() as client:
        output = list(client.build(fileobj=buffer, custom_context=True, tag=name, rm=True, decode=True))
        assert not [line for line in output if "error" in line], output
    return name


@contextlib.contextmanager
def docker_client(url: str | None = None) -> Generator[Any]:
    """Docker's low-level client of an engine, closed afterwards."""
    client = cast("Any", docker).APIClient(base_url=url, version="1.41", timeout=60)
    try:
        yield client
    finally:
        client.close()


def remove_containers(harness: DockerHarness) -> None:
    """Those of one test."""
    with harness.client() as client:
        for found in client.containers(all=True, filters={"label": f"{LABEL_INSTALL}={harness.install_id}"}):
            client.remove_container(found["Id"], v=True, force=True)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll with a deadline."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await anyio.sleep(0.005)
