"""One harness per runtime: how to make a runtime object, a spec, and how to take the runtime away and bring it back."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import anyio
import docker
import pytest

from daemon.clock import SystemClock
from daemon.containers.docker import DockerRuntime
from daemon.containers.process import ProcessRuntime
from daemon.containers.protocol import ContainerRuntime, ContainerSpec, Limits, Running
from daemon.containers.spec import LABEL_INSTALL, LABEL_SOURCE_DIGEST, build_spec
from daemon.containers.users import container_uid_gid
from schema.ids import new_id
from schema.layout import SessionFolder
from schema.rows import RunnerSettings

SUPPORT = Path(__file__).resolve().parents[1] / "support"
STUB = SUPPORT / "stub_agent.py"
STUB_DIGEST = "stub-digest"
LIMITS = Limits(memory_bytes=64 * 1024**2, cpus=0.5, pids=32)


def support(name: str) -> Any:
    """A module of tests/support; the tests are no package."""
    full = f"clawbus_tests_{name}"
    if full not in sys.modules:
        description = importlib.util.spec_from_file_location(full, SUPPORT / f"{name}.py")
        assert description is not None
        assert description.loader is not None
        module = importlib.util.module_from_spec(description)
        sys.modules[full] = module
        description.loader.exec_module(module)
    return sys.modules[full]


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
        for path in (folder.inbox, folder.outbox, folder.logs, agent_folder):
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
        self.host = support("fake_runtime").FakeHost(SystemClock())

    def runtime(self, install_id: str | None = None) -> ContainerRuntime:
        return self.made(support("fake_runtime").FakeRuntime(install_id or self.install_id, self.host))

    def spec(self, session: str = "main", behaviour: str = "stay", **changes: Any) -> ContainerSpec:
        if behaviour == "stubborn":
            self.host.ignores_term.add(session)
        return super().spec(session, behaviour, **changes)

    async def ready(self, spec: ContainerSpec) -> None:
        for container in self.host.containers.values():
            container.output = f"ready {container.spec.incarnation}\n"

    async def end(self, running: Running, code: int) -> None:
        self.host.exit_now(running.container_id, code)

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

    def __init__(self, root: Path, image: str) -> None:
        super().__init__(root, image)
        self._numbers = itertools.count()
        self.proxy = support("socket_proxy").SocketProxy(root / "docker.sock", Path("/var/run/docker.sock"))
        self.proxy.open()

    def runtime(self, install_id: str | None = None, **changes: Any) -> DockerRuntime:
        arguments: dict[str, Any] = {
            "image": self.image,
            "source_digest": STUB_DIGEST,
            "base_url": f"unix://{self.proxy.path}",
            "timeout_s": 20.0,
            "poll_s": 0.5,
        }
        runtime = DockerRuntime(install_id or self.install_id, **{**arguments, **changes})
        self.made(runtime)
        return runtime

    def take_away(self) -> None:
        self.proxy.close()

    def bring_back(self) -> None:
        self.proxy.open()


@pytest.fixture(
    params=["fake", "process", pytest.param("docker", marks=pytest.mark.docker)],
)
async def harness(
    request: pytest.FixtureRequest, tmp_path: Path, stub_image: Callable[[], str]
) -> AsyncIterator[Harness]:
    """One implementation after the other. Whatever a test leaves running is ended."""
    made: Any
    if request.param == "fake":
        made = FakeHarness(tmp_path)
    elif request.param == "process":
        made = ProcessHarness(tmp_path)
    else:
        made = DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@pytest.fixture
async def docker_harness(tmp_path: Path, stub_image: Callable[[], str]) -> AsyncIterator[DockerHarness]:
    """Docker alone."""
    made = DockerHarness(tmp_path, stub_image())
    async with clean(made):
        yield made


@contextlib.asynccontextmanager
async def clean(harness: Any) -> AsyncIterator[None]:
    """End what still runs and close every runtime object."""
    try:
        yield
    finally:
        runtime = harness.runtime()
        for running in await runtime.list_running():
            await runtime.kill(running.container_id)
            with anyio.fail_after(20):
                await runtime.wait(running.container_id)
            await runtime.remove(running.container_id)
        for each in harness.runtimes:
            await each.aclose()
        if isinstance(harness, DockerHarness):
            harness.proxy.close()
            remove_containers(harness.install_id)


@pytest.fixture(scope="session")
def stub_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """The stub in an image, built once, when first asked for."""
    made: list[str] = []

    def build() -> str:
        if not made:
            made.append(build_stub(os.environ.get("CLAWBUS_TEST_BASE_IMAGE") or "base-debian:bookworm", STUB_DIGEST))
        return made[0]

    yield build
    for tag in made:
        with docker_client() as client:
            client.remove_image(tag, force=True)


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
def docker_client() -> Iterator[Any]:
    """Docker's low-level client, closed afterwards."""
    client = cast("Any", docker).APIClient(timeout=60)
    try:
        yield client
    finally:
        client.close()


def remove_containers(install_id: str) -> None:
    """Those of one test."""
    with docker_client() as client:
        for found in client.containers(all=True, filters={"label": f"{LABEL_INSTALL}={install_id}"}):
            client.remove_container(found["Id"], v=True, force=True)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll with a deadline."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
